#!/usr/bin/env python3
"""What recording costs and that it changes nothing: the same tokens with it and without, under 1 % of the workers' time.

The demo model is the hard case: its batches are so short that there is more to record a second than with any other.
"""
from e2e_lib import Checks, run, run_json, run_ok

WORKLOAD = ("bench", "engine", "--requests", 96, "--warmup", 16, "--concurrency", 32, "--mixed", "--workers", 2, "--transport",
            "mpi")


def a_record_is_cheap(c):
    figures = run_json("bench", "trace", "--trace-buffer", "1M")
    c.equal(figures["records"], (1 << 20) // 64, "a buffer of 1 MiB")
    for name in ("hot_ns", "cold_ns", "message_ns", "copy_ns", "copy_window_ns"):
        c.check(0 < figures[name] < 5000, f"{name}: {figures[name]}")
    c.check(figures["hot_ns"] < figures["message_ns"], f"two looks at the clock cost something: {figures}")
    c.check("a record of rows, cold" in run_ok("bench", "trace").out, "the figures as text")
    for arguments, word in ((("--trace-buffer", "0"), "records nothing"), (("model",), "'model'")):
        refused = run("bench", "trace", *arguments)
        c.check(refused.code == 2 and word in refused.err, f"{arguments}: {refused.err!r}")


def recording_costs_little_and_decides_nothing(c):
    without = run_json(*WORKLOAD, "--trace-buffer", 0)
    c.equal(without["trace"], {"records": 0, "record_ns": 0.0, "share": 0.0}, "nothing recorded")
    shares = []
    for _ in range(3):  # the least of three: what else runs on the machine only adds
        report = run_json(*WORKLOAD)
        c.equal(report["tokens_hash"], without["tokens_hash"], "tokens with and without recording")
        n_batches = sum(w["batches"] for w in report["workers"])
        c.check(report["trace"]["records"] >= 3 * n_batches, f"batch, rows and pool each time: {report['trace']}")
        shares.append(report["trace"]["share"])
    c.note(f"{report['trace']['records']} records: at most {100 * min(shares):.3f} % of the workers' time")
    c.check(0 < min(shares) < 0.01, f"shares of the workers' time: {shares}")
    c.check("of the workers' time" in run_ok(*WORKLOAD).out, "the text says so, too")


def main():
    c = Checks("e2e_recording")
    c.attempt(a_record_is_cheap)
    c.attempt(recording_costs_little_and_decides_nothing)
    c.close()


if __name__ == "__main__":
    main()
