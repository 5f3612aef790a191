#!/bin/sh
# Registers, shared memory, stack and spills of every kernel and architecture, from what ptxas said while it
# compiled: usage cuda_report.sh build/release/cuda_kernels.txt (make cuda_report). Fails when a kernel spills
# registers to memory.
#
# Shared memory here is what a kernel has of its own; what it is launched with (CUDA_SHARED) is not known to ptxas.
set -eu
report=${1:?usage: cuda_report.sh build/release/cuda_kernels.txt}
if [ ! -s "$report" ]; then
    echo "cuda_report: $report is empty or missing: make cuda_report needs nvcc" >&2
    exit 1
fi

# Kernels that may spill, one a line: "NAME ARCHITECTURE BYTES", the most bytes of spill stores a thread. Here: two
# addresses of deterministic tiles, loaded once a step of 64 positions, and heads of 256, which no model of this family
# has. Head size 128 on Hopper in the fast mode, which the numbers of docs/gpu.md are about, spills nothing.
may_spill="attention_tile_kernel<128,1,true> sm_80 8
attention_tile_kernel<128,1,true> sm_90a 8
attention_tile_kernel<256,1,false> sm_90a 4
attention_split_kernel<256> sm_80 56
attention_split_kernel<256> sm_90a 32"

names=$(command -v cu++filt || command -v /usr/local/cuda/bin/cu++filt || command -v c++filt || echo cat)
awk '
/Compiling entry function/ { split($0, part, "\047"); name = part[2]; arch = part[4] }
/bytes stack frame/ && name != "" {
    stack = $1; stores = loads = 0
    for (i = 1; i < NF; i++) if ($i == "spill") { if ($(i + 1) ~ /^stores/) stores = $(i - 2); else loads = $(i - 2) }
}
/: Used [0-9]+ registers/ && name != "" {
    registers = shared = 0
    for (i = 1; i <= NF; i++) {
        if ($i ~ /^registers/) registers = $(i - 1)
        if ($i ~ /^smem/) shared = $(i - 2)
    }
    print name, arch, registers, shared, stack, stores, loads
    name = ""
}' "$report" | sort -u | "$names" | awk -v may_spill="$may_spill" '
BEGIN {
    n = split(may_spill, line, "\n")
    for (i = 1; i <= n; i++) if (split(line[i], word, " ") == 3) allowed[word[1], word[2]] = word[3]
    printf "%-60s %-8s %9s %7s %6s %7s %7s\n", "kernel", "", "registers", "shared", "stack", "stores", "loads"
}
{
    # A demangled name has blanks; the six numbers behind it have none.
    n_kernels++
    full = $0
    for (i = NF; i > NF - 6; i--) sub(/ [^ ]+$/, "", full)
    short = full
    sub(/^void /, "", short); sub(/\(.*$/, "", short)
    stores = $(NF - 1)
    printf "%-60s %-8s %9d %7d %6d %7d %7d\n", short, $(NF - 5), $(NF - 4), $(NF - 3), $(NF - 2), stores, $NF
    gsub(/ /, "", short)
    if (stores > 0 && !(((short, $(NF - 5)) in allowed) && stores <= allowed[short, $(NF - 5)])) {
        spills = spills sprintf("cuda_report: %s on %s spills %d bytes\n", short, $(NF - 5), stores)
        n_spills++
    }
}
END {
    if (n_kernels == 0) { print "cuda_report: no kernel in the report" > "/dev/stderr"; exit 1 }
    printf "%s", spills > "/dev/stderr"
    printf "cuda_report: %d passed, %d failed\n", n_kernels - n_spills, n_spills
    exit n_spills > 0
}'
