#!/bin/sh
# The device side on Python 3.10 (JetPack 6), where ONNX Runtime ends at 1.23.2: installs it beside this checkout, compiles
# bundles that have the dialect primitive, and proves each.
#   [PYTHON=python3.10] scripts/python310.sh BUNDLE...
set -eu
test $# -gt 0 || { echo "no bundle given | scripts/python310.sh BUNDLE..."; exit 2; }
HERE=$(cd "$(dirname "$0")/.." && pwd)
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT
"${PYTHON:-python3.10}" -m venv "$WORK/venv"
git -C "$HERE" archive HEAD | tar -x -C "$WORK" --one-top-level=source
"$WORK/venv/bin/python" -m pip install --quiet "$WORK/source"
"$WORK/venv/bin/python" -c 'import sys; from foveate.engines.ort.backend import onnxruntime; print("Python", sys.version.split()[0], "ONNX Runtime", onnxruntime.__version__)'
WRONG=
for BUNDLE; do
    echo "$BUNDLE"
    rm -rf "$WORK/bundle"
    cp -R "$BUNDLE" "$WORK/bundle"
    rm -rf "$WORK/bundle/engines"
    "$WORK/venv/bin/foveate" compile "$WORK/bundle" && "$WORK/venv/bin/foveate" check "$WORK/bundle" || WRONG="$WRONG $BUNDLE"
done
test -z "$WRONG" || { echo "wrong:$WRONG"; exit 1; }
