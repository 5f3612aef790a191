#!/bin/sh
# The demo: a trained looped model through a coordinator and four workers over MPI, on held-out prompts.
set -eu
cd "$(dirname "$0")/.."
program=build/carousel
workers=${WORKERS:-4}
threshold=${THRESHOLD:-0.5}
out=build/demo
rm -rf "$out"
mkdir -p "$out"
if [ -t 1 ]; then bold=$(printf '\033[1m'); plain=$(printf '\033[0m'); else bold=; plain=; fi

echo "${bold}A looped language model on a ring of $workers workers${plain}"
"$program" info | sed 's/^/  /'
echo
echo "${bold}200 held-out prompts, a token gets off when its gate says so (q = $threshold)${plain}"
"$program" batch -i model/demo/prompts.jsonl -o "$out/exact.jsonl" --workers "$workers" \
    --max-tokens 1 --exit exact --exit-threshold "$threshold" --stats
echo
echo "${bold}The same at full depth${plain}"
"$program" batch -i model/demo/prompts.jsonl -o "$out/full.jsonl" --workers "$workers" \
    --max-tokens 1 --exit full
echo
/usr/bin/python3 scripts/demo_report.py model/demo/prompts.jsonl "$out/exact.jsonl" "$out/full.jsonl"
for prompt in 'f>w c>x x>d w>q d>r q>c r>s s>f;c>' 'f>w c>x x>d w>q d>r q>c r>s s>f;c>>>' \
              'g=0 v=g+8 r=2 p=r-7 y=p*7 w=y+4;w?'; do
    echo
    echo "${bold}carousel lens '$prompt'${plain}"
    "$program" lens "$prompt" -q "$threshold" --last 4
done
