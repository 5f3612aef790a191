#!/usr/bin/env bash
# Everything `make test` runs: one line a stage with its time, logs in build/test/, and as the last line
# "N passed, N failed". A failed stage does not stop the next ones; the exit code says whether any failed.
#
#   scripts/test.sh [STAGE...]      only stages whose name contains one of the words (test.sh e2e_exact)
set -u
cd "$(dirname "$0")/.." || exit 1
logs=build/test
mkdir -p "$logs"
# Started by make: a make below us shall not join its job server nor inherit its variables by accident.
unset MAKEFLAGS MFLAGS MAKELEVEL MAKEOVERRIDES
FUZZ_SECONDS=${FUZZ_SECONDS:-5}
jobs=-j$(nproc)
words=("$@")
passed=0; failed=0; skipped=0; began=$SECONDS

is_wanted() {
    [ ${#words[@]} -eq 0 ] && return 0
    local word
    for word in "${words[@]}"; do case $1 in *"$word"*) return 0 ;; esac; done
    return 1
}

# A stage says "...: N passed, M failed" itself, or counts as one check. A stage that fails without having
# counted a failure (it crashed, hung or did not build) counts as one failure. One that says "NAME: skipped: WHY"
# and nothing else counts as skipped: it lacked something that only the network has.
stage() { # name, time limit in seconds, command...
    local name=$1 limit=$2 start code line p=0 f=0
    shift 2
    is_wanted "$name" || return 0
    start=$(date +%s%N)
    timeout --kill-after=10 "$limit" "$@" >"$logs/$name.log" 2>&1 </dev/null
    code=$?
    line=$(grep -E '^[a-z0-9_]+: [0-9]+ passed, [0-9]+ failed$' "$logs/$name.log" | tail -n 1)
    if [ -n "$line" ]; then
        p=$(sed -E 's/.*: ([0-9]+) passed.*/\1/' <<<"$line")
        f=$(sed -E 's/.*, ([0-9]+) failed$/\1/' <<<"$line")
    elif [ $code -eq 0 ]; then
        p=1
    fi
    [ $code -eq 0 ] || [ "$f" -gt 0 ] || f=1
    passed=$((passed + p)); failed=$((failed + f))
    local verdict=ok why
    why=$(sed -nE 's/^[a-z0-9_]+: (skipped: .*)/\1/p' "$logs/$name.log" | tail -n 1)
    if [ -n "$why" ] && [ $code -eq 0 ] && [ -z "$line" ]; then
        passed=$((passed - p)); p=0; skipped=$((skipped + 1)); verdict=$why
    fi
    [ "$f" -eq 0 ] || verdict=FAILED
    [ $code -ne 124 ] || verdict="FAILED (over ${limit} s)"
    awk -v n="$name" -v ns=$(($(date +%s%N) - start)) -v p="$p" -v f="$f" -v v="$verdict" \
        'BEGIN { printf "%-20s %7.1f s  %5d passed %3d failed  %s\n", n, ns / 1e9, p, f, v }'
    if [ "$f" -gt 0 ]; then
        echo "---- the end of $logs/$name.log"
        tail -n 60 "$logs/$name.log"
        echo "----"
    fi
}

stage build 600 make --no-print-directory "$jobs" build/carousel
stage units 900 make --no-print-directory "$jobs" unit
stage headers 120 make --no-print-directory headers
stage includes 60 make --no-print-directory includes
stage shellcheck 60 scripts/check_scripts.sh
stage pure 60 make --no-print-directory pure
stage units_asan 900 make --no-print-directory "$jobs" unit SAN=address,undefined OPT=-O1
stage units_tsan 900 make --no-print-directory "$jobs" unit SAN=thread OPT=-O1
# The GPU backend: the real build where nvcc is, and its kernels on the CPU (docs/testing.md). The two emulated runs are
# the two extremes of what a device may do: as late as possible, and at once, with threads in the other order.
stage cuda_build 600 scripts/cuda_build.sh
stage cuda_report 300 scripts/cuda_build.sh report
stage units_emulated 300 make --no-print-directory "$jobs" unit CUDA=emulated
stage units_emulated_asan 600 env CAROUSEL_EMULATOR_LAZY=0 CAROUSEL_EMULATOR_ORDER=reverse \
    make --no-print-directory "$jobs" unit CUDA=emulated SAN=address,undefined OPT=-O1
stage fuzz_build 600 make --no-print-directory "$jobs" fuzz-bins
stage fuzz 900 scripts/fuzz.sh "$FUZZ_SECONDS" build/fuzz
stage build_emulated 600 make --no-print-directory "$jobs" build/emulated/carousel CUDA=emulated
for script in tests/e2e_*.py; do
    name=$(basename "$script" .py)
    [ "$name" = e2e_lib ] || stage "$name" 600 /usr/bin/python3 "$script"
done

echo "all stages: $((SECONDS - began)) s"
[ $((passed + failed + skipped)) -gt 0 ] || { echo "no stage has that name: ${words[*]}"; failed=1; }
echo "$passed passed, $failed failed$([ $skipped -eq 0 ] || echo ", $skipped skipped")"
[ "$failed" -eq 0 ]
