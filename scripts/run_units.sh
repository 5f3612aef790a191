#!/bin/sh
# Runs the given cmocka programs one after the other; prints a failing one's output and a closing count.
# Tests ask for more memory than there is and want to be told no, not to be ended.
export ASAN_OPTIONS="allocator_may_return_null=1:strict_string_checks=1${ASAN_OPTIONS:+:$ASAN_OPTIONS}"
export UBSAN_OPTIONS="halt_on_error=1:print_stacktrace=1${UBSAN_OPTIONS:+:$UBSAN_OPTIONS}"
export TSAN_OPTIONS="allocator_may_return_null=1:halt_on_error=1:second_deadlock_stack=1${TSAN_OPTIONS:+:$TSAN_OPTIONS}"
passed=0; failed=0
for t in "$@"; do
    if out=$("$t" 2>&1); then
        n=$(printf '%s\n' "$out" | sed -n 's/^\[  PASSED  \] \([0-9]*\) test.*/\1/p' | tail -n 1)
        passed=$((passed + ${n:-0}))
    else
        echo "FAILED $t"; printf '%s\n' "$out" | tail -n 60
        p=$(printf '%s\n' "$out" | sed -n 's/^\[  PASSED  \] \([0-9]*\) test.*/\1/p' | tail -n 1)
        passed=$((passed + ${p:-0}))
        # cmocka names a failure where it happens and again at the end.
        n=$(printf '%s\n' "$out" | grep '^\[  FAILED  \] [a-z]' | sort -u | wc -l)
        failed=$((failed + (n > 0 ? n : 1)))
    fi
done
echo "units: $passed passed, $failed failed"
[ "$failed" -eq 0 ]
