#!/usr/bin/env python3
"""One line for each run of scripts/train_demo.sh: exact answers, exits, processor time.

    scripts/train_demo_report.py build/train_demo/seed-1...

A run reaches the target with 99.9 % exact at full depth and at q = 0.5, every difficulty leaving on average within
0.05 of the loop it needs, in under 20 CPU-minutes. Exit code 1 when fewer than four of five runs do.
"""
import json
import pathlib
import sys

TARGET, WITHIN, MINUTES = 0.999, 0.05, 20


def needed_loop(level):
    """hop 3 needs 3 loops, a value of depth 2 needs 3."""
    kind, number = level.split()
    return int(number) + (kind == "dep")


def cpu_seconds(run, name):
    return sum(float(word) for word in (run / f"{name}.time").read_text().split()[-2:])


def read(run):
    found = json.loads((run / "eval.json").read_text())
    q = found["q"].index(0.5)
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "step" in line]
    return {
        "run": run.name,
        "answers": found["all"]["answers"],
        "full": found["all"]["exact_by_loop"][-1],
        "early": found["all"]["exact_by_q"][q],
        "mean": found["all"]["mean_exit_by_q"][q],
        "off": max(abs(level["mean_exit_by_q"][q] - needed_loop(level["level"])) for level in found["levels"]),
        "steps": max(line["step"] for line in steps),
        "restarts": max(line.get("attempt", 0) for line in steps),
        "train": cpu_seconds(run, "train"),
        "gate": cpu_seconds(run, "prompts") + cpu_seconds(run, "gate"),
    }


def main():
    rows = [read(pathlib.Path(name)) for name in sys.argv[1:]]
    print("| run | restarts | steps | CPU-seconds: training, gate | exact at full depth | exact at q = 0.5 "
          "| mean loops | furthest from its difficulty | target |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    n_good = 0
    for r in rows:
        good = (r["full"] >= TARGET and r["early"] >= TARGET and r["off"] <= WITHIN
                and r["train"] + r["gate"] <= MINUTES * 60)
        n_good += good
        print(f"| {r['run']} | {r['restarts']} | {r['steps']} | {r['train']:.0f}, {r['gate']:.1f} "
              f"| {100 * r['full']:.2f} % | {100 * r['early']:.2f} % | {r['mean']:.3f} | {r['off']:.3f} "
              f"| {'reached' if good else 'missed'} |")
    print(f"\n{n_good} of {len(rows)} runs reach the target; "
          f"{rows[0]['answers']} fresh problems each, every difficulty equally often")
    sys.exit(0 if n_good >= 0.8 * len(rows) else 1)


main()
