#!/bin/sh
# Installs what is missing from Debian packages; silent when all is there.
#
#   scripts/setup.sh          what the build and the demo need
#   scripts/setup.sh plots    and what draws the pictures of docs/
#   scripts/setup.sh cuda     and CUDA's compiler, for the GPU backend
#   scripts/setup.sh tests    and what `make test` looks at pages, a real Slurm and several hosts with
set -u
need=""
want() { # package, then a command that succeeds when it is there
    pkg=$1; shift
    "$@" >/dev/null 2>&1 || need="$need $pkg"
}
header() { printf '#include <%s>\n' "$1" | ${CC:-cc} -E -x c - ; }
want gcc cc --version
want g++ g++ --version
want libc6-dev header stdlib.h
want make make --version
want pkg-config pkg-config --version
want openmpi-bin mpirun --version
want libopenmpi-dev mpicc --showme:compile
want protobuf-c-compiler protoc-c --version
want libprotobuf-c-dev pkg-config --exists libprotobuf-c
want libjansson-dev pkg-config --exists jansson
want libutf8proc-dev pkg-config --exists libutf8proc
want libevent-dev pkg-config --exists libevent_openssl
want libssl-dev pkg-config --exists openssl
want libcmocka-dev header cmocka.h
want python3-numpy /usr/bin/python3 -c 'import numpy'
want curl curl --version
want openssl openssl version
want python3-venv /usr/bin/python3 -c 'import venv, ensurepip'
want clang clang --version
# The fuzzer's runtime has the compiler's version in its name; Debian 12 has 14.
clang_major=$(clang -dumpversion 2>/dev/null | cut -d. -f1)
[ -n "$clang_major" ] || clang_major=$(apt-cache depends clang 2>/dev/null | sed -n 's/.*clang-\([0-9]*\)$/\1/p' | head -n 1)
want "libclang-rt-${clang_major:-14}-dev" sh -c 'ls /usr/lib/llvm-*/lib/clang/*/lib/linux/libclang_rt.fuzzer-x86_64.a || ls /usr/lib/llvm-*/lib/clang/*/lib/linux/libclang_rt.fuzzer-*.a'
there() { command -v "$1" || [ -x "/usr/sbin/$1" ]; } # a user's PATH lacks the daemons' directory
case ${1:-} in
plots | tests) want python3-matplotlib /usr/bin/python3 -c 'import matplotlib' ;;
esac
if [ "${1:-}" = tests ]; then
    want chromium there chromium
    want slurm-wlm there slurmctld
    want munge there munged
    want iproute2 there ip
    want shellcheck there shellcheck
fi
if [ "${1:-}" = cuda ] && ! command -v nvcc >/dev/null 2>&1 && [ ! -x /usr/local/cuda/bin/nvcc ]; then
    if apt-cache policy nvidia-cuda-toolkit 2>/dev/null | grep -q 'Candidate: [0-9]'; then
        need="$need nvidia-cuda-toolkit"
    else
        echo "setup: there is no nvcc, and no package nvidia-cuda-toolkit here. On Debian, add contrib and non-free" \
            "to the components in /etc/apt/sources.list and run apt-get update; or install NVIDIA's toolkit" \
            "(https://developer.nvidia.com/cuda-downloads). The build finds nvcc on PATH and in /usr/local/cuda/bin." >&2
        exit 1
    fi
fi
[ -z "$need" ] && exit 0

echo "setup: missing packages:$need"
if ! command -v apt-get >/dev/null 2>&1; then
    echo "setup: this is not a Debian system (no apt-get); install what corresponds to:$need" >&2
    exit 1
fi
if [ "$(id -u)" -eq 0 ]; then
    as_root=""
elif command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null || { command -v sudo >/dev/null 2>&1 && [ -t 0 ]; }; then
    as_root="sudo"
else
    echo "setup: not root and no sudo; ask an administrator to run: apt-get install$need" >&2
    exit 1
fi
echo "setup: running ${as_root:+sudo }apt-get install$need"
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
# Words of a list, meant to be split.
# shellcheck disable=SC2086
{ $as_root apt-get update && $as_root apt-get install -y --no-install-recommends $need; } >"$log" 2>&1 || {
    tail -n 15 "$log" >&2
    echo "setup: apt-get failed; its log is $log" >&2
    exit 1
}
rm -f "$log"
echo "setup: done"
