#!/usr/bin/env bash
# Makes the bundled model from nothing, on one core: train, fit the gate, ask fresh prompts.
#
#   scripts/train_demo.sh [SEED...]            train the seeds (default: the one that is bundled), one after another
#   scripts/train_demo.sh --install SEED       put that seed's model, log and plots in place of model/demo/
#
# Each seed gets build/train_demo/seed-N; one that is finished is not trained again. The closing table has a line a seed.
set -eu
cd "$(dirname "$0")/.."
program=build/carousel
bundled=4
root=build/train_demo
tasks=hop,chain
[ -x "$program" ] || { echo "train_demo: there is no $program: run make first" >&2; exit 1; }

install_seed() {
    local run=$root/seed-$1
    [ -f "$run/eval.json" ] || { echo "train_demo: seed $1 is not trained: scripts/train_demo.sh $1" >&2; exit 1; }
    for file in config.json model.safetensors tokenizer.json tokenizer_config.json; do
        cp "$run/gate/model/$file" "model/demo/$file"
    done
    # All events, and every tenth report.
    awk 'NR == 1 || !/"type":"report"/ || ++n % 10 == 0' "$run/log.jsonl" >model/demo/training.jsonl
    cp "$run/eval.json" model/demo/eval.json
    # Problems for the demo: of contexts that no training run sees.
    "$program" eval --task $tasks -n 200 --seed 2026 --only-save --save model/demo/prompts.jsonl
    scripts/setup.sh plots
    /usr/bin/python3 scripts/plot_training.py model/demo/training.jsonl -o docs/demo_training.png
    /usr/bin/python3 scripts/plot_staircase.py "$run/eval.json" -o docs/demo_staircase.png
}

# A step's processor time, user and system, of all its threads.
timed() { # name, command...
    local name=$1 TIMEFORMAT='%U %S'
    shift
    { time "$@" >"$run/$name.out" 2>"$run/$name.err"; } 2>"$run/$name.time" || {
        tail -n 3 "$run/$name.err" >&2
        return 1
    }
}

train_seed() {
    local seed=$1
    run=$root/seed-$seed
    [ ! -f "$run/eval.json" ] || return 0
    mkdir -p "$run"
    echo "seed $seed: training"
    rm -rf "$run/train" "$run/gate"
    timed train "$program" train train/recipes/demo.json --out "$run/train" --seed "$seed" --threads 1
    # The gate learns on contexts of the training split and its table is of the validation split.
    timed prompts "$program" eval --task $tasks -n 6400 --seed "$seed" --split train --only-save --save "$run/gate.jsonl"
    "$program" eval --task $tasks -n 1600 --seed "$seed" --split validation --only-save --save "$run/validation.jsonl"
    timed gate "$program" gate "$run/train/model" --data "$run/gate.jsonl" --validation "$run/validation.jsonl" \
        --out "$run/gate" --seed "$seed" --threads 1 --quiet
    cp "$run/train/log.jsonl" "$run/log.jsonl"
    timed eval "$program" eval "$run/gate/model" --task $tasks -n 10000 --seed "$((seed + 1000))" --threads 1 \
        -q 0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9,1 --json
    cp "$run/eval.out" "$run/eval.json"
}

if [ "${1:-}" = --install ]; then
    install_seed "${2:?train_demo: --install needs a seed}"
    exit 0
fi
[ $# -gt 0 ] || set -- "$bundled"
for seed in "$@"; do train_seed "$seed"; done
runs=()
for seed in "$@"; do runs+=("$root/seed-$seed"); done
/usr/bin/python3 scripts/train_demo_report.py "${runs[@]}"
