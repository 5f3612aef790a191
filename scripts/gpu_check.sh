#!/usr/bin/env bash
# Every check that needs a GPU, one JSON: builds with CUDA, then tests, golden runs, the sanitizer, and the
# targets of docs/gpu.md measured beside bandwidth, product rate and PyTorch.
#
#   scripts/gpu_check.sh [-o FILE] [PART...]   parts: build units golden sanitize targets invariance exits workers pytorch
#   scripts/gpu_check.sh --rehearse            the same script on the emulated build, with small shapes; judges no target
set -u
cd "$(dirname "$0")/.." || exit 1
exec python3 scripts/gpu_check.py "$@"
