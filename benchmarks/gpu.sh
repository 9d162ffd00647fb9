#!/bin/sh
# Measures an NVIDIA GPU and writes profiles/gpu_<name>.json; downloads nothing, uses what is installed.
#
#     benchmarks/gpu.sh                  everything: hours, because compiling and building engines take minutes each
#     benchmarks/gpu.sh --minutes 25     as much as fits into 25 minutes; another run continues
#     benchmarks/gpu.sh --help           all options
#
# PYTHON names the interpreter: by default the one of .venv, else python3. It needs torch and NumPy; with onnx it also
# measures ONNX Runtime and TensorRT if they are installed, and the models of timm if timm is.
set -eu
cd "$(dirname "$0")/.."
if [ -z "${PYTHON:-}" ]; then
  PYTHON=python3
  [ -x .venv/bin/python ] && PYTHON=.venv/bin/python
fi
PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONPATH
REGNET_GPU_BEGAN=$(date +%s)  # --minutes limits all processes together
export REGNET_GPU_BEGAN
crashes=0
while :; do
  status=0
  "$PYTHON" benchmarks/gpu.py "$@" || status=$?
  case "$status" in
    75) ;;  # the CUDA context is unusable; the results are kept, and another process continues
    132 | 134 | 135 | 136 | 139)  # a library crashed the process: the next one skips that measurement
      crashes=$((crashes + 1))
      [ "$crashes" -le 20 ] || exit "$status" ;;
    *) exit "$status" ;;
  esac
  # The tests have run, and failed measurements are repeated only once.
  for argument; do
    shift
    [ "$argument" = --retry ] || set -- "$@" "$argument"
  done
  set -- "$@" --tests none
done
