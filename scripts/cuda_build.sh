#!/bin/sh
# The build with nvcc: it compiles and links, needs no CUDA library to start, and without a GPU says so. With the word
# `report`: registers and spills of its kernels instead (scripts/cuda_report.sh). Skipped where there is no nvcc.
set -eu
cd "$(dirname "$0")/.."
name=cuda_build
[ "${1:-}" != report ] || name=cuda_report
if ! command -v nvcc >/dev/null 2>&1 && [ ! -x /usr/local/cuda/bin/nvcc ]; then
    echo "$name: skipped: there is no nvcc here (scripts/setup.sh cuda)"
    exit 0
fi
jobs=-j$(nproc)
if [ "$name" = cuda_report ]; then
    make --no-print-directory "$jobs" cuda_report
    exit 0
fi
make --no-print-directory "$jobs" build/release/carousel
program=build/release/carousel
failed=0
passed=0
check() { # what, then a command
    what=$1
    shift
    if "$@"; then passed=$((passed + 1)); else failed=$((failed + 1)); echo "cuda_build: FAILED: $what"; fi
}
needs_no_library() { ! ldd "$program" | grep -E 'libcu(da|dart|blas)'; }
has_kernels() { nm "$program" | grep -q cudaLaunchKernel; }
# A GPU may be there, or not: either way the program starts, and without one the message names it.
says_what_is_missing() {
    out=$("$program" generate model/demo "1" --backend cuda 2>&1 </dev/null) && return 0
    printf '%s\n' "$out"
    printf '%s\n' "$out" | grep -qiE 'gpu|device|driver'
}
check "no CUDA library is needed to start" needs_no_library
check "the kernels are linked in" has_kernels
check "the program starts" "$program" --version
check "without a GPU it says so" says_what_is_missing
echo "cuda_build: $passed passed, $failed failed"
[ "$failed" -eq 0 ]
