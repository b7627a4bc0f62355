#!/bin/sh
# One command for whoever has an NVIDIA GPU: installs, compiles the small checkpoint with the TensorRT at hand, runs the gpu
# tests, the self-test and the benchmark, and prints a summary to paste into an issue. Nothing leaves the machine.
#   scripts/gpu_check.sh [tensorrt-rtx|tensorrt]
# Without a name it takes the target that the GPU can run (scripts/maintenance/gpu_target.py).
# On a Jetson, whose TensorRT comes with JetPack: VENV_OPTIONS=--system-site-packages scripts/gpu_check.sh
# Where Python is older than 3.11, as in JetPack 6, nothing can be built: BUNDLE=PATH names a bundle from another machine.
set -u
cd "$(dirname "$0")/.."
OUT=${OUT:-build/gpu-check}
VENV=${VENV:-$OUT/venv}
mkdir -p "$OUT"
: > "$OUT/summary.txt"

say() { echo "$*" | tee -a "$OUT/summary.txt"; }
step() {  # step NAME COMMAND...: its output to a file, one line to the summary
    name=$1
    shift
    if "$@" > "$OUT/$name.log" 2>&1; then say "$name: fine"; else say "$name: FAILED, the end of $OUT/$name.log:"
        tail -n 15 "$OUT/$name.log" | tee -a "$OUT/summary.txt"; return 1; fi
}
end() {
    echo
    echo "paste $OUT/summary.txt into an issue"
    ! grep -q FAILED "$OUT/summary.txt"
    exit
}

say "foveate $(git rev-parse --short HEAD 2>/dev/null || echo "without git"), $(uname -srm), $(date -u +%F)"
say "$(nvidia-smi --query-gpu=name,compute_cap,driver_version,memory.total --format=csv,noheader 2>/dev/null || { tr -d "\0" < /proc/device-tree/model; } 2>/dev/null || echo "no nvidia-smi")"
[ -d "$VENV" ] || step venv "${PYTHON:-python3}" -m venv ${VENV_OPTIONS:-} "$VENV" || end
EXTRAS=
[ -n "${BUNDLE:-}" ] || EXTRAS=export,dev
PIP="$VENV/bin/python -m pip --disable-pip-version-check --quiet"
# The Makefile says why torch comes first, and alone.
[ -n "${BUNDLE:-}" ] || step torch $PIP install "$(sed -n 's/^TORCH *?= *//p' Makefile)" || end
step install $PIP install --editable ".${EXTRAS:+[$EXTRAS]}" || end
set -- $("$VENV/bin/python" scripts/maintenance/gpu_target.py ${1:-})
TARGET=$1
shift
say "target $TARGET, packages: $*"
# Each by itself: where cuda-bindings has no wheel for this Python, the system's libcudart is used.
for package in "$@"; do step "install-${package%%[<>=]*}" $PIP install "$package"; done
GPU=$("$VENV/bin/python" -c 'from foveate.engines.trt.cuda.gpu import find_gpu; print(find_gpu())')
say "$GPU"
TESTS=
if [ -z "${BUNDLE:-}" ]; then
    BUNDLE=$OUT/shapes TESTS=tests/engines/trt/test_gpu.py
    step build "$VENV/bin/python" export/build.py --model scripts/shapes --method sppruner --precision fp16 --no-compile --out "$BUNDLE" || end
fi
step compile "$VENV/bin/foveate" compile "$BUNDLE" --target "$TARGET" --force || end
case $GPU in "no GPU"*)
    say "stopped here: plans can be compiled without a GPU, not executed; self-test, gpu tests and benchmark were not run"
    end ;;
esac
[ -z "$TESTS" ] || step tests "$VENV/bin/python" -m pytest -m gpu -rs $TESTS
step check "$VENV/bin/foveate" check "$BUNDLE" --engine "$TARGET"
step answer "$VENV/bin/foveate" run "$BUNDLE" "What letter is on the sign?" --image docs/scene.png --engine "$TARGET" --timings
step bench "$VENV/bin/foveate" bench "$BUNDLE" --engine "$TARGET"
# The same with decoding steps as CUDA graphs, which are off by default until somebody's run of this shows that they work.
step compile-graphs "$VENV/bin/foveate" compile "$BUNDLE" --target "$TARGET" --cuda-graphs &&
    step bench-graphs "$VENV/bin/foveate" bench "$BUNDLE" --engine "$TARGET"
# And with the likeliest tokens picked on the GPU, off by default for the same reason; compiling asks for them.
step compile-sampling "$VENV/bin/foveate" compile "$BUNDLE" --target "$TARGET" --device-sampling &&
    step bench-sampling "$VENV/bin/foveate" bench "$BUNDLE" --engine "$TARGET"
say ""
for name in compile check tests answer bench compile-graphs bench-graphs compile-sampling bench-sampling; do
    say "== $name"
    tail -n 12 "$OUT/$name.log" 2>/dev/null | tee -a "$OUT/summary.txt"
done
end
