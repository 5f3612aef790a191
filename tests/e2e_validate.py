#!/usr/bin/python3
"""Is the simulator right? The same requests through real ranks over MPI, whose batches wait as long as a cost file
says, and through the simulator with that file: tokens a second and time per token agree within 10 %.

The file's batches take 10 ms and more, so that a busy machine's own delays weigh little. Where a run is disturbed
all the same, it is repeated, twice at most; both sides of every run are printed.
"""
import json

from e2e_lib import ROOT, WORK, Checks, run_json

TOLERANCE = 0.10
ATTEMPTS = 3
EXITS = {"all loops": [], "exits 0.1/0.3/0.3/0.3": ["--force-exits", "0.1,0.3,0.3,0.3"]}


def cost_file():
    """Five times the weight-bound regime, with what drivers and links cost on a small machine with many ranks."""
    cost = json.loads((ROOT / "cluster" / "costs" / "weight_bound.json").read_text())
    cost.update(name="five times weight_bound", block_us=[[1, 10050], [1024, 61200]], batch_overhead_us=100,
                worker_message_us=20, worker_row_us=0.5, coordinator_request_us=20, coordinator_token_us=3,
                links={"local": {"latency_us": 100, "gb_per_s": 2}, "remote": {"latency_us": 100, "gb_per_s": 2}})
    path = WORK / "validate.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(cost))
    return path


def figures(found):
    return {"tokens/s": found["tokens_per_s"], "TPOT p50 ms": found["tpot_ms"]["p50"],
            "TPOT p99 ms": found["tpot_ms"]["p99"]}


def compare(c, cost, workers, name, exits):
    options = ["--workers", workers, "-r", 96 * workers, "-c", 32 * workers, "-p", 8, "-o", "24-40", "--cost", cost, *exits]
    told = run_json("simulate", ROOT / "model" / "demo", *options)
    simulated = figures(told)
    worst = None
    for _ in range(ATTEMPTS):
        found = run_json("bench", "engine", "--backend", "timed", "--transport", "mpi", *options)
        real = figures(found)
        c.equal(found["exits"], told["exits"], f"W = {workers}, {name}: exits, real and simulated")
        c.note(f"W = {workers}, {name}: " + "; ".join(
            f"{key} real {real[key]:.2f}, simulated {simulated[key]:.2f}, ratio {real[key] / simulated[key]:.3f}" for key in real))
        off = max(abs(real[key] / simulated[key] - 1) for key in real)
        worst = off if worst is None else min(worst, off)
        if worst <= TOLERANCE:
            break
    c.check(worst <= TOLERANCE, f"W = {workers}, {name}: off by {worst:.3f}, allowed is {TOLERANCE}")


def main():
    c = Checks("e2e_validate")
    cost = cost_file()
    for name, exits in EXITS.items():
        for workers in (1, 2, 4):
            c.attempt(compare, cost, workers, name, exits)
    c.close()


if __name__ == "__main__":
    main()
