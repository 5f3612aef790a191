#!/usr/bin/env python3
"""Trains the runs of seed_tables_sizes.py, some at a time, and puts them beside the published tables.

A finished run leaves result.json and is not trained again; one that was interrupted goes on from
its last state."""
import argparse
import concurrent.futures
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import seed_tables_report as report
import seed_tables_sizes as sizes

# The first step of an estimate does not count: it fetches its memory.
PROBE_BATCH, PROBE_STEPS = 32, 4


class Failed(Exception):
    """A program that did not do its part; the text says which and why."""


class Programs:
    """The programs under way, so that none outlives this one and writes beside the next."""

    def __init__(self):
        self.under_way, self.lock, self.is_over = set(), threading.Lock(), False

    def call(self, *command):
        """What it printed."""
        with self.lock:
            if self.is_over:
                raise Failed("ended")
            program = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                       text=True)
            self.under_way.add(program)
        out, errors = program.communicate()
        with self.lock:
            self.under_way.discard(program)
        if program.returncode != 0:
            raise Failed(f"{' '.join(command)}\n{errors.strip() or out.strip()}")
        return out

    def end(self):
        """Trainings save their state and stop; nothing starts after this."""
        with self.lock:
            self.is_over = True
            for program in self.under_way:
                program.terminate()


def write_json(path, value):
    """Whole or not at all: a result that is there counts as finished."""
    with open(path + ".tmp", "w", encoding="utf-8") as out:
        json.dump(value, out, indent=1)
        out.write("\n")
    os.replace(path + ".tmp", path)


def read_json(path):
    try:
        with open(path, encoding="utf-8") as text:
            return json.load(text)
    except (OSError, ValueError):
        return None


def read_log(path):
    """The last report, with what only all of them or the first say."""
    first, last, rows = None, None, 0
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            entry = json.loads(line)
            if entry["type"] == "report":
                first, last, rows = first or entry, entry, rows + entry["rows"]
    if last is None:
        raise Failed(f"{path} has no report")
    return {"loss": last["loss"], "cosines": last.get("looping"), "rows": rows,
            "seconds": last["seconds"], "cpu_seconds": last["cpu_seconds"],
            "cpu_seconds_after_first": last["cpu_seconds"] - first["cpu_seconds"]}


def folder_of(run, options):
    return os.path.join(options.out, run.name)


def is_prepared(run, options):
    """Whether what lies in the run's folder is of this recipe and seed."""
    wanted = {"recipe": run.recipe(), "seed": options.seed}
    return read_json(os.path.join(folder_of(run, options), "wanted.json")) == wanted


def prepare(run, options):
    """The run's folder, with its recipe; what another recipe or seed left there goes."""
    if not is_prepared(run, options):
        folder, recipe = folder_of(run, options), run.recipe()
        shutil.rmtree(folder, ignore_errors=True)
        os.makedirs(folder)
        write_json(os.path.join(folder, "recipe.json"), recipe)
        write_json(os.path.join(folder, "wanted.json"), {"recipe": recipe, "seed": options.seed})


def read_result(run, options):
    """None where the run is not finished."""
    result = read_json(os.path.join(folder_of(run, options), "result.json"))
    is_it = result is not None and result["problems"] == options.problems
    return result if is_it and is_prepared(run, options) else None


def evaluate(run, model, options):
    knobs = ",".join(f"{name}={value}" for name, value in run.sizes["plan"][-1][0].items())
    return json.loads(options.programs.call(
        options.carousel, "eval", model, "--task", run.task, "--set", knobs, "--loops",
        str(run.loops), "--threads", "1", "--json", "-n", str(options.problems), "--seed", "1"))


def train(run, options):
    """Result of a run, and whether it is a new one."""
    folder, result = folder_of(run, options), read_result(run, options)
    if result is not None:
        return result, False
    prepare(run, options)
    begin = time.monotonic()
    options.programs.call(
        options.carousel, "train", os.path.join(folder, "recipe.json"), "--out", folder,
        "--resume", "--threads", str(options.threads), "--seed", str(options.seed), "--quiet",
        "--report-every", "100", "--save-every", "1000", "--keep", "1")
    model = os.path.join(folder, "model")
    log = read_log(os.path.join(folder, "log.jsonl"))
    scores = evaluate(run, model, options)
    result = {
        "name": run.name, "problems": options.problems, **log,
        "levels": [[level["level"], level["exact_by_loop"][-1]] for level in scores["levels"]],
        "all": scores["all"]["exact_by_loop"][-1],
        "wall_seconds": time.monotonic() - begin,
        "parameters": report.count_parameters(model),
        "weight_cosines": report.layer_cosines(model, run.layers, run.looping),
    }
    write_json(os.path.join(folder, "result.json"), result)
    return result, True


def train_all(runs, options):
    """One line a run; the first failure ends the rest, what is finished stays."""
    n_done, lock, begin = 0, threading.Lock(), time.monotonic()

    def one(run):
        nonlocal n_done
        result, is_new = train(run, options)
        with lock:
            n_done += 1
            hardest, score = result["levels"][-1]
            print(f"{run.name:28} {hardest} {100 * score:5.1f} %  all {100 * result['all']:5.1f} %"
                  f"  {result['cpu_seconds']:6.0f} CPU s  "
                  + (f"{result['wall_seconds']:6.0f} s" if is_new else "was finished")
                  + f"  [{n_done}/{len(runs)}, {(time.monotonic() - begin) / 60:.1f} min]",
                  flush=True)

    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        futures = [pool.submit(one, run) for run in runs]
        try:
            for future in concurrent.futures.as_completed(futures):
                future.result()
        except BaseException:
            options.programs.end()
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def estimate(runs, options):
    """Trains a few steps of a small batch of every run, as it would be in its last part."""
    total = 0
    print(f"{'run':28} {'steps':>7} {'batch':>6} {'ms a sequence':>14} {'core-hours':>11}")
    for run in runs:
        folder = os.path.join(options.out, "estimate", run.name)
        shutil.rmtree(folder, ignore_errors=True)
        os.makedirs(folder)
        recipe = run.recipe()
        recipe["stages"] = recipe["stages"][-1:]
        recipe["stages"][0].update(batch=PROBE_BATCH, steps=PROBE_STEPS, warmup=0)
        write_json(os.path.join(folder, "recipe.json"), recipe)
        options.programs.call(
            options.carousel, "train", os.path.join(folder, "recipe.json"), "--out", folder,
            "--threads", "1", "--quiet", "--save-every", "0", "--report-every", "1")
        log = read_log(os.path.join(folder, "log.jsonl"))
        each = log["cpu_seconds_after_first"] / (PROBE_BATCH * (PROBE_STEPS - 1))
        hours = each * run.sizes["batch"] * run.steps() / 3600
        total += hours
        print(f"{run.name:28} {run.steps():7} {run.sizes['batch']:6} {1000 * each:14.2f}"
              f" {hours:11.1f}", flush=True)
    print(f"{len(runs)} runs: {total:.1f} core-hours, {total / options.jobs / options.threads:.1f} "
          f"hours with {options.jobs} at a time of {options.threads} thread(s)")


def parse_arguments():
    parser = argparse.ArgumentParser(
        prog="scripts/seed_tables.sh",
        description="Looped against not looped: trains the models of arXiv 2502.17416's tables at "
                    "sizes for two cores, and writes OUT/tables.md.")
    parser.add_argument("--full", action="store_true", help="the paper's sizes (see --estimate)")
    parser.add_argument("--estimate", action="store_true", help="only measure how long it takes")
    parser.add_argument("--only", metavar="REGEX", default="",
                        help="runs with such a name, as phop or '1x4$'")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time (2)")
    parser.add_argument("--threads", type=int, default=1, help="threads of each (1)")
    parser.add_argument("--seed", type=int, default=1, help="of values and data (1)")
    parser.add_argument("--problems", type=int, default=2000, help="of each evaluation (2000)")
    parser.add_argument("--out", default=None, help="default build/seed_tables, or ..._full")
    parser.add_argument("--carousel", default="build/carousel", help="the program")
    options = parser.parse_args()
    if options.jobs < 1 or options.threads < 1 or options.problems < 1:
        parser.error("--jobs, --threads and --problems are 1 at least")
    if options.out is None:
        options.out = "build/seed_tables_full" if options.full else "build/seed_tables"
    return options


def interrupt(*_):
    raise KeyboardInterrupt


def main():
    options = parse_arguments()
    options.programs = Programs()
    signal.signal(signal.SIGTERM, interrupt)
    tasks = sizes.FULL if options.full else sizes.REDUCED
    all_runs = sizes.list_runs(tasks)
    runs = [run for run in all_runs if re.search(options.only, run.name)]
    if not runs:
        sys.exit(f"seed_tables: no run has a name like '{options.only}'")
    os.makedirs(options.out, exist_ok=True)
    try:
        if options.estimate:
            estimate(runs, options)
            return
        train_all(runs, options)
    except Failed as failure:
        sys.exit(f"seed_tables: {failure}")
    except KeyboardInterrupt:
        sys.exit("seed_tables: interrupted; the same command goes on from here")
    results = {run.name: read_result(run, options) for run in all_runs}
    results = {name: result for name, result in results.items() if result is not None}
    path = os.path.join(options.out, "tables.md")
    with open(path, "w", encoding="utf-8") as out:
        report.write_tables(tasks, results, options, out)
    print(f"the tables are in {path}")


if __name__ == "__main__":
    main()
