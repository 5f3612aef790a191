#!/usr/bin/env python3
"""Engine benchmarks that need more than one run: medians and ratios of runs taken in turn.

    bench_engine.py batching   greedy, tick, knee and round over 4 workers with a forced exit mix
    bench_engine.py overhead   what distribution costs: W = 1 over MPI beside W = 1 in one process; idle CPU
    bench_engine.py trace      what recording costs: --trace-buffer 0 beside the default, in turn, 1 and 2 workers
    bench_engine.py large      an Ouro-1.4B-shaped bf16 checkpoint: start, decode against bandwidth, shared pages
"""
import argparse
import glob
import json
import os
import re
import statistics
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PROGRAM = os.environ.get("CAROUSEL", os.path.join(ROOT, "build", "carousel"))
LARGE = os.path.join(ROOT, "build", "models", "ouro-1.4b-random")


def bench(*arguments):
    command = [PROGRAM, "bench", "engine", *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
    return json.loads(done.stdout)


def in_turn(runs, variants):
    """Runs every variant once per round, so that a slow minute hits all of them; returns the results by name."""
    results = {name: [] for name in variants}
    for _ in range(runs):
        for name, arguments in variants.items():
            results[name].append(bench(*arguments))
    return results


def median(results, key):
    return statistics.median(key(r) for r in results)


def batching(runs):
    model = os.path.join(ROOT, "build", "models", "medium-f32")
    make_checkpoint(model, ["--layers", "4", "--d-model", "512", "--ffn", "1408", "--heads", "8", "--kv-heads", "8",
                            "--head-dim", "64", "--vocab", "4096", "--loops", "4", "--max-positions", "512",
                            "--dtype", "bf16"])
    common = [model, "--workers", "4", "--requests", "128", "--warmup", "32", "--concurrency", "64", "-p", "16",
              "-o", "24", "--force-exits", "0.1,0.3,0.3,0.3"]
    results = in_turn(runs, {name: common + ["--batching", name] for name in ("greedy", "tick", "knee", "round")})
    print(f"4 workers over MPI, 64 sequences in flight, exit mass 0.1/0.3/0.3/0.3, medians of {runs} runs in turn")
    print("  batching   tokens/s   rows/batch   busy   waiting   starved   TPOT p50 ms   p99 ms   tokens_hash")
    for name, rs in results.items():
        share = lambda what: median(rs, lambda r: statistics.mean(w[what] for w in r["workers"]))
        hashes = sorted({r["tokens_hash"] for r in rs})
        print(f"  {name:9s} {median(rs, lambda r: r['tokens_per_s']):9.1f} {median(rs, lambda r: r['rows_per_batch']):12.2f}"
              f" {share('busy'):6.2f} {share('idle_waiting'):9.2f} {share('idle_starved'):9.2f}"
              f" {median(rs, lambda r: r['tpot_ms']['p50']):13.2f} {median(rs, lambda r: r['tpot_ms']['p99']):8.2f}   {','.join(hashes)}")


def cpu_ticks(pids):
    total = 0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/stat", encoding="ascii") as stat:
                fields = stat.read().rsplit(")", 1)[1].split()
                total += int(fields[11]) + int(fields[12])
        except OSError:
            pass
    return total


def ranks():
    """Processes that run this very program."""
    program, found = os.path.realpath(PROGRAM), []
    for entry in glob.glob("/proc/[0-9]*"):
        try:
            if os.readlink(os.path.join(entry, "exe")) == program:
                found.append(int(os.path.basename(entry)))
        except OSError:
            pass
    return found


def idle_cpu(workers, seconds):
    """CPU share of one core that a waiting cluster of workers + 1 ranks uses: generate waits for its prompt."""
    with subprocess.Popen([PROGRAM, "generate", "-", "--workers", str(workers), "-n", "1"], stdin=subprocess.PIPE,
                          stdout=subprocess.DEVNULL) as process:
        time.sleep(3)
        pids = ranks()
        before = cpu_ticks(pids)
        time.sleep(seconds)
        used = (cpu_ticks(pids) - before) / os.sysconf("SC_CLK_TCK")
        process.communicate(b"f>w w>f;f>")
    return used / seconds, len(pids)


def overhead(runs):
    common = ["--requests", "48", "--warmup", "8", "--concurrency", "16", "--force-exits", "0.1,0.3,0.3,0.3",
              "--threads", "1"]
    results = in_turn(runs, {"inproc": common + ["--transport", "inproc"],
                             "mpi": common + ["--transport", "mpi", "--workers", "1"]})
    ratios = [m["tokens_per_s"] / i["tokens_per_s"] for m, i in zip(results["mpi"], results["inproc"])]
    print(f"W = 1, demo model, 16 in flight, {runs} pairs: inproc {median(results['inproc'], lambda r: r['tokens_per_s']):.0f}"
          f" tokens/s, mpi {median(results['mpi'], lambda r: r['tokens_per_s']):.0f}; ratio mpi/inproc"
          f" median {statistics.median(ratios):.3f} (min {min(ratios):.3f}, max {max(ratios):.3f})")
    share, n = idle_cpu(4, 10)
    print(f"idle cluster of {n} processes (mpirun and 5 ranks): {100 * share:.2f} % of one core over 10 s")


def trace(runs):
    """On the demo model, whose batches are so short that there is more to record a second than on any other."""
    for workers, transport in ((1, "inproc"), (2, "mpi")):
        common = ["--requests", "768", "--warmup", "64", "--concurrency", "64", "--force-exits", "0.1,0.3,0.3,0.3",
                  "--threads", "1", "--transport", transport, "--workers", str(workers)]
        off, on = {"off": common + ["--trace-buffer", "0"]}, {"on": common}
        pairs = []
        for i in range(runs):  # one first, then the other: a machine that gets slower or faster favours neither
            first, second = (off, on) if i % 2 == 0 else (on, off)
            pairs.append({name: rs[0] for name, rs in in_turn(1, {**first, **second}).items()})
        if any(p["off"]["trace"]["records"] for p in pairs):
            sys.exit("--trace-buffer 0 has recorded something")
        # In one process its CPU time is all ranks': that does not count what other processes take.
        rates = [("tokens/s", lambda r: r["tokens_per_s"])]
        if transport == "inproc":
            rates.append(("tokens per CPU second", lambda r: r["tokens"] / r["cpu_seconds"]))
        middle = lambda key: statistics.median(p["on"]["trace"][key] for p in pairs)
        print(f"W = {workers} ({transport}), demo model, 64 in flight, {runs} pairs: {middle('records'):.0f} records,"
              f" at most {middle('record_ns'):.0f} ns each: {100 * middle('share'):.3f} % of the workers' time")
        for name, rate in rates:
            ratios = sorted(rate(p["on"]) / rate(p["off"]) for p in pairs)
            print(f"  {name} with the trace / without: median {statistics.median(ratios):.4f}"
                  f" (min {ratios[0]:.4f}, max {ratios[-1]:.4f})")


def make_checkpoint(path, shape):
    if not os.path.exists(os.path.join(path, "config.json")):
        os.makedirs(path, exist_ok=True)
        subprocess.run(["/usr/bin/python3", os.path.join(ROOT, "scripts", "make_checkpoint.py"), *shape, path],
                       check=True, stdout=subprocess.DEVNULL)


def pss_bytes(pid):
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as smaps:
        return 1024 * int(re.search(r"^Pss:\s+(\d+)", smaps.read(), re.M).group(1))


def large(runs):
    make_checkpoint(LARGE, ["--shape", "ouro-1.4b", "--dtype", "bf16"])
    size = sum(os.path.getsize(f) for f in glob.glob(os.path.join(LARGE, "*.safetensors")))
    began = time.monotonic()
    subprocess.run([PROGRAM, "info", LARGE], check=True, stdout=subprocess.DEVNULL)
    print(f"Ouro-1.4B shape, bf16, {size / 1e9:.3f} GB: opened and checked in {time.monotonic() - began:.3f} s")
    results = [bench(LARGE, "--requests", "1", "--concurrency", "1", "-p", "16", "-o", "12", "--bound",
                     "--kv-memory", "1G") for _ in range(runs)]
    for r in results:
        print(f"  one stream, all loops: {1e3 / r['tpot_ms']['p50']:.3f} tokens/s; read bandwidth {r['read_gbytes_s']:.1f} GB/s"
              f" bounds it at {r['bound_tokens_per_s']:.3f}; ratio {r['bound_ratio']:.3f}")
    print(f"  ratio median of {runs}: {median(results, lambda r: r['bound_ratio']):.3f}")
    kv = 256 << 20
    with subprocess.Popen([PROGRAM, "generate", LARGE, "--ids", "1,2,3,4", "-n", "12", "--workers", "4",
                           "--kv-memory", "256M", "--ignore-eos"], stdout=subprocess.DEVNULL) as process:
        peak = 0
        while process.poll() is None:
            total = 0
            for pid in ranks():
                try:
                    total += pss_bytes(pid)
                except (OSError, AttributeError):
                    pass
            peak = max(peak, total)
            time.sleep(0.5)
    print(f"  4 workers and a coordinator on one host: sum of PSS {peak / 1e9:.3f} GB = {peak / size:.3f} x file,"
          f" KV pools of 4 x {kv / 1e9:.2f} GB in it as far as they were touched")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="+", choices=["batching", "overhead", "trace", "large"])
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    for what in arguments.what:
        globals()[what](arguments.runs if what != "large" else min(arguments.runs, 3))


if __name__ == "__main__":
    main()
