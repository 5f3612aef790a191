#!/bin/sh
# Runs the given cmocka programs, as many at once as there are cores; prints a failing one's output and a closing count.
# Tests ask for more memory than there is and want to be told no, not to be ended.
export ASAN_OPTIONS="allocator_may_return_null=1:strict_string_checks=1${ASAN_OPTIONS:+:$ASAN_OPTIONS}"
export UBSAN_OPTIONS="halt_on_error=1:print_stacktrace=1${UBSAN_OPTIONS:+:$UBSAN_OPTIONS}"
export TSAN_OPTIONS="allocator_may_return_null=1:halt_on_error=1:second_deadlock_stack=1${TSAN_OPTIONS:+:$TSAN_OPTIONS}"
logs=$(mktemp -d) || exit 1
trap 'rm -rf "$logs"' EXIT
export logs
# shellcheck disable=SC2016 # $1 is the inner shell's
printf '%s\n' "$@" | xargs -P "$(nproc)" -I{} sh -c '
    name=$(basename "$1")
    if "$1" >"$logs/$name" 2>&1; then touch "$logs/$name.passed"; fi' sh {}
passed=0; failed=0
for t in "$@"; do
    log=$logs/$(basename "$t")
    p=$(sed -n 's/^\[  PASSED  \] \([0-9]*\) test.*/\1/p' "$log" | tail -n 1)
    passed=$((passed + ${p:-0}))
    [ ! -e "$log.passed" ] || continue
    echo "FAILED $t"; tail -n 60 "$log"
    # cmocka names a failure where it happens and again at the end.
    n=$(grep '^\[  FAILED  \] [a-z]' "$log" | sort -u | wc -l)
    failed=$((failed + (n > 0 ? n : 1)))
done
echo "units: $passed passed, $failed failed"
[ "$failed" -eq 0 ]
