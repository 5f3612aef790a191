#!/usr/bin/env bash
# Runs every fuzz target of BUILD_DIR/tests for SECONDS each, on as many cores as there are; a finding fails.
#
#   scripts/fuzz.sh SECONDS [BUILD_DIR]
#
# The corpus of each target is kept in BUILD_DIR/corpus/TARGET and grows from run to run; the seeds are real
# files. A crashing input is left in BUILD_DIR/findings; run the target with that file to see it again.
set -u
cd "$(dirname "$0")/.." || exit 1
seconds=${1:?usage: scripts/fuzz.sh SECONDS [BUILD_DIR]}
build=${2:-build/fuzz}
case $seconds in '' | *[!0-9]* | 0) echo "fuzz: SECONDS must be a whole number from 1, found '$seconds'" >&2; exit 2 ;; esac
export ASAN_OPTIONS="abort_on_error=0:allocator_may_return_null=1${ASAN_OPTIONS:+:$ASAN_OPTIONS}"
export UBSAN_OPTIONS="halt_on_error=1:print_stacktrace=1${UBSAN_OPTIONS:+:$UBSAN_OPTIONS}"

# Real files as a start: a fuzzer that begins at nothing spends its seconds on finding the first brace.
seed() { # target name, corpus directory
    local demo=model/demo corpus=$2
    case $1 in
    fuzz_config) cp $demo/config.json "$corpus/demo.json" ;;
    fuzz_cost_model) cp cluster/costs/*.json "$corpus/" ;;
    fuzz_recipe) cp train/recipes/*.json tests/data/recipe_*.json "$corpus/" ;;
    fuzz_tokenizer*) cp $demo/tokenizer.json "$corpus/demo.json" ;;
    fuzz_batch*) head -n 4 $demo/prompts.jsonl >"$corpus/demo.jsonl"
        printf '%s\n' '{"custom_id":"a","method":"POST","url":"/v1/completions","body":{"prompt":"f>w;f>","max_tokens":2,"temperature":0.5,"loops":{"mode":"exact","exit_threshold":0.5}}}' >"$corpus/openai.jsonl" ;;
    fuzz_body)
        printf '%s' '{"prompt":["hi","there"],"n":2,"stream":true,"stream_options":{"include_usage":true},"stop":["x"],"logit_bias":{"5":-1},"loops":{"mode":"exact","max":3,"exit_threshold":0.5,"return_exit_loops":true}}' >"$corpus/text.json"
        printf '%s' '{"prompt":[[1,2,3],[4]],"echo":true,"logprobs":3,"max_tokens":0,"seed":7,"temperature":0.5,"stop_token_ids":[9]}' >"$corpus/echo.json"
        printf '%s' '{"model":"m","messages":[{"role":"developer","content":"be brief"},{"role":"user","content":[{"type":"text","text":"hi"}]}],"max_completion_tokens":9,"logprobs":true,"top_logprobs":2,"tools":[],"response_format":{"type":"text"}}' >"$corpus/chat.json" ;;
    fuzz_trace)
        printf '%s\n' '{"traceEvents":[' '{"ph":"X","pid":1,"tid":2,"ts":0.5,"dur":9,"cat":"batch","name":"batch","args":{"rows":1,"by_loop":[1]}},' \
            '{"ph":"b","pid":1,"tid":2,"ts":1,"cat":"frame","name":"loop 1","id":"1.1.0","args":{"seq":1,"loop":1,"pos":3,"rows":1,"live":1,"from":0,"hop_ns":7,"at_ns":500,"ns":9000}},' \
            '{"ph":"X","pid":1,"tid":4,"ts":2,"dur":9,"cat":"idle","name":"starved"},' \
            '{"ph":"b","pid":0,"tid":1,"ts":0,"cat":"blocked","name":"blocked: kv","id":"0.20.0","args":{"ns":5000}},' \
            '{"ph":"i","pid":0,"tid":2,"ts":9.7,"cat":"token","name":"token","s":"t","args":{"seq":1,"pos":4,"loop":1,"from":1,"token":-3,"cdf":0.5}}' \
            '],"otherData":{"program":"carousel","version":"1","model":"m","loops":4,"ring_size":1,"begin_ns":5,"ranks":[{"host":"a","records":2,"lost":0,"clock_error_ns":0},{"host":"b","records":3,"lost":1,"clock_error_ns":9}]}}' >"$corpus/small.json" ;;
    fuzz_chat) printf '\1\32<|im_end|>\n<|im_start|>sys\2\5hello\0\0' >"$corpus/escape" ;;
    fuzz_safetensors) # the header of a real file with the first bytes of its data
        head -c 8192 $demo/model.safetensors >"$corpus/demo.safetensors"
        printf '\x50\0\0\0\0\0\0\0{"a":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]}}                        12345678' \
            >"$corpus/small.safetensors" ;;
    esac
}

run_one() { # target
    local name corpus log
    name=$(basename "$1"); corpus=$build/corpus/$name; log=$build/$name.log
    mkdir -p "$corpus" "$build/findings"
    seed "$name" "$corpus"
    if timeout $((seconds + 60)) "$1" -max_total_time="$seconds" -rss_limit_mb=2048 -timeout=10 -print_final_stats=1 \
        -artifact_prefix="$build/findings/$name-" "$corpus" >"$log" 2>&1; then
        echo "  $name: $(sed -n 's/^stat::number_of_executed_units: *//p' "$log" | tail -n 1) runs"
    else
        echo "  FAILED $name; log $log"
        tail -n 40 "$log"
        return 1
    fi
}

targets=("$build"/tests/fuzz_*)
passed=0; failed=0
running=(); n_cores=$(nproc)
reap() { # waits for the oldest
    if wait "${running[0]}"; then passed=$((passed + 1)); else failed=$((failed + 1)); fi
    running=("${running[@]:1}")
}
for target in "${targets[@]}"; do
    case $target in *.d | *.o) continue ;; esac
    [ -x "$target" ] || continue
    [ ${#running[@]} -lt "$n_cores" ] || reap
    run_one "$target" &
    running+=($!)
done
while [ ${#running[@]} -gt 0 ]; do reap; done
[ $((passed + failed)) -gt 0 ] || { echo "fuzz: no targets in $build/tests; make fuzz-bins builds them"; failed=1; }
echo "fuzz: $passed passed, $failed failed"
[ "$failed" -eq 0 ]
