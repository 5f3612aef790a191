#!/bin/sh
# Runs the given cmocka programs one after the other; prints a failing one's output and a closing count.
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
