#!/usr/bin/env python3
"""carousel simulate: a thousand workers in time, the same bytes for the same seed, every request once, the tokens of
the timed backend, a trace that the report reads, and one clear line for what cannot be."""
import json
import sys

from e2e_lib import DEMO, WORK, Checks, run, run_json, run_ok

MIX = "0.1,0.3,0.3,0.3"


def test_large(t):
    """Far below the minute it may take on a core of its own, but this one may be shared."""
    result = run_ok("simulate", "-w", 1024, "-c", 8192, "-r", 20000, "-p", "16-32", "-o", "16-32", "--force-exits", MIX,
                    "--json", timeout=240)
    t.note(f"1024 workers x 20,000 requests: {result.seconds:.1f} s; {result.err.strip()}")
    r = result.json()
    t.equal(r["requests"], 20000, "requests of the large run")
    t.equal(r["cancelled"], 0, "cancelled requests of the large run")
    t.check(20000 * 16 <= r["tokens"] <= 20000 * 32, f"tokens of the large run: {r['tokens']}")
    t.equal(sum(r["exits"]), r["tokens"], "exits add up to tokens")
    t.equal(r["kv_blocks_left"], 0, "KV blocks in use at the end")
    for share, expected in zip(r["exits"], (0.1, 0.3, 0.3, 0.3)):
        t.check(abs(share / r["tokens"] - expected) < 0.01, f"exits {r['exits']} of {r['tokens']}")
    most = run_json("simulate", "-w", 4096, "-c", 4096, "-r", 4096, "-p", 4, "-o", 2, timeout=120)
    t.equal(most["tokens"], 2 * 4096, "tokens of 4096 workers")


def test_same_bytes(t):
    options = ["-w", 12, "-c", 96, "-r", 300, "-p", "8-64", "-o", "4-32", "--force-exits", MIX, "--cancel-fraction",
               0.1, "--efficiency", "--per-worker"]
    for form in ([], ["--json"]):
        first, second = (run_ok("simulate", *options, *form) for _ in range(2))
        t.equal(first.out, second.out, f"the same seed, twice {form}")
        other = run_ok("simulate", *options, *form, "--seed", 9)
        t.check(first.out != other.out, "another seed gives another run")


def test_requests_once(t):
    path = WORK / "simulate_trace.json"
    WORK.mkdir(parents=True, exist_ok=True)
    result = run_json("simulate", "-w", 8, "-c", 64, "-r", 400, "-o", "4-24", "--force-exits", MIX, "--trace", path,
                      "--trace-buffer", "8M")
    report = run_json("trace", "report", path)
    t.equal(report["requests"], 400, "requests in the trace")
    t.equal(report["tokens"], result["tokens"], "tokens in the trace")
    ends = {}
    queued = {}
    for line in path.read_text().splitlines():
        line = line.rstrip(",")
        if not line.startswith('{"ph"') or '"pid":0' not in line:
            continue
        event = json.loads(line)
        arguments = event.get("args", {})
        if event.get("name") == "queue" and "request" in arguments and event["ph"] in "bX":
            queued[arguments["request"]] = queued.get(arguments["request"], 0) + 1
        if "tokens" in arguments and "request" in arguments and event["ph"] in "bX":
            ends[arguments["request"]] = ends.get(arguments["request"], 0) + 1
    t.equal(sorted(queued), list(range(1, 401)), "requests that were queued")
    t.equal(sorted(ends), list(range(1, 401)), "requests that ended")
    t.check(set(queued.values()) | set(ends.values()) == {1}, "each of them once")
    again = run_json("simulate", "-w", 8, "--replay", path)
    t.equal(again["tokens"], result["tokens"], "tokens of the replayed trace")
    t.equal(again["exits"], result["exits"], "exits of the replayed trace")
    shown = run_ok("simulate", "-w", 2, "-r", 8, "--report")
    t.check("loop 4" in shown.out and "tokens/s" in shown.out, "--report prints the trace's report")


def test_a_real_trace_is_replayed(t):
    """What a real model's gate decided, over again in virtual time."""
    path = WORK / "replay_real.json"
    real = run_json("bench", "engine", DEMO, "-w", 2, "-r", 24, "-c", 8, "-p", "4-12", "-o", "4-24", "-q", 0.6, "--trace", path)
    t.check(min(real["exits"][0], real["exits"][3]) > 0, f"the gate let tokens off early and late: {real['exits']}")
    for workers in (2, 3):
        again = run_json("simulate", DEMO, "-w", workers, "--cost", "between", "--replay", path)
        for field in ("tokens", "exits", "requests"):
            t.equal(again[field], real[field], f"{field} of a real trace, replayed over {workers} workers")


def test_tokens_of_the_timed_backend(t):
    """The same workload through the real engine, with the same costs: the same tokens, off at the same loops."""
    options = ["-r", 24, "-c", 8, "-p", "4-12", "-o", "4-12", "--force-exits", MIX, "--cost", "between",
               "--workload-seed", 3, "--seed", 7]
    real = run_json("bench", "engine", DEMO, *options, "--backend", "timed", timeout=60)
    simulated = run_json("simulate", DEMO, *options)
    for field in ("tokens", "exits", "tokens_hash", "requests", "mean_exit_loop"):
        t.equal(simulated[field], real[field], f"{field} of the simulated and the timed run")


def test_why(t):
    r = run_json("simulate", "-w", 8, "-c", 256, "-r", 1024, "-p", 8, "-o", 32, "--efficiency")["scaling"]
    lost = sum(r["losses"].values())
    t.check(0 < r["efficiency"] < 1.05, f"efficiency {r['efficiency']}")
    t.check(abs(1 - r["efficiency"] - lost) < 0.05, f"efficiency {r['efficiency']}, losses {r['losses']}")
    t.equal(r["why"], max(r["losses"], key=r["losses"].get), "the largest loss is the reason")
    crowd = run_json("simulate", "-w", 256, "-c", 8192, "-r", 16384, "-p", 8, "-o", 16, "--efficiency", timeout=120)
    t.equal(crowd["scaling"]["why"], "coordinator", "256 fast workers are too many for one coordinator")
    t.check(crowd["coordinator_busy"] > 0.9, f"coordinator busy {crowd['coordinator_busy']}")
    text = run_ok("simulate", "-w", 8, "-c", 64, "--efficiency").out
    t.check("efficiency" in text and "why:" in text, "the table says the efficiency, and why")


def test_arrivals(t):
    slow = run_json("simulate", "-w", 4, "-r", 200, "-o", 8, "--arrivals", "poisson", "--rate", 50)
    t.check(3 < slow["seconds"] < 5.5, f"200 requests at 50/s took {slow['seconds']} s")
    bursts = run_json("simulate", "-w", 4, "-r", 96, "-o", 8, "--arrivals", "burst", "--burst", 32, "--period", 500)
    t.check(1 < bursts["seconds"] < 1.5, f"three bursts, half a second apart: {bursts['seconds']} s")
    t.check(bursts["ttft_ms"]["p99"] > slow["ttft_ms"]["p50"], "a burst's last first token waits")


def write(name, text):
    path = WORK / name
    path.write_text(text)
    return path


def test_bad_input(t):
    """options, exit code, words of the one line"""
    cost = run_ok("simulate", "-r", 1)  # the shipped file is good
    t.check(cost.code == 0, "the default cost file")
    rows = [
        (["-w", 5000], 2, ["workers", "4096"]),
        (["-w", 8, "--ring-size", 3], 2, ["--ring-size 3", "8 workers"]),
        (["--arrivals", "poisson"], 2, ["--rate"]),
        (["--rate", 5], 2, ["--arrivals poisson"]),
        (["--arrivals", "often"], 2, ["often", "closed"]),
        (["--kv-blocks", 4, "--kv-memory", "1G"], 2, ["--kv-blocks", "--kv-memory"]),
        (["-p", "9-3"], 2, ["9-3"]),
        (["--force-exits", "0.5,0.5"], 1, ["2 numbers", "4 loops"]),
        (["-p", 60000, "-o", 60000], 1, ["context", "65536"]),
        (["-p", 100, "--kv-blocks", 3], 1, ["can never fit"]),
        (["--kv-memory", "1K"], 1, ["no block"]),
        (["--cost", "nosuch"], 1, ["nosuch", "h200_ib"]),
        (["--cost", "/no/such.json"], 1, ["/no/such.json"]),
        (["--cost", write("cost_text.json", "seconds")], 1, ["cost_text.json"]),
        (["--cost", write("cost_empty.json", "{}")], 1, ["cost_empty.json", "missing"]),
        (["/no/such/model"], 1, ["/no/such/model"]),
        ([DEMO, "--shape", "ouro-2.6b"], 2, ["--shape"]),
        (["one", "two"], 2, ["two"]),
        (["--replay", "/no/trace.json"], 1, ["/no/trace.json"]),
        (["--replay", write("not_a_trace.json", "hello\n")], 1, ["not_a_trace.json"]),
        (["--replay", "x", "--arrivals", "burst"], 2, ["--replay", "--arrivals"]),
        (["--replay", "x", "--efficiency"], 2, ["--replay", "--efficiency"]),
        (["--trace", "/no/such/place/t.json"], 1, ["/no/such/place"]),
        (["--trace", WORK / "t.json", "--trace-buffer", 0], 2, ["--trace-buffer"]),
    ]
    for options, code, words in rows:
        result = run("simulate", "-r", 4, *options)
        what = f"simulate {' '.join(str(o) for o in options)}"
        lines = [line for line in result.err.splitlines() if not line.startswith("simulated ")]
        t.equal(result.code, code, f"{what}: exit code ({result.err.strip()})")
        t.check(len(lines) == 1 and lines[0].startswith("carousel simulate: "), f"{what}: one line: {result.err!r}")
        for word in words:
            t.check(word in result.err, f"{what}: says {word!r}: {result.err.strip()}")


def main():
    t = Checks("e2e_simulate")
    WORK.mkdir(parents=True, exist_ok=True)
    for test in (test_large, test_same_bytes, test_requests_once, test_a_real_trace_is_replayed, test_tokens_of_the_timed_backend, test_why,
                 test_arrivals, test_bad_input):
        t.attempt(test)
    t.close()


if __name__ == "__main__":
    sys.exit(main())
