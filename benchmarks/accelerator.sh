#!/usr/bin/env bash
# All of benchmarks/accelerator.py on one accelerator of this machine, ten minutes at most; from anywhere:
#
#   bash benchmarks/accelerator.sh FILE [--parts ...]
#
# One GPU, or one chip of a TPU host. FILE gets the rows as JSON, beside it FILE.txt what was printed. PYTHON says which
# Python (default: python3); GIN_WHEEL a wheel of gin-config where that is not installed (it is pure Python: "pip
# download --no-deps gin-config" fetches one).
set -euo pipefail
file=$(realpath -m "${1:?give a file for the results}")
shift
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD${GIN_WHEEL:+:$(realpath "$GIN_WHEEL")}${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
export XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-.8}"  # The rest is for torch.
export CUDA_VISIBLE_DEVICES="${CUDA_VISIBLE_DEVICES:-0}" TPU_VISIBLE_CHIPS="${TPU_VISIBLE_CHIPS:-0}"
export TPU_CHIPS_PER_PROCESS_BOUNDS=1,1,1 TPU_PROCESS_BOUNDS=1,1,1
timeout 600 "${PYTHON:-python3}" benchmarks/accelerator.py "$file" "$@" 2>&1 | tee "$file.txt"
