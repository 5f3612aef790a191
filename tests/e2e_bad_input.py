#!/usr/bin/python3
"""Runs every row of the tables in docs/errors.md: message, exit code, one line only, no hang, nothing left behind.

A last table checks what a reader that closes standard output early (`| head -c 1`) leaves: no message but one
of ours, no core file, no rank.
"""
import json
import os
import re
import shlex
import subprocess
import time

import bad_models
from e2e_lib import DEMO, PROGRAM, ROOT, WORK, Checks, clean_environment, run_command, stop_group

HERE = WORK / "bad"
# What must be in the tables, whatever else is: the first column has to begin with these words.
REQUIRED = [
    "missing directory", "missing config.json", "missing safetensors", "missing shard", "missing tokenizer",
    "truncated tensors", "wrong shapes", "unknown dtype", "NaN weights", "prompt longer than the context",
    "prompt and max-tokens longer than the context", "token id out of range", "threshold out of range",
    "unknown option", "bad number", "ids that are no numbers", "more ranks than memory", "memory for no block",
    "workers with different models", "ring size that does not divide", "no mpirun on PATH",
]
MPI = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
       "OMPI_MCA_rmaps_base_oversubscribe": "1", "OMPI_MCA_hwloc_base_binding_policy": "none"}
GOOD_LINES = ['{"custom_id": "first", "prompt": [4], "max_tokens": 1}',
              '{"custom_id": "last", "prompt": [5], "max_tokens": 1}']


def tables():
    """[heading, [cells of a row, without backticks]] of each table in docs/errors.md."""
    found, heading = [], ""
    for line in (ROOT / "docs" / "errors.md").read_text().splitlines():
        if line.startswith("## "):
            heading = line[3:]
        if not line.startswith("| ") or line.startswith("| ---"):
            continue
        cells = [c.strip().replace("\\|", "|") for c in re.split(r"(?<!\\)\|", line)[1:-1]]
        if cells[0] == "What is wrong":
            found.append((heading, []))
        else:
            found[-1][1].append([c[1:-1] if c.startswith("`") and c.endswith("`") else c for c in cells])
    return found


def matches(pattern, text):
    return re.fullmatch(".*".join(re.escape(part) for part in pattern.split("…")), text) is not None


def run_row(c, what, command, message, code):
    words, environment, redirect = shlex.split(command), {}, None
    while "=" in words[0]:
        key, value = words.pop(0).split("=", 1)
        environment[key] = value
    if ">" in words:
        redirect = words[words.index(">") + 1]
        words = words[: words.index(">")]
    by_hand = words[0] == "mpirun"
    if by_hand:
        environment.update(MPI)
    words = [PROGRAM if w == "carousel" else w for w in words]
    if redirect:
        words = ["sh", "-c", f'exec "$@" >{redirect}', "sh", *words]
    r = run_command(words, timeout=60, cwd=HERE, env=environment)
    c.check(not r.is_late, f"{what}: ran into its time limit")
    c.equal(r.code, int(code), f"{what}: exit code of `{command}` ({r.err[-300:]!r})")
    c.equal(r.out, "", f"{what}: standard output")
    lines = r.err.splitlines()
    ours = [line for line in lines if line.startswith("carousel")]
    c.check(len(ours) == 1 and matches(message, ours[0]),
            f"{what}: `{command}` said {ours or lines}, docs/errors.md has {message}")
    if by_hand:
        c.stray[what] = len(lines) - len(ours)
    else:
        c.equal(len(lines), 1, f"{what}: lines on standard error: {lines}")


def run_lines(c, rows):
    """All bad lines in one file between two good ones."""
    source = HERE / "lines.jsonl"
    source.write_text("\n".join([GOOD_LINES[0], *(row[1] for row in rows), GOOD_LINES[1]]) + "\n")
    for place in ([], ["--workers", "2"]):
        answers = HERE / "answers.jsonl"
        answers.unlink(missing_ok=True)
        r = run_command([PROGRAM, "batch", "models/good", "-i", "lines.jsonl", "-o", "answers.jsonl", "--quiet",
                         *place], cwd=HERE)
        if not c.check(r.code == 0 and not r.is_late, str(r)):
            continue
        found = [json.loads(line) for line in answers.read_text().splitlines()]
        c.equal(len(found), len(rows) + 2, "batch: answers")
        for name in ("first", "last"):
            good = [a for a in found if a["custom_id"] == name and a["response"] is not None]
            c.equal(len(good), 1, f"batch: answers to the good line {name}")
        errors = [a["error"] for a in found if a["error"] is not None]
        for what, line, code, message in rows:
            hits = [e for e in errors if e["code"] == code and matches(message, e["message"])]
            c.check(len(hits) == 1, f"batch line, {what}: {line} gave none or several of {code}: {message}; "
                                    f"errors are {errors if not hits else hits}")


def run_closed(c, *args, is_silent=False):
    """Reads one byte and closes, as head -c 1 does."""
    what = " ".join(args[:1] + args[2:])
    process = subprocess.Popen([PROGRAM, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               cwd=HERE, env=clean_environment(), start_new_session=True)
    process.stdout.read(1)
    process.stdout.close()
    try:
        process.wait(timeout=60)
        is_late = False
    except subprocess.TimeoutExpired:
        is_late = True
        stop_group(process)
    # On a slow machine the run lasts long enough to report its progress.
    lines = [line for line in process.stderr.read().splitlines(True) if not re.match("batch: [0-9]+/[0-9]+ done", line)]
    err = "".join(lines)
    process.stderr.close()
    c.check(not is_late, f"closed output, {what}: ran into its time limit")
    # 0: all was written before the reader left; 1: said so; -13: ended by SIGPIPE, as other programs are
    c.check(process.returncode in (0, 1, -13), f"closed output, {what}: exit code {process.returncode}: {err}")
    strange = [line for line in err.splitlines() if not re.match("carousel|batch: [0-9]+ lines", line)]
    c.check(not strange, f"closed output, {what}: {strange}")
    if is_silent:
        c.equal(err, "", f"closed output, {what}: says")


def has_ranks():
    """Is a process of ours still running one of the prepared models?"""
    for entry in os.listdir("/proc"):
        try:
            if entry.isdigit() and os.readlink(f"/proc/{entry}/cwd") == str(HERE):
                return True
        except OSError:
            continue
    return False


def main():
    c = Checks("e2e_bad_input")
    c.stray = {}
    bad_models.make_all(HERE)
    (HERE / "lines.jsonl").write_text(GOOD_LINES[0] + "\n")
    (HERE / "answered.jsonl").write_text('{"id": "batch_req_1", "custom_id": "first", "input_hash": "0123456789abcdef", '
                                         '"response": {}, "error": null}\n')
    found = tables()
    rows = [row for heading, table in found for row in table if not heading.startswith("Lines")]
    for words in REQUIRED:
        c.check(any(row[0].startswith(words) for row in rows), f"docs/errors.md has no row for: {words}")
    for row in rows:
        if c.equal(len(row), 4, f"cells of the row {row}"):
            run_row(c, *row)
    run_lines(c, [row for heading, table in found for row in table if heading.startswith("Lines")])
    demo, many = str(DEMO), ["--max-tokens", "250", "--ignore-eos"]
    for place in ([], ["--workers", "2"]):
        run_closed(c, "generate", demo, "--ids", "1", *many, *place)
        run_closed(c, "generate", demo, "--ids", "1", "--json", *many, *place)
        run_closed(c, "lens", demo, "--ids", "1,2,3,4,5,6,7,8,9,10,11,12", "--json", "--top", "49", *place)
        run_closed(c, "batch", demo, "-i", str(DEMO / "prompts.jsonl"), "-o", "-", "--no-verify", *place, is_silent=True)
    deadline = time.monotonic() + 10
    while has_ranks() and time.monotonic() < deadline:
        time.sleep(0.2)
    c.check(not has_ranks(), "a rank is still running")
    c.check(not list(HERE.glob("core*")), f"core files: {list(HERE.glob('core*'))}")
    c.note(f"{len(rows)} rows; lines of mpirun itself where it was started by hand: "
           f"{min(c.stray.values())} to {max(c.stray.values())}")
    c.close()


if __name__ == "__main__":
    main()
