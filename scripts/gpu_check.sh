#!/bin/sh
# One command for whoever has an NVIDIA GPU: installs, compiles the small checkpoint with the TensorRT at hand, runs the gpu
# tests, the self-test and the benchmark, and prints a summary to paste into an issue. Nothing leaves the machine.
#   scripts/gpu_check.sh [tensorrt-rtx|tensorrt]
# On a Jetson, whose TensorRT comes with JetPack: VENV_OPTIONS=--system-site-packages scripts/gpu_check.sh tensorrt
set -u
cd "$(dirname "$0")/.."
TARGET=${1:-tensorrt-rtx}
OUT=${OUT:-build/gpu-check}
VENV=${VENV:-$OUT/venv}
BUNDLE=$OUT/shapes
mkdir -p "$OUT"
: > "$OUT/summary.txt"

say() { echo "$*" | tee -a "$OUT/summary.txt"; }
step() {  # step NAME COMMAND...: its output to a file, one line to the summary
    name=$1
    shift
    if "$@" > "$OUT/$name.log" 2>&1; then say "$name: fine"; else say "$name: FAILED, the end of $OUT/$name.log:"
        tail -n 15 "$OUT/$name.log" | tee -a "$OUT/summary.txt"; fi
}

say "foveate $(git rev-parse --short HEAD 2>/dev/null || echo "without git"), $TARGET, $(uname -srm), $(date -u +%F)"
say "$(nvidia-smi --query-gpu=name,compute_cap,driver_version,memory.total --format=csv,noheader 2>/dev/null || tr -d '\0' < /proc/device-tree/model 2>/dev/null || echo "no nvidia-smi")"
[ -d "$VENV" ] || python3 -m venv ${VENV_OPTIONS:-} "$VENV"
EXTRAS=export,dev
[ "$TARGET" = tensorrt-rtx ] && EXTRAS=$EXTRAS,rtx || PACKAGES=cuda-bindings
step install "$VENV/bin/python" -m pip install --quiet --editable ".[$EXTRAS]" ${PACKAGES:-}
step build "$VENV/bin/python" export/build.py --model scripts/shapes --method sppruner --precision fp16 --no-compile --out "$BUNDLE"
step compile "$VENV/bin/foveate" compile "$BUNDLE" --target "$TARGET" --force
step check "$VENV/bin/foveate" check "$BUNDLE" --engine "$TARGET"
step tests "$VENV/bin/python" -m pytest -m gpu -rs tests/engines/test_trt_gpu.py
step answer "$VENV/bin/foveate" run "$BUNDLE" "What letter is on the sign?" --image docs/scene.png --engine "$TARGET" --timings
step bench "$VENV/bin/foveate" bench "$BUNDLE" --engine "$TARGET"
say ""
for name in compile check tests answer bench; do
    say "== $name"
    tail -n 12 "$OUT/$name.log" 2>/dev/null | tee -a "$OUT/summary.txt"
done
echo
echo "paste $OUT/summary.txt into an issue"
! grep -q FAILED "$OUT/summary.txt"
