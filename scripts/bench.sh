#!/bin/sh
# `make bench`: kernels, network and engine on this machine, with the machine's own limits beside each figure.
set -eu
cd "$(dirname "$0")/.."
echo "== kernels"
build/carousel bench kernels "$@"
echo
echo "== net"
build/carousel bench net
echo
echo "== engine"
/usr/bin/python3 scripts/bench_engine.py batching overhead trace large
