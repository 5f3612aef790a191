#!/usr/bin/python3
"""500 concurrent requests over 4 workers and MPI equal the same requests run alone on one worker; a tenth is
cancelled at a random token, which gives a prefix and gives all memory back.

Lengths, thresholds, temperatures, penalties and seeds differ from request to request (`bench engine --mixed`).
"""
import json

from e2e_lib import WORK, Checks, Failure, make_checkpoint, run_json

N = 500
WORKLOAD = ["--mixed", "--requests", N, "--prompt-tokens", "1-60", "--output-tokens", "1-30",
            "--workload-seed", 99]


def outputs(path):
    found = {}
    for line in path.read_text().splitlines():
        o = json.loads(line)
        if o["request"] in found:
            raise Failure(f"{path}: request {o['request']} ended twice")
        found[o["request"]] = o
    return found


def compare(c, name, directory, extra):
    alone_path, path = WORK / "alone.jsonl", WORK / "crowd.jsonl"
    run_json("bench", "engine", directory, *WORKLOAD, "--concurrency", 1, "--workers", 1, "--transport",
             "inproc", "--outputs", alone_path, timeout=180)
    report = run_json("bench", "engine", directory, *WORKLOAD, "--concurrency", N, "--workers", 4,
                      "--transport", "mpi", "--max-sequences", 512, "--cancel-fraction", 0.1, "--outputs", path,
                      *extra, timeout=180)
    alone, crowd = outputs(alone_path), outputs(path)
    c.equal(sorted(alone), list(range(N)), f"{name}: requests that ended, alone")
    c.equal(sorted(crowd), list(range(N)), f"{name}: requests that ended, all at once")
    n_cancelled = n_midway = 0
    for i in range(N):
        a, b = alone[i], crowd[i]
        c.equal(a["finish_reason"], "length", f"{name}: request {i} alone")
        if b["finish_reason"] == "cancelled":
            n_cancelled += 1
            n = len(b["tokens"])
            n_midway += 0 < n < len(a["tokens"])
            c.equal((b["tokens"], b["exit_loops"]), (a["tokens"][:n], a["exit_loops"][:n]),
                    f"{name}: cancelled request {i} is a prefix")
        else:
            c.equal(b, a, f"{name}: request {i}")
    c.equal(report["cancelled"], n_cancelled, f"{name}: cancelled, in the report")
    c.check(0.05 * N <= n_cancelled <= 0.15 * N, f"{name}: {n_cancelled} of {N} were cancelled, asked for a tenth")
    c.check(n_midway >= 10, f"{name}: only {n_midway} were cancelled after their first and before their last token")
    for i, worker in enumerate(report["workers"]):
        c.equal((worker["kv_blocks_used"], worker["parked_rows"]), (0, 0), f"{name}: KV blocks and parked rows "
                f"still in use on worker {i}")
        c.check(worker["rows"] > 0, f"{name}: worker {i} has computed nothing")
    c.check(sum(w["parked_total"] for w in report["workers"]) > 0, f"{name}: nothing was ever parked")
    c.note(f"{name}: {n_cancelled} cancelled ({n_midway} midway), {report['rows_per_batch']:.1f} rows a batch, "
           f"exits {report['exits']}, {report['seconds']:.1f} s")


def main():
    c = Checks("e2e_stress")
    directory = make_checkpoint("stress", "--seed", 41, "--gate-scale", 2.5, "--gate-bias", -0.3)
    c.attempt(compare, "eager", directory, [])
    c.attempt(compare, "lazy", directory, ["--prefill", "lazy", "--batching", "greedy", "--prefill-chunk", 7])
    c.close()


if __name__ == "__main__":
    main()
