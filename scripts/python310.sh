#!/bin/sh
# The device side on Python 3.10 (JetPack 6), where ONNX Runtime ends at 1.23.2: installs it beside this checkout, compiles a
# bundle that has the dialect primitive, and proves it.
#   scripts/python310.sh BUNDLE [PYTHON]
set -eu
BUNDLE=$(cd "$1" && pwd)
PYTHON=${2:-python3.10}
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT
cd "$(dirname "$0")/.."
"$PYTHON" -m venv "$WORK/venv"
git archive HEAD | tar -x -C "$WORK" --one-top-level=source
"$WORK/venv/bin/python" -m pip install --quiet "$WORK/source"
"$WORK/venv/bin/python" -c 'import sys, onnxruntime; print("Python", sys.version.split()[0], "ONNX Runtime", onnxruntime.__version__)'
cp -R "$BUNDLE" "$WORK/bundle"
rm -rf "$WORK/bundle/engines"
"$WORK/venv/bin/foveate" compile "$WORK/bundle"
"$WORK/venv/bin/foveate" check "$WORK/bundle"
