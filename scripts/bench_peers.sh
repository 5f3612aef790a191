#!/bin/sh
# Puts OpenBLAS and oneDNN (Debian packages) beside `carousel bench kernels` in one run.
# usage: scripts/bench_peers.sh [--rows 1,2,4,...] [--threads N]      (default: one thread, then all cores)
set -eu
cd "$(dirname "$0")/.."
rows=1,2,4,8,16,32,64,256
threads="1 $(nproc)"
while [ $# -gt 0 ]; do
    case $1 in
    --rows) rows=$2; shift 2 ;;
    --threads) threads=$2; shift 2 ;;
    *) sed -n '2,3s/^# //p' "$0" >&2; exit 2 ;;
    esac
done
missing=
[ -e /usr/include/dnnl.hpp ] || missing="$missing libdnnl-dev"
printf '#include <cblas.h>\nint main(void) { openblas_set_num_threads(1); return 0; }\n' |
    cc -x c -fsyntax-only - 2>/dev/null || missing="$missing libopenblas-dev"
command -v c++ >/dev/null || missing="$missing g++"
if [ -n "$missing" ]; then
    echo "bench_peers: installing$missing" >&2
    sudo=; [ "$(id -u)" -eq 0 ] || sudo=sudo
    # shellcheck disable=SC2086
    $sudo apt-get install -y --no-install-recommends $missing >&2 || {
        echo "bench_peers: please install:$missing" >&2; exit 1; }
fi
[ -x build/carousel ] || make build/carousel >&2
out=build/bench_peers
mkdir -p "$out"
c++ -O2 -std=c++17 -o "$out/bench_peers" scripts/bench_peers.cpp -lopenblas -ldnnl
files=
# shellcheck disable=SC2086 # numbers
for t in $(printf '%s\n' $threads | sort -nu); do
    echo "bench_peers: $t thread(s)" >&2
    build/carousel bench kernels --json --threads "$t" --rows "$rows" >"$out/carousel_$t.json"
    OMP_NUM_THREADS=$t OPENBLAS_NUM_THREADS=$t "$out/bench_peers" "$t" "$rows" >"$out/peers_$t.json"
    files="$files $out/carousel_$t.json $out/peers_$t.json"
done
# shellcheck disable=SC2086
python3 - $files <<'PY'
import json, sys

entries = [e for f in sys.argv[1:] for e in json.load(open(f))]
ours = [e for e in entries if "isa" in e and not e["shape"].startswith("attention")]
peers = {(e["threads"], e["shape"], e["rows"], e["library"]): e for e in entries if "library" in e}
names = sorted({e["library"] for e in entries if "library" in e})
print("GFLOP/s, median of the repeats; carousel: bf16 weights, fp32 activations")
print(f"{'threads':>7} {'shape':<8} {'rows':>4} {'carousel':>9} {'/peak':>6} {'/read':>6}"
      + "".join(f"{n:>18}" for n in names) + f"{'ahead of f32 peers':>20}")
for e in ours:
    key = (e["threads"], e["shape"], e["rows"])
    values = [peers.get(key + (n,)) for n in names]
    # bf16 activations are another, less exact product: shown, not compared.
    rivals = [v["gflops"] for n, v in zip(names, values) if v and n != "onednn_bf16"]
    ahead = f"{e['gflops'] / max(rivals):.2f}x" if rivals else "-"
    print(f"{e['threads']:>7} {e['shape']:<8} {e['rows']:>4} {e['gflops']:>9.1f} {e['of_peak']:>6.2f}"
          f" {e['of_read']:>6.2f}"
          + "".join(f"{v['gflops']:>18.1f}" if v else f"{'-':>18}" for v in values) + f"{ahead:>20}")
PY
