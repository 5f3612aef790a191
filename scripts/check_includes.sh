#!/bin/sh
# Fails if an include goes against the direction of the house:
#   proto <- model <- kernels <- cluster <- worker | coordinator | train <- cli
# worker/, coordinator/ and train/ never include each other; mpi.h, CUDA and the generated protobuf header live in one place each.
set -eu
cd "$(dirname "$0")/.."

rooms=
for room in proto model kernels cluster worker coordinator cli train; do
    [ ! -d "$room" ] || rooms="$rooms $room"
done
# shellcheck disable=SC2086 # words
find $rooms \( -name '*.c' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' \) | sort |
    xargs grep -nE '^[[:space:]]*#[[:space:]]*include' /dev/null | awk '
BEGIN {
    split("proto model kernels cluster worker coordinator cli train", rooms)
    split("0 1 2 3 4 4 5 4", levels)
    for (i in rooms) level[rooms[i]] = levels[i]
}
function complain(why) {
    printf "includes: %s:%s: <%s> %s\n", file, line, header, why > "/dev/stderr"
    failed = 1
}
{
    split($0, part, ":"); file = part[1]; line = part[2]
    if (!match($0, /[<"][^>"]+[>"]/)) next
    header = substr($0, RSTART + 1, RLENGTH - 2)
    is_quoted = substr($0, RSTART, 1) == "\""
    n_checked++
    room = file; sub(/\/.*/, "", room)
    other = header; sub(/\/.*/, "", other)
    if (header == "mpi.h") {
        if (mpi_file == "") mpi_file = file
        if (room != "cluster" || file != mpi_file) complain("belongs in one file of cluster/")
    }
    if (header ~ /\.pb-c\.h$/ && room != "proto")
        complain("belongs in proto/ only: use proto/control.h")
    if (header ~ /^(cuda|cublas|nccl|curand)/ && room != "kernels")
        complain("belongs in kernels/ only")
    if (!is_quoted || header ~ /\.pb-c\.h$/) next
    if (!(other in level) || header !~ /\//)
        complain("is not written from the root of the tree, or is of no room")
    else if (level[other] > level[room] || (level[other] == level[room] && other != room))
        complain("goes against proto <- model <- kernels <- cluster <- worker | coordinator | train <- cli")
}
END {
    if (failed) exit 1
    printf "includes: %d go one way\n", n_checked
}'
