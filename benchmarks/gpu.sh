#!/bin/sh
# Measures an NVIDIA GPU and writes profiles/gpu_<name>.json; downloads nothing, uses what is installed.
#
#     benchmarks/gpu.sh                  everything; hours, for compiling and building engines take minutes each
#     benchmarks/gpu.sh --minutes 25     what fits into that; run it again and it goes on where it was
#     benchmarks/gpu.sh --help           the other choices
#
# PYTHON names the interpreter: by default the one of .venv, else python3. It needs torch and NumPy; with onnx it also
# measures ONNX Runtime and TensorRT where these are, and timm's models of the same names where timm is.
set -eu
cd "$(dirname "$0")/.."
if [ -z "${PYTHON:-}" ]; then
  PYTHON=python3
  [ -x .venv/bin/python ] && PYTHON=.venv/bin/python
fi
PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONPATH
REGNET_GPU_BEGAN=$(date +%s)  # --minutes are those of all processes together
export REGNET_GPU_BEGAN
crashes=0
while :; do
  status=0
  "$PYTHON" benchmarks/gpu.py "$@" || status=$?
  case "$status" in
    75) ;;  # a kernel left the GPU's context unusable; what was measured is kept, and another process goes on
    132 | 134 | 135 | 136 | 139)  # a library ended the process: the next one leaves out what did it
      crashes=$((crashes + 1))
      [ "$crashes" -le 20 ] || exit "$status" ;;
    *) exit "$status" ;;
  esac
  # The tests have run, and what failed is to be tried again once.
  for argument; do
    shift
    [ "$argument" = --retry ] || set -- "$@" "$argument"
  done
  set -- "$@" --tests none
done
