"""The line beside the points of a scaling study: what `carousel simulate` makes of the same commands with a cost file,
or without one what W workers would do if nothing were lost.
"""
import json
import os
import pathlib
import shlex
import statistics
import subprocess

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Of `bench engine`, and without a meaning where nothing is computed or sent.
NOT_SIMULATED = {"--backend": 1, "--workers": 1, "-w": 1, "--transport": 1, "--threads": 1, "--isa": 1, "--trace": 1,
                 "--trace-buffer": 1, "--outputs": 1, "--no-verify": 0, "--json": 0, "--cost": 1}


def share_of_one(workers):
    """Efficiency is a value over one worker's, times this."""
    return 1 / workers


def ideal(plan, metric, one, workers):
    """From the median of one worker. A token takes its loops one after the other however many workers there are; the
    chunks of a prompt are at up to min(W, T) loops at a time."""
    if metric in ("tokens_per_s", "sequences"):
        return one * workers
    return one / min(workers, plan["loops"]) if metric == "ttft_ms" else one


def option(words, name):
    """The value of the last --name VALUE or --name=VALUE, or None."""
    value = None
    for at, word in enumerate(words):
        if word.startswith(f"{name}="):
            value = word.split("=", 1)[1]
        elif word == name and at + 1 < len(words):
            value = words[at + 1]
    return value


def cost_of(plan):
    return plan.get("model_cost") or option(plan["extra"], "--cost")


def program():
    return os.environ.get("CAROUSEL", str(ROOT / "build" / "carousel"))


def simulator_of(plan):
    """What the answers depend on besides the command: the program and the cost file, as they are now."""
    name = cost_of(plan) or ""
    path = pathlib.Path(name)
    if "/" not in name and not name.endswith(".json"):
        path = ROOT / "cluster" / "costs" / f"{name}.json"
    try:
        costs = path.read_text()
    except OSError:
        costs = None
    try:
        stat = os.stat(program())
    except OSError:
        return [None, None, costs]
    return [stat.st_size, stat.st_mtime_ns, costs]


def simulation(plan, command, workers):
    """The `carousel simulate` that says what this `bench engine` should have measured."""
    words = shlex.split(command)
    words = words[words.index("engine") + 1:]
    directory = words.pop(0) if not words[0].startswith("-") else str(ROOT / "model" / "demo")
    kept = []
    while words:
        word = words.pop(0)
        if word.split("=", 1)[0] not in NOT_SIMULATED:
            kept.append(word)
        elif "=" not in word:
            del words[:NOT_SIMULATED[word]]
    if option(kept, "--kv-dtype") in (None, "auto"):
        config = json.loads((pathlib.Path(directory) / "config.json").read_text())
        kept += ["--kv-dtype", "f32" if config.get("torch_dtype", "float32") == "float32" else "bf16"]
    return [program(), "simulate", directory, *kept, "--cost", cost_of(plan), "--workers", str(workers), "--json"]


class Simulations:
    """Results by command, kept in DIR/model.json while the simulator is the same; `why_not` once one has failed."""

    def __init__(self, directory, simulator):
        self.path, self.simulator, self.why_not = directory / "model.json", simulator, None
        try:
            kept = json.loads(self.path.read_text())
        except (FileNotFoundError, ValueError):
            kept = {}
        self.known = kept["results"] if kept.get("simulator") == simulator else {}

    def ask(self, command):
        key = shlex.join(command[1:])
        if key not in self.known:
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
                if done.returncode != 0:
                    raise ValueError((done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1])
                self.known[key] = json.loads(done.stdout)
            except (OSError, ValueError, subprocess.TimeoutExpired) as e:
                self.why_not = str(e)
                return None
            kept = {"simulator": self.simulator, "results": self.known}
            self.path.write_text(json.dumps(kept, indent=1) + "\n")
        return self.known[key]


def line(directory, plan, bases, books):
    """Returns model(series, metric, workers, value_of): (value or None, "simulated" or "ideal"). One kind a series."""
    simulations = Simulations(directory, simulator_of(plan))
    results = {}
    for workers, book in books.items() if cost_of(plan) else ():
        for point in book["points"]:
            key = point["series"], workers
            if point["ok"] and key not in results and simulations.why_not is None:
                results[key] = simulations.ask(simulation(plan, point["command"], workers))
    if simulations.why_not:
        print(f"the model line is the ideal one, carousel simulate cannot run this: {simulations.why_not}")
        results = {}

    def model(series, metric, workers, value_of):
        if results and metric != "sequences":  # memory is arithmetic, there is nothing to simulate
            result = results.get((series, workers))
            return (value_of(result) if result else None), "simulated"
        base = bases[series, metric]
        return (ideal(plan, metric, statistics.median(base), workers) if base else None), "ideal"
    return model
