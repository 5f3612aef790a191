#!/usr/bin/env python3
"""Scores the demo's batch output: accuracy and exit loops by difficulty, early exit beside full depth."""
import json
import sys


def read_answers(path):
    answers = {}
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            record = json.loads(line)
            if record.get("error"):
                sys.exit(f"{path}: {record['custom_id']}: {record['error']['message']}")
            body = record["response"]["body"]
            answers[record["custom_id"]] = (
                body["choices"][0]["text"],
                body["loop_stats"]["exit_loops"],
            )
    return answers


def main():
    prompts_path, exact_path, full_path = sys.argv[1:4]
    exact, full = read_answers(exact_path), read_answers(full_path)
    color = sys.stdout.isatty()
    bar_on, bar_off = ("\033[36m", "\033[0m") if color else ("", "")
    rows = {}
    with open(prompts_path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            prompt = json.loads(line)
            # A hop prompt's level counts its steps from 1, a chain prompt's its dependency depth from 0.
            difficulty = prompt["level"] + (prompt["task"] == "chain")
            row = rows.setdefault(
                difficulty, {"n": 0, "exact": 0, "full": 0, "exits": {}}
            )
            key = f"line-{number}"
            row["n"] += 1
            row["exact"] += exact[key][0].strip() == prompt["answer"]
            row["full"] += full[key][0].strip() == prompt["answer"]
            loop = exact[key][1][0]
            row["exits"][loop] = row["exits"].get(loop, 0) + 1
    loops = sorted({loop for row in rows.values() for loop in row["exits"]} | {1, 2, 3, 4})
    print("                    right answers      got off at loop")
    print("difficulty  n   early exit  all loops"
          + "".join(f"{loop:>5}" for loop in loops) + "  mean")
    total = {"n": 0, "exact": 0, "full": 0, "sum": 0}
    for difficulty in sorted(rows):
        row = rows[difficulty]
        mean = sum(k * v for k, v in row["exits"].items()) / row["n"]
        total["n"] += row["n"]
        total["exact"] += row["exact"]
        total["full"] += row["full"]
        total["sum"] += mean * row["n"]
        bar = bar_on + "#" * round(mean * 5) + bar_off
        print(f"{difficulty:>10} {row['n']:>3}   {100 * row['exact'] / row['n']:9.1f}%"
              f" {100 * row['full'] / row['n']:9.1f}%"
              + "".join(f"{row['exits'].get(loop, 0):>5}" for loop in loops) + f"  {mean:.2f} {bar}")
    n = total["n"]
    print(f"       all {n:>3}   {100 * total['exact'] / n:9.1f}% {100 * total['full'] / n:9.1f}%"
          + " " * 5 * len(loops) + f"  {total['sum'] / n:.2f} of {loops[-1]} loops")


if __name__ == "__main__":
    main()
