#!/usr/bin/env python3
"""Measures `carousel bench engine` over worker counts, several times and in random order; docs/scaling.md.

    scaling_study.py run --workers 1,2,3,4 --series strong,weak,kv,single --out DIR [options] [-- carousel options]
    scaling_study.py plot DIR
    scaling_study.py all ...        run, then plot

DIR gets plan.json (what is measured, and how), base.json (the best options of one worker) and wN.json (every
repetition at N workers). Called again with the same DIR it goes on: points that are there are kept, failed ones are
tried again. plot adds scaling.csv, scaling.svg, scaling.png and manifest.json.
"""
import argparse
import datetime
import fcntl
import json
import math
import os
import pathlib
import random
import shlex
import signal
import statistics
import subprocess
import sys
import time

import scaling_facts

ROOT = pathlib.Path(__file__).resolve().parent.parent
SERIES = ("strong", "weak", "kv", "single")
# What one worker is tried with, an option at a time; the first value is the default and wins unless another one is
# better by more than the margin.
SEARCH = (("max-batch-rows", (256, 64, 1024)), ("prefill-chunk", (64, 16, 256)),
          ("batching", ("round", "knee", "greedy")))
SEARCH_MARGIN = 0.03
KV_DOUBLINGS = 4


def fail(message, code=1):
    print(f"scaling_study: {message}", file=sys.stderr)
    sys.exit(code)


def whole(least):
    def parse(text):
        if not text.isdigit() or int(text) < least:
            raise argparse.ArgumentTypeError(f"a whole number from {least}, found '{text}'")
        return int(text)
    return parse


def counts(text):
    values = [whole(1)(t) for t in text.split(",")]
    return sorted(set(values))


def names(text):
    wrong = [t for t in text.split(",") if t not in SERIES]
    if wrong:
        raise argparse.ArgumentTypeError(f"there is no series '{wrong[0]}', there are {', '.join(SERIES)}")
    return [s for s in SERIES if s in text.split(",")]


def arguments():
    argv, extra = sys.argv[1:], []
    if "--" in argv:
        at = argv.index("--")
        argv, extra = argv[:at], argv[at + 1:]
    p = argparse.ArgumentParser(prog="scaling_study.sh", description=__doc__.split("\n")[0],
                                epilog="What follows -- goes to every `carousel bench engine`.")
    verbs = p.add_subparsers(dest="verb", required=True, metavar="run|plot|all")
    plot = verbs.add_parser("plot", help="CSV, SVG, PNG and manifest of what is in DIR")
    plot.add_argument("out", metavar="DIR", type=pathlib.Path)
    for name, text in (("run", "measure into DIR"), ("all", "measure, then plot")):
        v = verbs.add_parser(name, help=text)
        v.add_argument("--out", metavar="DIR", type=pathlib.Path, required=True)
        v.add_argument("--workers", metavar="W,W,...", type=counts, default=[1, 2, 3, 4, 5, 6, 8])
        v.add_argument("--series", metavar="NAMES", type=names, default=list(SERIES), help=",".join(SERIES))
        v.add_argument("--repetitions", metavar="N", type=whole(1), default=5)
        v.add_argument("--launcher", choices=("local", "slurm"), default="local",
                       help="local: this host's mpirun; slurm: mpirun in the allocation around us")
        v.add_argument("--mpirun", metavar="COMMAND", help="what starts the ranks instead, given -n R PROGRAM...")
        v.add_argument("--base", choices=("search", "default"), default="search",
                       help="search the best options of one worker first (default)")
        v.add_argument("--seed", metavar="S", type=whole(0), default=1, help="of the workload and of the order")
        v.add_argument("--model", metavar="DIR", help="a checkpoint (default: the bundled one)")
        v.add_argument("--strong-concurrency", metavar="C", type=whole(1), default=64, help="in flight, together")
        v.add_argument("--weak-concurrency", metavar="C", type=whole(1), default=16, help="in flight for each worker")
        v.add_argument("--rounds", metavar="N", type=whole(2), default=4, help="requests are N times those in flight")
        v.add_argument("--prompt-tokens", metavar="N", default="32")
        v.add_argument("--output-tokens", metavar="N|A-B", default="24-40")
        v.add_argument("--long-prompt", metavar="N", type=whole(1), help="of single (default: 2048, or what fits)")
        v.add_argument("--kv-memory", metavar="BYTES", type=whole(1), help="of kv, a worker (default: 16 sequences)")
        v.add_argument("--model-cost", metavar="FILE", help="cost file of the model line (default: --cost's)")
        v.add_argument("--timeout", metavar="SECONDS", type=whole(1), default=900, help="of one point")
    a = p.parse_args(argv)
    a.extra = extra
    return a


# ---- files ----------------------------------------------------------------------------------------------------------

def load(path, otherwise):
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return otherwise
    except ValueError as e:
        return fail(f"{path} is not JSON ({e}); remove it, or use another --out")


def save(path, value):
    """Whole or not at all, also when we are ended meanwhile."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(part, path)


class Lock:
    """One process a directory at a time; the lock goes with the process."""

    def __init__(self, directory):
        self.path = directory / ".lock"

    def __enter__(self):
        self.file = open(self.path, "w", encoding="ascii")
        fcntl.flock(self.file, fcntl.LOCK_EX)

    def __exit__(self, *_):
        self.file.close()


# ---- one run of the program -----------------------------------------------------------------------------------------

class PointFailed(Exception):
    pass


def given_option(extra, name):
    return any(e == f"--{name}" or e.startswith(f"--{name}=") for e in extra)


def launch(a, n_workers, options):
    """The command line of one point, and its environment."""
    program = os.environ.get("CAROUSEL", str(ROOT / "build" / "carousel"))
    env = dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
    model = [a.model] if a.model else []
    bench = [program, "bench", "engine", *model, "--json", *options, *a.extra]
    if a.mpirun:
        return [*shlex.split(a.mpirun), "-n", str(n_workers + 1), *bench], env
    if a.launcher == "slurm":
        return ["mpirun", "--quiet", "-n", str(n_workers + 1), "--map-by", "node", "--oversubscribe", "--bind-to",
                "none", *bench], env
    return [*bench, "--workers", str(n_workers)], env


def end_group(process):
    """Ends mpirun and its ranks; TERM is passed on, KILL is for a deaf one."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.communicate(timeout=10)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue


def run_bench(a, n_workers, options):
    command, env = launch(a, n_workers, options)
    try:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                   text=True, errors="replace", env=env, start_new_session=True)
    except OSError as e:
        raise PointFailed(f"cannot start {command[0]}: {e.strerror}; run make, or set CAROUSEL") from None
    try:
        out, err = process.communicate(timeout=a.timeout)
    except subprocess.TimeoutExpired:
        end_group(process)
        raise PointFailed(f"took longer than {a.timeout} s (--timeout)") from None
    except BaseException:
        end_group(process)
        raise
    if process.returncode != 0:
        lines = [line for line in err.splitlines() if line.strip()]
        ours = [line for line in lines if line.startswith("carousel")]
        raise PointFailed((ours or lines or [f"exit code {process.returncode}"])[-1])
    try:
        return json.loads(out), command
    except ValueError:
        raise PointFailed(f"no JSON came out: {out[:200]!r}") from None


# ---- what each series runs ------------------------------------------------------------------------------------------

def longest(text):
    return int(text.split("-")[-1])


def kv_bytes_a_sequence(a, model):
    """K and V of all loops over one sequence's positions, at two bytes or four."""
    heads = model.get("num_key_value_heads") or model["num_attention_heads"]
    head_dim = model.get("head_dim") or model["hidden_size"] // model["num_attention_heads"]
    width = 4 if model.get("torch_dtype", "float32") == "float32" else 2
    position = 2 * model["num_hidden_layers"] * heads * head_dim * width
    return position * model.get("total_ut_steps", 1) * (longest(a.prompt_tokens) + longest(a.output_tokens))


def workload(a, n_in_flight, n_requests=None, warmup=None, prompt=None, output=None):
    return ["--concurrency", str(n_in_flight), "--requests", str(n_requests or a.rounds * n_in_flight),
            "--warmup", str(n_in_flight if warmup is None else warmup),
            "--prompt-tokens", str(prompt or a.prompt_tokens), "--output-tokens", str(output or a.output_tokens),
            "--workload-seed", str(a.seed), "--seed", str(a.seed)]


def run_kv(a, n_workers, base, plan):
    """More sequences than fit, until memory is what bounds them: the most that were open at once."""
    estimate = n_workers * plan["kv_memory"] / plan["kv_bytes_a_sequence"]
    in_flight = math.ceil(1.5 * estimate) + 4
    for _ in range(KV_DOUBLINGS):
        result, command = run_bench(a, n_workers, [
            *base, *workload(a, in_flight, 2 * in_flight, in_flight // 2), "--kv-memory", str(plan["kv_memory"]),
            "--max-sequences", str(in_flight)])
        if result["open_max"] < in_flight:
            return result, command
        in_flight *= 2
    raise PointFailed(f"{in_flight // 2} sequences fit in --kv-memory {plan['kv_memory']}; give less")


def run_point(a, series, n_workers, base, plan):
    if series == "kv":
        return run_kv(a, n_workers, base, plan)
    if series == "strong":
        load_options = workload(a, a.strong_concurrency)
    elif series == "weak":
        load_options = workload(a, a.weak_concurrency * n_workers)
    else:
        load_options = workload(a, 1, a.rounds, 1, plan["long_prompt"], longest(a.output_tokens))
    return run_bench(a, n_workers, [*base, *load_options])


def search_base(a, plan):
    """The best options of one worker, found an option at a time."""
    chosen, tried = {}, []

    def rate(options):
        flat = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        rates = []
        for _ in range(3):
            result, _ = run_bench(a, 1, [*flat, *workload(a, a.strong_concurrency)])
            rates.append(tokens_per_s(result))
        tried.append({"options": flat, "tokens_per_s": rates})
        return statistics.median(rates)

    best = rate(chosen)
    for name, values in SEARCH:
        if given_option(a.extra, name):
            continue
        for value in values[1:]:
            found = rate({**chosen, name: value})
            if found > best * (1 + SEARCH_MARGIN):
                best, chosen = found, {**chosen, name: value}
    options = [word for name, value in chosen.items() for word in (f"--{name}", str(value))]
    return {"options": options, "tokens_per_s": best, "margin": SEARCH_MARGIN, "tried": tried, "plan": plan["extra"]}


def tokens_per_s(result):
    """While all places were taken, where the run was long enough to have such a time."""
    return result.get("steady_tokens_per_s") or result["tokens_per_s"]


def find_base(a, plan):
    if a.base == "default":
        return []
    path = a.out / "base.json"
    with Lock(a.out):  # several jobs of one study: the first one searches, the others take what it has found
        base = load(path, None)
        if base is None:
            print("base: searching the best options of one worker", flush=True)
            try:
                base = search_base(a, plan)
            except PointFailed as e:
                fail(f"the base cannot be found, one worker does not run: {e}")
            save(path, base)
    print(f"base: {' '.join(base['options']) or 'the defaults'}, {base['tokens_per_s']:.1f} tokens/s", flush=True)
    return base["options"]


# ---- the study ------------------------------------------------------------------------------------------------------

def make_plan(a):
    """What all points share; a DIR keeps one plan."""
    directory = pathlib.Path(a.model) if a.model else ROOT / "model" / "demo"
    model = load(directory / "config.json", None)
    if model is None:
        fail(f"there is no model at {directory} (no config.json)", 2)
    output = longest(a.output_tokens)
    context, per_sequence = model["max_position_embeddings"], kv_bytes_a_sequence(a, model)
    if longest(a.prompt_tokens) + output > context:
        fail(f"prompt and output of {longest(a.prompt_tokens)} + {output} tokens exceed the model's context of "
             f"{context} positions", 2)
    return {"seed": a.seed, "model": a.model or "bundled demo", "extra": a.extra, "base": a.base,
            "model_cost": a.model_cost, "loops": model.get("total_ut_steps", 1), "strong_concurrency": a.strong_concurrency,
            "weak_concurrency": a.weak_concurrency, "rounds": a.rounds, "prompt_tokens": a.prompt_tokens,
            "output_tokens": a.output_tokens, "long_prompt": min(a.long_prompt or 2048, context - output),
            # A quarter more: parked rows and the last, partly used blocks live there, too.
            "kv_memory": a.kv_memory or int(16 * 1.25 * per_sequence), "kv_bytes_a_sequence": per_sequence}


def keep_plan(a):
    plan, path = make_plan(a), a.out / "plan.json"
    with Lock(a.out):
        old = load(path, plan)
        changed = [f"{key} was {old.get(key)!r} and is now {plan.get(key)!r}" for key in {**plan, **old}
                   if old.get(key) != plan.get(key)]
        if changed:
            fail(f"{a.out} has another study: {changed[0]}; use another --out", 2)
        save(path, plan)
    return plan


def run(a):
    if a.launcher == "slurm" and "SLURM_JOB_ID" not in os.environ:
        fail("--launcher slurm runs inside a Slurm allocation; scripts/slurm/scaling.sh submits one job per count", 2)
    try:
        a.out.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        fail(f"cannot make {a.out}: {e.strerror}")
    plan = keep_plan(a)
    files = {w: a.out / f"w{w}.json" for w in a.workers}
    kept = {w: load(files[w], {"workers": w, "facts": None, "points": []}) for w in a.workers}
    wanted = [(s, w, r) for s in a.series for w in a.workers for r in range(1, a.repetitions + 1)]
    random.Random(a.seed).shuffle(wanted)
    have = {(p["series"], w, p["repetition"]) for w in a.workers for p in kept[w]["points"] if p["ok"]}
    todo = [(order, *p) for order, p in enumerate(wanted) if p not in have]
    print(f"{len(wanted)} points, {len(wanted) - len(todo)} of them are there", flush=True)
    base = find_base(a, plan) if todo else []
    facts, n_failed = scaling_facts.gather(a, ROOT), 0
    for number, (order, series, n_workers, repetition) in enumerate(todo, 1):
        point = {"series": series, "repetition": repetition, "order": order,
                 "began": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")}
        began = time.monotonic()
        try:
            result, command = run_point(a, series, n_workers, base, plan)
            point.update(ok=True, command=shlex.join(command), result=result)
            said = f"{tokens_per_s(result):.1f} tokens/s"
        except PointFailed as e:
            point.update(ok=False, message=str(e))
            said = f"FAILED: {e}"
            n_failed += 1
        point["seconds"] = round(time.monotonic() - began, 3)
        book = kept[n_workers]
        book["facts"] = facts
        book["points"] = [p for p in book["points"] if (p["series"], p["repetition"]) != (series, repetition)]
        book["points"].append(point)
        save(files[n_workers], book)
        print(f"[{number}/{len(todo)}] {series} W={n_workers} #{repetition}: {said}", flush=True)
    if n_failed:
        print(f"scaling_study: {n_failed} of {len(todo)} points failed; the same command tries them again",
              file=sys.stderr)
    return 1 if n_failed else 0


def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # a point's ranks go with us
    a = arguments()
    code = run(a) if a.verb in ("run", "all") else 0
    if a.verb in ("plot", "all"):
        import scaling_plot  # needs numpy and matplotlib, which a compute node may lack
        scaling_plot.plot(a.out)
    return code


if __name__ == "__main__":
    sys.exit(main())
