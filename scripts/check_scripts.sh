#!/bin/sh
# Fails if shellcheck has something to say about a shell script or a batch script of the tree.
set -eu
cd "$(dirname "$0")/.."
if ! command -v shellcheck >/dev/null 2>&1; then
    echo "shellcheck: skipped: there is no shellcheck here (scripts/setup.sh tests)"
    exit 0
fi
scripts=$(find scripts \( -name '*.sh' -o -name '*.sbatch' \) | sort)
# shellcheck disable=SC2086 # names without spaces
shellcheck $scripts
count=$(printf '%s\n' "$scripts" | wc -l)
echo "shellcheck: $count passed, 0 failed"
