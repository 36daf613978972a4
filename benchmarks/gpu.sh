#!/usr/bin/env bash
# Measure training steps, sampling, evaluation and a short training run on one GPU, within eight minutes.
#
#   bash benchmarks/gpu.sh
#
#   --path FOLDER   CIFAR-10 as parquet files, for the training run; without it, the run uses data=fashion_mini
#   --json FILE     write the numbers to FILE too
#   --dry           use small sizes and a CPU, to test the script
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="src:benchmarks${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python3}" -W ignore benchmarks/gpu.py "$@"
