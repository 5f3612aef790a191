#!/bin/sh
# Fails if a pure object calls anything outside a short list: usage check_pure.sh BUILD_DIR.
#
# Pure objects hold decisions: no clock, no I/O, no threads, no MPI, and no heap beyond create and destroy. What they
# may call is memory and string functions, arithmetic, formatting into a buffer, assert, and each other.
set -eu
build=${1:?usage: check_pure.sh BUILD_DIR}

pure="worker/stage*.o worker/chain.o worker/kv_blocks.o worker/knee.o worker/kv_sizing.o kernels/attention_plan.o kernels/exit_rule.o kernels/rng.o worker/cost.o
coordinator/scheduler*.o coordinator/trace_clock.o cluster/ring.o cluster/event_queue.o worker/timed.o cluster/cost_model.o proto/frame.o proto/status.o proto/sequence.o proto/trace.o
train/curriculum.o train/recipe_levels.o"
# The objects whose create and destroy take and give back memory.
with_heap="worker/stage.o coordinator/scheduler*.o cluster/event_queue.o proto/trace.o"

allowed='mem(cpy|move|set|cmp|chr)|str(len|nlen|cmp|ncmp|chr|rchr|str|cpy|ncpy|cat)|v?snprintf'
allowed="$allowed"'|expf?|logf?|floorf?|ceilf?|fabsf?|sqrtf?|fminf?|fmaxf?|__isnanf?|__isinff?|__finitef?'
allowed="$allowed"'|__assert_fail|__stack_chk_fail|_GLOBAL_OFFSET_TABLE_'
heap='malloc|calloc|realloc|free'
# Put there by the compiler in SAN= builds, not called by the source.
sanitizer='__(asan|ubsan|tsan|sanitizer|lsan)_[a-z0-9_]*'

objects=
for pattern in $pure; do
    found=
    for object in "$build"/$pattern; do
        [ -e "$object" ] || continue
        objects="$objects $object"
        found=1
    done
    if [ -z "$found" ]; then
        echo "pure: no object $build/$pattern: build first, or update the list in $0" >&2
        exit 1
    fi
done

# Objects have no spaces in their names, and the list is meant to be split.
# shellcheck disable=SC2086
defined=$(nm --defined-only --extern-only $objects | awk 'NF == 3 { print $3 }' | sort -u)
failed=0
count=0
for object in $objects; do
    count=$((count + 1))
    may="$allowed|$sanitizer"
    for pattern in $with_heap; do
        # shellcheck disable=SC2254 # a pattern it is
        case $object in "$build"/$pattern) may="$may|$heap" ;; esac
    done
    calls=$(nm --undefined-only "$object" | awk '{ print $NF }' | sed 's/@.*//' |
        grep -vxE "$may" | sort -u || true)
    for symbol in $calls; do
        if ! printf '%s\n' "$defined" | grep -qx "$symbol"; then
            echo "pure: ${object#"$build"/} calls $symbol, which is not on the list in $0" >&2
            failed=1
        fi
    done
done
[ "$failed" -eq 0 ] || exit 1
echo "pure: $count objects call nothing outside the list"
