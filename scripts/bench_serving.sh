#!/usr/bin/env bash
# Runs an independent load generator, GuideLLM, against a running server and keeps its JSON.
#
#   scripts/bench_serving.sh URL [MODEL_DIR] [OUT_DIR]      e.g. http://127.0.0.1:8000 model/demo build/bench_serving
#
#   STREAMS=1,8,32   how many requests at once, one benchmark each       SECONDS_EACH=20
#   PROMPT=32 OUTPUT=64   tokens of the prompt and the answer            REQUEST=/v1/completions | /v1/chat/completions
#   API_KEY=...      of the server                                       TOOL=guidellm | vllm
#
# MODEL_DIR is the directory the server serves: its tokenizer.json counts the tokens. The tools live in virtual
# environments below build/bench_serving (GuideLLM brings PyTorch: 6 GB); where GuideLLM cannot be installed, `vllm bench
# serve` is tried. Without PyPI the script says so and ends with code 3.
set -u
cd "$(dirname "$0")/.." || exit 1
usage() { sed -n '2,13s/^# \{0,1\}//p' "$0"; exit 2; }
case ${1:-} in ''|-h|--help) usage ;; esac
url=${1%/}; model=${2:-model/demo}; out=${3:-build/bench_serving}
streams=${STREAMS:-1,8,32}; seconds=${SECONDS_EACH:-20}; prompt=${PROMPT:-32}; output=${OUTPUT:-64}
request=${REQUEST:-/v1/completions}; tool=${TOOL:-guidellm}; key=${API_KEY:-}
place=build/bench_serving
mkdir -p "$place" "$out"
[ -f "$model/tokenizer.json" ] || { echo "bench_serving: $model has no tokenizer.json: give the directory that is served" >&2; exit 2; }
auth=(); [ -z "$key" ] || auth=(-H "Authorization: Bearer $key")
name=$(curl -fsS "${auth[@]}" "$url/v1/models" | /usr/bin/python3 -c 'import json, sys; print(json.load(sys.stdin)["data"][0]["id"])') ||
    { echo "bench_serving: no server answers $url/v1/models" >&2; exit 1; }

install_tool() { # name of the package, program
    local venv=$place/venv-$1
    [ -x "$venv/bin/$2" ] && "$venv/bin/$2" --version >/dev/null 2>&1 && return 0
    echo "bench_serving: installing $1 into $venv"
    python3 -m venv "$venv" >"$place/install-$1.log" 2>&1 || return 1
    "$venv/bin/pip" install --quiet --disable-pip-version-check --retries 1 "$1" >>"$place/install-$1.log" 2>&1
}

if [ "$tool" = guidellm ] && ! install_tool guidellm guidellm; then
    echo "bench_serving: guidellm cannot be installed ($(tail -n 1 "$place/install-guidellm.log" | cut -c 1-160)); trying vllm"
    tool=vllm
fi
if [ "$tool" = vllm ] && ! install_tool vllm vllm; then
    echo "bench_serving: skipped: neither guidellm nor vllm can be installed, is PyPI reachable? ($place/install-vllm.log)"
    exit 3
fi

stamp=$(date -u +%Y%m%dT%H%M%SZ)
# Nothing is fetched from a hub: the tokenizer is a directory.
export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1
if [ "$tool" = guidellm ]; then
    json=$out/guidellm-$stamp.json
    backend="kind=openai_http,target=$url,model=$name,request_format=$request,http2=false"
    [ -z "$key" ] || backend="$backend,api_key=$key"
    "$place/venv-guidellm/bin/guidellm" run --disable-console-interactive \
        --backend "$backend" --tokenizer "kind=huggingface_auto,model=$model" \
        --data "kind=synthetic_text,prompt_tokens=$prompt,output_tokens=$output" \
        --profile "{\"kind\": \"concurrent\", \"streams\": [$streams]}" --constraint "kind=max_duration,seconds=$seconds" \
        --output "kind=json,path=$json" --output kind=console || { echo "bench_serving: guidellm failed" >&2; exit 1; }
    echo "bench_serving: $json"
else
    for n in ${streams//,/ }; do
        json=vllm-$stamp-$n.json
        OPENAI_API_KEY=$key "$place/venv-vllm/bin/vllm" bench serve --base-url "$url" --endpoint "$request" \
            --backend "$([ "$request" = /v1/completions ] && echo openai || echo openai-chat)" --model "$name" \
            --tokenizer "$model" --dataset-name random --random-input-len "$prompt" --random-output-len "$output" \
            --ignore-eos --max-concurrency "$n" --num-prompts $((n * 16)) --save-result --result-dir "$out" \
            --result-filename "$json" || { echo "bench_serving: vllm bench serve failed" >&2; exit 1; }
        echo "bench_serving: $out/$json"
    done
fi
