#!/usr/bin/env bash
# Steps, sampling, evaluation and a short training run on one GPU, within eight minutes: bash benchmarks/gpu.sh
#
#   --path FOLDER   CIFAR-10 as parquet, for the training run; without it, the small set of clothes that is carried along
#   --json FILE     where the numbers go too
#   --dry           everything in small, on a CPU: does the script itself work?
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="src:benchmarks${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python3}" -W ignore benchmarks/gpu.py "$@"
