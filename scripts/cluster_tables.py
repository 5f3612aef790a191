#!/usr/bin/env python3
"""How a cluster's rate grows, by the simulator and by real ranks that wait instead of computing, side by side.

    cluster_tables.py rules     greedy, tick, knee, round in three regimes of cost: share of the ideal rate
    cluster_tables.py workers   1 to 32 ranks over MPI at full depth and with early exits
    cluster_tables.py prompt    the first token of one prompt of 8192 tokens, one worker and four
    cluster_tables.py balance   how even the workers' load is where nearly all tokens exit at one loop
    cluster_tables.py large     up to 1024 workers, simulated, and why the rate falls

The ideal is W times one worker's rate at the same number of sequences a worker, by the same means. Prints Markdown.
Real ranks use costs of up to five times those of the file (and so does the simulator beside them), because up to 33
processes share few cores here; shares do not change by that but for what messages cost.
"""
import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROGRAM = os.environ.get("CAROUSEL", str(ROOT / "build" / "carousel"))
MODEL = str(ROOT / "model" / "demo")
FULL, MASS = [], ["--force-exits", "0.1,0.3,0.3,0.3"]
RULES = ("greedy", "tick", "knee", "round")
# By how much costs are slowed where real ranks share few cores; compute-bound batches are long as they are.
REGIMES = {"weight_bound": 5.0, "between": 5.0, "compute_bound": 1.0}


def program(*arguments):
    command = [PROGRAM, *map(str, arguments), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
    return json.loads(done.stdout)


def simulate(*options):
    return program("simulate", MODEL, *options)


def timed(*options):
    return program("bench", "engine", MODEL, "--backend", "timed", "--transport", "mpi", *options)


def rate(found):
    """Where all that may be are in flight; the whole run's where there is no such time."""
    return found.get("steady_tokens_per_s", found["tokens_per_s"])


def scaled_cost(directory, regime, scale=None, **changes):
    """The regime's file, slower, with the links and drivers of one small machine."""
    scale = scale or REGIMES[regime]
    cost = json.loads((ROOT / "cluster" / "costs" / f"{regime}.json").read_text())
    cost["block_us"] = [[rows, us * scale] for rows, us in cost["block_us"]]
    cost.update(batch_overhead_us=100, worker_message_us=20, worker_row_us=0.5, coordinator_request_us=20,
                coordinator_token_us=3, links={"local": {"latency_us": 100, "gb_per_s": 2},
                                               "remote": {"latency_us": 100, "gb_per_s": 2}})
    cost.update(changes)
    path = pathlib.Path(directory) / f"{regime}-{scale}-{len(os.listdir(directory))}.json"
    path.write_text(json.dumps(cost))
    return path


def load(workers, sequences, output, rounds=4):
    """Closed loop with so many sequences a worker in flight, each replaced `rounds` times."""
    total = workers * sequences
    return ["--workers", workers, "-c", total, "-r", rounds * total, "-p", 8, "-o", f"{output * 3 // 4}-{output * 5 // 4}",
            "--max-sequences", max(256, total)]


def median_of(runs, function):
    return statistics.median(function() for _ in range(runs))


def both(options, runs):
    """(simulated, median of real runs or None)."""
    return rate(simulate(*options)), median_of(runs, lambda: rate(timed(*options))) if runs else None


def share(value, base, workers):
    return "" if value is None or base is None else f"{value / (workers * base):.2f}"


def rules(a, directory):
    print("Share of the ideal rate, 4 and 8 workers, exit mass 0.1/0.3/0.3/0.3 and all loops, jitter 5 %: simulated | real ranks\n")
    print("| cost | exits | workers x sequences each | " + " | ".join(RULES) + " |\n| --- | --- | --- |" + " --- |" * len(RULES))
    for regime in REGIMES:
        cost = scaled_cost(directory, regime, a.scale)
        for exits, name in ((MASS, "mass"), (FULL, "all loops")):
            for workers, sequences in ((4, 16), (4, 64), (8, 32)):
                base = both([*load(1, sequences, a.output), "--cost", cost, *exits], a.runs)
                cells = []
                for rule in RULES:
                    found = both([*load(workers, sequences, a.output), "--cost", cost, "--batching", rule, *exits], a.runs)
                    cells.append(" \\| ".join(filter(None, (share(f, b, workers) for f, b in zip(found, base)))))
                print(f"| {regime} | {name} | {workers} x {sequences} | " + " | ".join(cells) + " |", flush=True)


def workers_table(a, directory):
    cost = scaled_cost(directory, "weight_bound", a.scale, **({"jitter": a.jitter} if a.jitter is not None else {}))
    print(f"Weight-bound costs x {a.scale or REGIMES['weight_bound']:g}, {a.sequences} sequences a worker, rule {a.batching}: tokens/s and share of the ideal\n")
    print("| workers | all loops: simulated | real ranks | exits 0.1/0.3/0.3/0.3: simulated | real ranks |\n| --- | --- | --- | --- | --- |")
    bases = {}
    for workers in a.workers:
        cells = []
        for exits in (FULL, MASS):
            found = both([*load(workers, a.sequences, a.output), "--cost", cost, "--batching", a.batching, *exits], a.runs)
            base = bases.setdefault(bool(exits), found)
            for f, b in zip(found, base):
                cells.append("" if f is None else f"{f:.0f}, {share(f, b, workers)}")
        print(f"| {workers} | " + " | ".join(cells) + " |", flush=True)


def prompt(a, directory):
    cost = scaled_cost(directory, "weight_bound", a.scale, jitter=0.0)
    # The context of the bundled model is short, so the dimensions are a larger model's.
    model = pathlib.Path(directory) / "shape"
    subprocess.run([sys.executable, str(ROOT / "scripts" / "make_checkpoint.py"), str(model), "--layers", "1", "--d-model", "64",
                    "--ffn", "128", "--heads", "2", "--kv-heads", "2", "--head-dim", "32", "--vocab", "256", "--loops", "4",
                    "--max-positions", "16384"], check=True, stdout=subprocess.DEVNULL)
    print("The first token of one prompt of 8192 tokens, chunks of 256, ms\n\n| workers | simulated | of one worker | real ranks | of one worker |"
          "\n| --- | --- | --- | --- | --- |")
    base = None
    for workers in (1, 2, 4):
        options = [str(model), "--workers", workers, "-r", 1, "-c", 1, "-p", 8192, "-o", 1, "--prefill-chunk", 256,
                   "--max-batch-rows", 256, "--cost", cost]
        simulated = program("simulate", *options)["ttft_ms"]["p50"]
        real = median_of(max(1, a.runs), lambda: program("bench", "engine", "--backend", "timed", "--transport", "mpi",
                                                         *options)["ttft_ms"]["p50"])
        base = base or (simulated, real)
        print(f"| {workers} | {simulated:.1f} | {simulated / base[0]:.3f} | {real:.1f} | {real / base[1]:.3f} |", flush=True)


def balance(a, directory):
    cost = scaled_cost(directory, "weight_bound", a.scale)
    print("The busiest worker's rows over the mean, and its time\n\n| exits | workers | rows: simulated | real ranks | busy: simulated | real ranks |"
          "\n| --- | --- | --- | --- | --- | --- |")
    most = lambda values: max(values) / statistics.mean(values)
    for mass in ("0.7,0.1,0.1,0.1", "0.1,0.1,0.1,0.7"):
        for workers in (3, 4, 6, 8):
            options = [*load(workers, a.sequences, a.output), "--cost", cost, "--force-exits", mass]
            simulated, real = simulate(*options), timed(*options)
            print(f"| {mass.replace(',', '/')} | {workers} | {simulated['rows_most_over_mean']:.3f} | "
                  f"{most([w['rows'] for w in real['workers']]):.3f} | {simulated['busy_most_over_mean']:.3f} | "
                  f"{most([w['busy'] for w in real['workers']]):.3f} |", flush=True)


def large(a, _):
    print(f"Simulated, cost file h200_ib, {a.sequences} sequences a worker\n\n| workers | exits | tokens/s | efficiency | coordinator busy | why it falls |"
          "\n| --- | --- | --- | --- | --- | --- |")
    for exits, name in ((FULL, "all loops"), (MASS, "0.1/0.3/0.3/0.3")):
        for workers in (8, 64, 256, 1024):
            found = program("simulate", "--workers", workers, "--cost", "h200_ib", "-c", workers * a.sequences,
                            "-r", workers * a.sequences * 2, "-p", 128, "-o", "96-160", "--max-sequences", 1024, "--efficiency", *exits)
            s = found["scaling"]
            print(f"| {workers} | {name} | {rate(found):.0f} | {s['steady']:.3f} | {found['coordinator_busy']:.2f} | {s['why']} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=("rules", "workers", "prompt", "balance", "large"))
    parser.add_argument("--runs", type=int, default=1, help="real runs a point, the median counts; 0: simulate only")
    parser.add_argument("--scale", type=float, default=None, help="costs are those of the file times this (default 5; compute_bound 1)")
    parser.add_argument("--sequences", type=int, default=32, help="in flight a worker (default 32)")
    parser.add_argument("--output", type=int, default=32, help="tokens of an answer, a quarter more or less (default 32)")
    parser.add_argument("--workers", type=lambda text: [int(w) for w in text.split(",")], default=[1, 2, 3, 4, 6, 8, 16, 32])
    parser.add_argument("--batching", choices=RULES, default="round")
    parser.add_argument("--jitter", type=float, default=None, help="of batches, in the place of the file's")
    a = parser.parse_args()
    tables = {"rules": rules, "workers": workers_table, "prompt": prompt, "balance": balance, "large": large}
    with tempfile.TemporaryDirectory() as directory:
        tables[a.table](a, directory)


if __name__ == "__main__":
    main()
