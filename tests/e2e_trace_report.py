#!/usr/bin/env python3
"""`carousel trace report` against scripts/trace_check.py, which shares no code with it: on real runs over MPI and in
one process, on a simulated one and on one whose buffers overflowed. The text says what the JSON says.
"""
import json
import pathlib
import re
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from e2e_lib import DEMO, ROOT, WORK, Checks, run, run_command, run_ok

PLACE = WORK / "trace_report"
CHECK = ROOT / "scripts" / "trace_check.py"
PROMPTS = [json.loads(line)["prompt"] for line in (DEMO / "prompts.jsonl").read_text().splitlines()]


def batch(name, n_prompts, *options):
    prompts, trace = PLACE / f"{name}.jsonl", PLACE / f"{name}.json"
    prompts.write_text("".join(json.dumps({"prompt": PROMPTS[i % len(PROMPTS)]}) + "\n" for i in range(n_prompts)))
    (PLACE / f"{name}.out").unlink(missing_ok=True)
    run_ok("batch", "-i", prompts, "-o", PLACE / f"{name}.out", "--trace", trace, "--max-tokens", 12, "--ignore-eos",
           "--exit", "exact", "-q", 0.5, *options)
    return trace


def agree(c, trace, what):
    """Both readers of the file say the same; returns the report."""
    report = run_ok("trace", "report", "--json", trace).json()
    path = trace.with_suffix(".report")
    path.write_text(json.dumps(report))
    second = run_command([sys.executable, CHECK, trace, path])
    c.equal(second.code, 0, f"{what}: {second.out[-1500:]}{second.err[-500:]}")
    found = re.search(r"(\d+) values, 0 differ", second.out)
    c.check(found and int(found[1]) > 200, f"{what}: the second reader compared {second.out.strip()[-200:]}")
    return report


def check_times(c, report, what):
    """A worker's time is all accounted for; the ways of the slowest tokens add up."""
    for w in report["workers"]:
        parts = [w["busy_s"], sum(w["idle_s"].values()), w["driver_s"], w["rest_s"]]
        c.check(abs(sum(parts) - w["elapsed_s"]) < 1e-6 and min(parts) >= 0, f"{what}: rank {w['rank']}: {w}")
        c.check(w["batches"] > 0 and w["busy_s"] > 0, f"{what}: rank {w['rank']} did nothing")
    s = report["slowest"]
    parts = s["hop_s"] + s["wait_s"] + s["compute_s"] + s["deliver_s"]
    c.check(abs(parts - s["total_s"]) < 1e-9, f"{what}: {s}")
    c.equal(sum(l["exits"] for l in report["by_loop"]), report["tokens"], f"{what}: exits")


def real_runs(c):
    for name, workers, options in (("mpi", 3, ["--transport", "mpi"]), ("inproc", 2, ["--transport", "inproc"])):
        report = agree(c, batch(name, 40, "--workers", workers, *options), name)
        c.equal((report["tokens"], report["requests"], report["n_workers"], report["lost_records"]),
                (40 * 12, 40, workers, 0), f"{name}: tokens, requests, workers, lost records")
        c.equal((report["incomplete_tokens"], report["ttft"]["n"], report["tpot"]["n"], report["simulated"]),
                (0, 40, 40 * 11, False), f"{name}: incomplete, first tokens, gaps")
        check_times(c, report, name)
        live = [l["compute"]["n"] for l in report["by_loop"]]
        c.check(live == sorted(live, reverse=True) and live[0] == 480, f"{name}: live rows by loop {live}")


def a_simulated_run(c):
    trace = PLACE / "simulated.json"
    run_ok("simulate", "--workers", 6, "--requests", 60, "--concurrency", 24, "--output-tokens", 20,
           "--force-exits", "0.1,0.3,0.3,0.3", "--trace", trace)
    report = agree(c, trace, "simulated")
    c.check(report["simulated"] and report["tokens"] >= 1200, f"simulated: {report['tokens']} tokens")
    check_times(c, report, "simulated")


def a_run_that_did_not_fit(c):
    """The oldest records are gone: what is left is right, and the text says how much room all would take."""
    trace = batch("short", 60, "--workers", 2, "--transport", "inproc", "--trace-buffer", "16K")
    report = agree(c, trace, "short")
    c.check(report["lost_records"] > 100 and report["incomplete_tokens"] > 0, f"short: {report['lost_records']} lost")
    c.check(0 < report["tokens"] < 60 * 12, f"short: {report['tokens']} tokens")
    text = run_ok("trace", "report", trace).out
    advice = re.search(r"lost: (\d+) records .* --trace-buffer (\d+)M would have kept all", text)
    if c.check(advice, f"short: no advice in {text[-500:]}"):
        c.equal(int(advice[1]), report["lost_records"], "short: lost records in the text")
        whole = batch("whole", 60, "--workers", 2, "--transport", "inproc", "--trace-buffer", f"{advice[2]}M")
        c.equal(agree(c, whole, "whole")["lost_records"], 0, "whole: lost records with that buffer")


def the_text(c):
    trace = PLACE / "mpi.json"
    report, text = run_ok("trace", "report", "--json", trace).json(), run_ok("trace", "report", trace).out
    c.check(f"{report['tokens']} tokens, {report['tokens_per_s']:.1f} tokens/s" in text, "text: tokens")
    for l in report["by_loop"]:
        row = re.search(rf"^loop {l['loop']} +(\d+) \|([^\n]*)$", text, re.M)
        if c.check(row, f"text: no row of loop {l['loop']}"):
            said = [float(x) for x in re.findall(r"[\d.]+", row[2])]
            wanted = [l[k][p] * 1e3 for k in ("hop", "wait", "compute", "head") for p in ("p50_s", "p90_s", "p99_s")
                      if l[k]["n"]]
            c.equal(int(row[1]), l["compute"]["n"], f"text: live rows of loop {l['loop']}")
            c.check(len(said) == len(wanted) and all(abs(s - w) <= 0.0006 + 0.001 * w for s, w in zip(said, wanted)),
                    f"text: loop {l['loop']} says {said}, the JSON {wanted}")
        c.check(re.search(rf"^loop {l['loop']} +{l['exits']} ", text, re.M), f"text: exits of loop {l['loop']}")
    for w in report["workers"]:
        row = re.search(rf"^worker {w['rank']} \S+ +([\d. ]+) ", text, re.M)
        c.check(row and abs(float(row[1].split()[0]) - 100 * w["busy_s"] / w["elapsed_s"]) < 0.06,
                f"text: worker {w['rank']} {row and row[0]}")
    c.check(max(map(len, text.splitlines())) < 200, "text: a line is too long")


def refuses(c):
    trace, cut = PLACE / "mpi.json", PLACE / "cut.json"
    cut.write_text(trace.read_text()[:9999])
    foreign = PLACE / "foreign.json"
    foreign.write_text('{"traceEvents":[\n{"ph":"X","cat":"gpu","name":"k","pid":1,"tid":1,"ts":1,"dur":2}\n]}\n')
    for what, path, message in (("cut", cut, "was cut"), ("foreign", foreign, "line 2: .* another program"),
                                ("none", PLACE / "none.json", "cannot open"), ("folder", PLACE, "cannot read")):
        result = run("trace", "report", path)
        c.check(result.code == 1 and result.out == "" and re.search(message, result.err), f"{what}: {result}")
        c.equal(len(result.err.splitlines()), 1, f"{what}: lines of {result.err}")


def main():
    c = Checks("e2e_trace_report")
    PLACE.mkdir(parents=True, exist_ok=True)
    for test in (real_runs, a_simulated_run, a_run_that_did_not_fit, the_text, refuses):
        c.attempt(test)
    c.close()


if __name__ == "__main__":
    main()
