#!/usr/bin/python3
"""`carousel train` learns, gives the same bits however it is run or interrupted, and fails in one clear line with
the last good state in place.
"""
import hashlib
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import time

from e2e_lib import (DEMO, PROGRAM, ROOT, WORK, Checks, clean_environment, make_checkpoint, run, run_command, run_ok,
                     stop_group)

RECIPE = ROOT / "tests" / "data" / "train_tiny.json"
HERE = WORK / "train"
AS_ROOT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
# What a line of the log says about time, machine and place, not about the run.
NOT_OF_THE_RUN = ("seconds", "cpu_seconds", "steps_per_s", "ranks", "threads", "file", "resumed_from")


def fresh(name):
    directory = HERE / name
    shutil.rmtree(directory, ignore_errors=True)
    return directory


def recipe_with(name, change):
    """RECIPE with change(recipe) made, as a file of its own."""
    recipe = json.loads(RECIPE.read_text())
    change(recipe)
    HERE.mkdir(parents=True, exist_ok=True)
    path = HERE / f"{name}.json"
    path.write_text(json.dumps(recipe))
    return path


def train(out, *args, recipe=RECIPE):
    return run("train", recipe, "--out", out, *args, timeout=120)


def train_ok(out, *args, recipe=RECIPE):
    return run_ok("train", recipe, "--out", out, "--quiet", *args, timeout=120)


def lines_of(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def reports_of(out):
    """The lines that must not depend on how the run was made."""
    return [{k: v for k, v in line.items() if k not in NOT_OF_THE_RUN}
            for line in lines_of(out) if line["type"] in ("report", "event")]


def states_of(out):
    return sorted(p.name for p in out.glob("state-*.safetensors"))


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def newest(out):
    names = states_of(out)
    return digest(out / names[-1]) if names else None


def learns(c):
    out = fresh("learns")
    done = run_ok("train", RECIPE, "--out", out, "--report-every", 100, "--json", timeout=120)
    summary = done.json()
    lines = lines_of(out)
    reports = [line for line in lines if line["type"] == "report"]
    events = [(e["step"], name) for e in lines if e["type"] == "event" for name in e["events"]]
    advanced = [step for step, name in events if name == "advanced"]
    c.check(advanced and advanced[0] < 1000, f"no step of the curriculum within 1000 steps: {events}")
    c.check(any(name == "stage" for _, name in events), f"the second stage did not begin: {events}")
    first, last = reports[0]["loss"], [r for r in reports if r["stage"] == "loops grow"][-1]["loss"]
    c.check(last < 0.7 * first, f"the loss went from {first} to {last}")
    c.check(summary["finished"] and summary["step"] == 1300, f"the summary says {summary}")
    c.equal(lines[0]["type"], "header", "first line of the log")
    c.equal(lines[0]["levels"], ["hop 1", "hop 2", "hop 3"], "levels in the header")
    c.equal(lines[-1]["reason"], "finished", "last line of the log")
    masses = reports[-1]["exit_mass"]
    c.check(abs(sum(masses) - 1) < 1e-3, f"exit masses {masses} do not sum to 1")
    c.note(f"curriculum at {advanced}, loss {first:.2f} -> {last:.2f}, {reports[-1]['cpu_seconds']:.1f} CPU-seconds")
    answer = run_ok("generate", out / "model", "a>b b>c c>a;a>", "--max-tokens", 1, "--json").json()
    c.equal(len(answer["tokens"]), 1, "tokens that the exported model generates")
    c.check(answer["text"].isalpha(), f"the exported model answers {answer['text']!r}")
    again = train(out, "--resume")
    c.equal(again.code, 0, f"--resume of a finished run: {again}")
    c.equal(states_of(out)[-1], "state-000001300.safetensors", "newest state after the resume of a finished run")


def same_bits(c):
    expected = None
    for ranks, threads in ((1, 1), (1, 2), (2, 1), (2, 2), (4, 1)):
        out = fresh(f"bits-{ranks}-{threads}")
        train_ok(out, "--ranks", ranks, "--threads", threads, "--stop-after", 40, "--report-every", 10)
        found = (newest(out), reports_of(out))
        expected = expected or found
        what = f"{ranks} ranks of {threads} threads"
        c.equal(found[0], expected[0], f"{what}: state")
        c.equal(found[1], expected[1], f"{what}: log")
    out = fresh("bits-other")
    train_ok(out, "--stop-after", 40, "--seed", 2)
    c.check(newest(out) != expected[0], "another seed gives the same state")


def resumes(c):
    whole, parts = fresh("whole"), fresh("parts")
    train_ok(whole, "--stop-after", 300, "--save-every", 100, "--report-every", 50)
    train_ok(parts, "--stop-after", 130, "--save-every", 100, "--report-every", 50)
    train_ok(parts, "--stop-after", 70, "--save-every", 100, "--report-every", 50, "--resume", "--ranks", 2)
    train_ok(parts, "--stop-after", 100, "--save-every", 100, "--report-every", 50, "--resume", "--threads", 2)
    c.equal(newest(parts), newest(whole), "state of a run in three parts")
    c.equal([r for r in reports_of(parts) if r["step"] == 250], [r for r in reports_of(whole) if r["step"] == 250],
            "report after two resumes")
    # From an older state: what came after it is no longer this run's.
    train_ok(parts, "--resume-from", parts / "state-000000200.safetensors", "--stop-after", 10)
    steps = [line["step"] for line in lines_of(parts)]
    c.check(max(steps) == 210, f"the log goes up to step {max(steps)} after going on from step 200 to 210")
    c.equal(states_of(parts), ["state-000000200.safetensors", "state-000000210.safetensors"], "states then")


def stops_at_signals(c):
    whole, out = fresh("unstopped"), fresh("stopped")
    train_ok(whole, "--stop-after", 400)
    for number in (signal.SIGTERM, signal.SIGINT):
        process = subprocess.Popen(
            [PROGRAM, "train", str(RECIPE), "--out", str(out), "--quiet", "--resume", "--save-every", "20",
             "--stop-after", "400"], stderr=subprocess.PIPE, text=True, env=clean_environment())
        began = time.monotonic()
        before = states_of(out)
        while states_of(out) == before and time.monotonic() < began + 30:
            time.sleep(0.005)
        process.send_signal(number)
        _, err = process.communicate(timeout=30)
        what = signal.Signals(number).name
        if process.returncode == 0:  # it was through first
            break
        c.equal(process.returncode, 130, f"exit code after {what}")
        c.check(len(err.splitlines()) == 1 and "go on with --resume" in err, f"after {what}: {err!r}")
    at = int(states_of(out)[-1][6:15])
    if at < 400:
        train_ok(out, "--resume", "--stop-after", 400 - at)
    c.equal(newest(out), newest(whole), "state of a run that signals stopped")


def survives_kills(c):
    """Killed at random moments while it saves after every step: what is there can be gone on from."""
    seed = int(os.environ.get("TRAIN_KILL_SEED", time.time_ns() % 1000000))
    moments = random.Random(seed)
    whole, out = fresh("unkilled"), fresh("killed")
    n_steps, n_kills = 400, 8
    train_ok(whole, "--stop-after", n_steps)
    for i in range(n_kills):
        process = subprocess.Popen(
            [PROGRAM, "train", str(RECIPE), "--out", str(out), "--quiet", "--resume", "--save-every", "1",
             "--stop-after", str(n_steps)], stderr=subprocess.PIPE, text=True, env=clean_environment())
        before, began = states_of(out), time.monotonic()
        while states_of(out) == before and process.poll() is None and time.monotonic() < began + 30:
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.05))
        process.kill()
        _, err = process.communicate()
        c.check(err == "", f"seed {seed}, start {i}: {err!r}")
        if int(states_of(out)[-1][6:15]) >= n_steps:
            break
    at = int(states_of(out)[-1][6:15])
    c.note(f"{i + 1} kills, at step {at} (TRAIN_KILL_SEED={seed})")
    if at < n_steps:
        train_ok(out, "--resume", "--stop-after", n_steps - at)
        c.equal(newest(out), newest(whole), f"state after {n_kills} kills, seed {seed}")
    left = [p.name for p in out.iterdir() if "tmp" in p.name]
    c.equal(left, [], f"seed {seed}: unfinished files left")


def fails(c, what, result, words, out=None, before=None):
    """One line with the words, code 1 or 2, and the states as before."""
    lines = [line for line in result.err.splitlines() if line.startswith("carousel")]
    others = [line for line in result.err.splitlines() if not line.startswith(("carousel", "train: "))]
    c.check(result.code in (1, 2) and not result.is_late, f"{what}: {result}")
    c.check(len(lines) == 1 and not others, f"{what}: not one line: {result.err!r}")
    for word in words:
        c.check(lines and word in lines[0], f"{what}: no {word!r} in {lines}")
    if out is not None:
        c.equal({p.name: digest(p) for p in out.glob("state-*.safetensors")}, before, f"{what}: states changed")


def refuses_bad_input(c):
    out = fresh("bad")
    train_ok(out, "--stop-after", 20, "--save-every", 10)
    before = {p.name: digest(p) for p in out.glob("state-*.safetensors")}
    good = "state-000000020.safetensors"

    fails(c, "a second run in the same directory", train(out), ["holds a run already", "--resume"], out, before)
    fails(c, "another seed", train(out, "--resume", "--seed", 9), [good, "seed"], out, before)
    other = recipe_with("other", lambda r: r["stages"][0].update(lr=2e-3))
    fails(c, "another recipe", train(out, "--resume", recipe=other), [good, "recipe"], out, before)
    fails(c, "a missing recipe", train(out, recipe=HERE / "none.json"), ["none.json does not exist"], out, before)
    unknown = recipe_with("unknown", lambda r: r.update(stagez=1))
    fails(c, "an unknown field", train(out, recipe=unknown), ["stagez"], out, before)
    text = recipe_with("text", lambda r: (r.update(data={"hop": {"text": "none.jsonl"}}), r.pop("curriculum"),
                                          [s.update(seq_length=16) for s in r["stages"]]))
    for ranks in (1, 2):
        fails(c, f"a missing text on {ranks} ranks", train(fresh("text"), "--ranks", ranks, recipe=text), ["none.jsonl"])
    fails(c, "more ranks than shards", train(fresh("ranks"), "--ranks", 5), ["5 ranks for 4 shards"])
    fails(c, "a model of other dimensions", train(fresh("init"), "--init-from", DEMO), ["--init-from", "hidden_size"])
    short = recipe_with("short", lambda r: ([s.update(steps=2, warmup=0) for s in r["stages"]], r.pop("curriculum")))
    train_ok(fresh("short"), recipe=short)
    train_ok(fresh("init"), "--init-from", HERE / "short" / "model", "--stop-after", 2)
    larger = make_checkpoint("train-vocabulary", "--layers", 2, "--d-model", 32, "--ffn", 64, "--heads", 1, "--head-dim", 32,
                             "--kv-heads", 1, "--vocab", 60, "--loops", 2, "--max-positions", 128, "--dtype", "f32")
    fails(c, "another vocabulary", train(fresh("init"), "--init-from", larger), ["--init-from", "vocabulary", "49", "60"])

    # Weight decay of more than 1/lr doubles the weights at every step.
    explodes = recipe_with("explodes", lambda r: (r["stages"][0].update(lr=10, warmup=0),
                                                  r["optimizer"].update(clip=1e9, weight_decay=0.3)))
    for ranks in (1, 2):
        exploded = fresh("explodes")
        result = train(exploded, "--save-every", 2, "--ranks", ranks, recipe=explodes)
        fails(c, f"a loss that is not finite on {ranks} ranks", result, ["the newest state is", "--init-from STATE"])
        c.check("not finite" in result.err or "nan" in result.err, f"no word of the numbers: {result.err}")
        states = states_of(exploded)
        c.check(states and states[-1] in result.err, f"the message names no state of {states}: {result.err}")
        c.equal(lines_of(exploded)[-1]["type"], "end", "last line of the log of a failed run")


def begins_from(c):
    """--init-from takes a model and a state, and is part of what a run is."""
    old = fresh("from-old")
    train_ok(old, "--stop-after", 30)
    state = old / "state-000000030.safetensors"
    slower = recipe_with("slower", lambda r: r["stages"][0].update(lr=1e-4))
    whole, parts = fresh("from-whole"), fresh("from-parts")
    begin = ("--init-from", state)
    train_ok(whole, "--stop-after", 20, *begin, recipe=slower)
    train_ok(parts, "--stop-after", 10, *begin, recipe=slower)
    before = {p.name: digest(p) for p in parts.glob("state-*.safetensors")}
    for what, args in (("without it", ()), ("from another", ("--init-from", whole / "state-000000020.safetensors"))):
        fails(c, f"a resume {what}", train(parts, "--resume", *args, recipe=slower),
              ["state-000000010", "another recipe", "--init-from"], parts, before)
    train_ok(parts, "--stop-after", 10, "--resume", *begin, "--ranks", 2, recipe=slower)
    c.equal(newest(parts), newest(whole), "state of a run from a state in two parts")
    wide = recipe_with("wide", lambda r: r["model"].update(intermediate_size=96))
    fails(c, "a state of another shape", train(fresh("from-wide"), *begin, recipe=wide), ["--init-from", state.name, "another model"])
    model = DEMO / "model.safetensors"
    fails(c, "a file that is no state", train(fresh("from-file"), "--init-from", model), ["--init-from", "not a training state"])


def keeps_to_itself(c):
    """One training a directory; logs that cannot be opened; signals before the first step."""
    def start(*args):
        return subprocess.Popen([PROGRAM, "train", *map(str, args)], stderr=subprocess.PIPE, text=True, env=clean_environment())

    out = fresh("locked")
    first = start(RECIPE, "--out", out, "--quiet", "--save-every", 1)
    began = time.monotonic()
    while not states_of(out) and time.monotonic() < began + 30:
        time.sleep(0.01)
    fails(c, "a directory that is in use", train(out, "--resume"), ["another training", f"pid {first.pid}", str(out)])
    first.terminate()
    first.communicate(timeout=30)
    c.equal(first.returncode, 130, "exit code of the first training")
    train_ok(out, "--resume", "--stop-after", 1)

    pipe = HERE / "pipe"
    pipe.unlink(missing_ok=True)
    os.mkfifo(pipe)
    for what, path, word in (("a log in no directory", HERE / "none" / "log", "No such file"),
                             ("a log that nobody reads", pipe, "nobody reads")):
        for ranks in (1, 2):
            unlogged = fresh("unlogged")
            fails(c, what, train(unlogged, "--log", path, "--ranks", ranks, "--save-every", 1), [str(path), word])
            c.equal(states_of(unlogged), [], f"{what}: states")

    # A text of 20 MB takes a second to read.
    (HERE / "long.jsonl").write_text((json.dumps({"text": "abcdefgh " * 40}) + "\n") * 60000)
    reads = recipe_with("reads", lambda r: (r.update(data={"hop": {"text": "long.jsonl"}}), r.pop("curriculum"),
                                            [s.update(seq_length=16) for s in r["stages"]]))
    for number in (signal.SIGTERM, signal.SIGINT):
        out = fresh("reads")
        process = start(reads, "--out", out)
        began = time.monotonic()
        while not (out / "lock").exists() and time.monotonic() < began + 30:
            time.sleep(0.001)
        process.send_signal(number)
        process.communicate(timeout=30)
        c.equal(process.returncode, -number, "exit code of a signal during the opening")
        c.equal(states_of(out), [], "states of a run that ended during its opening")


def ranks_fail_together(c):
    one = recipe_with("one-shard", lambda r: r.update(shards=1))
    command = ["mpirun", "--quiet", "--oversubscribe"]
    result = run_command([*command, "-n", 1, PROGRAM, "train", RECIPE, "--out", fresh("uneven"), ":",
                          "-n", 1, PROGRAM, "train", one, "--out", fresh("uneven-1")], timeout=60, env=AS_ROOT)
    fails(c, "a rank with too few shards", result, ["rank 1", "2 ranks for 1 shards"])

    out = fresh("silent")
    job = subprocess.Popen([*command, "-n", "2", PROGRAM, "train", str(RECIPE), "--out", str(out), "--quiet", "--save-every", "1",
                            "--silence-limit", "2"], stderr=subprocess.PIPE, text=True, env={**clean_environment(), **AS_ROOT},
                           start_new_session=True)
    began = time.monotonic()
    while not states_of(out) and time.monotonic() < began + 30:
        time.sleep(0.01)
    first = int((out / "lock").read_text().split()[1])
    stopped = [pid for pid in children_of(job.pid) if pid != first]
    c.equal(len(stopped), 1, "other ranks")
    os.kill(stopped[0], signal.SIGSTOP)
    began = time.monotonic()
    while lines_of(out)[-1]["type"] != "end" and time.monotonic() < began + 30:
        time.sleep(0.1)
    c.check("rank 1" in lines_of(out)[-1].get("reason", ""), f"a silent rank: the log ends with {lines_of(out)[-1]}")
    c.check(time.monotonic() - began < 20, "a silent rank is waited for too long")
    stop_group(job)
    job.communicate()


def children_of(pid):
    return [int(word) for word in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def survives_a_full_disk(c):
    out = fresh("full")
    train_ok(out, "--stop-after", 20)
    before = {p.name: digest(p) for p in out.glob("state-*.safetensors")}
    result = run_command(["prlimit", "--fsize=100000", PROGRAM, "train", RECIPE, "--out", out, "--resume",
                          "--save-every", "10"])
    fails(c, "a state that does not fit", result, ["state-000000030", "File too large", "--resume"], out, before)
    c.equal([p.name for p in out.iterdir() if "tmp" in p.name], [], "unfinished files of a full disk")
    result = train(fresh("full-log"), "--log", "/dev/full")
    fails(c, "a log that cannot be written", result, ["/dev/full", "No space left"])
    # A state that is cut short: the message names the older one, which still works.
    train_ok(out, "--resume", "--stop-after", 20)
    os.truncate(out / "state-000000040.safetensors", 5000)
    fails(c, "a cut state", train(out, "--resume"), ["state-000000040", "state-000000020"])
    train_ok(out, "--resume-from", out / "state-000000020.safetensors", "--stop-after", 20)
    whole = fresh("full-whole")
    train_ok(whole, "--stop-after", 40)
    c.equal(newest(out), newest(whole), "state after a cut one was replaced")


def looks_at_examples(c):
    """Every recipe that comes with the program can be looked at, also where its data is not; training then says so."""
    recipes = sorted((ROOT / "train" / "recipes").glob("*.json"))
    c.check(len(recipes) >= 3, f"recipes: {recipes}")
    for recipe in recipes:
        found = run_ok("train", "--check", recipe, "--json").json()
        c.check(found["parameters"] > 0 and found["stages"], f"{recipe.name}: --check says {found}")
        c.check(all(not pathlib.Path(name).exists() for name in found["missing_files"]), f"{recipe.name}: {found}")
        shown = run_ok("train", "--check", recipe).out
        c.equal(shown.count("not here yet"), len(found["missing_files"]), f"{recipe.name}: files not here")
        if found["missing_files"]:
            result = run("train", recipe, "--out", fresh("example"))
            # The large one has no room for its gradients on most machines, which is noticed first.
            says = any(words in result.err for words in (found["missing_files"][0], "no memory for"))
            c.check(result.code == 1 and says and result.err.count("\n") == 1, f"{recipe.name}: {result.err!r}")
    names = {recipe.name for recipe in recipes}
    c.check({"demo.json", "ouro-1.4b.json"} <= names, f"recipes: {names}")


def main():
    c = Checks("e2e_train")
    for test in (looks_at_examples, learns, same_bits, resumes, stops_at_signals, survives_kills, refuses_bad_input,
                 begins_from, keeps_to_itself, ranks_fail_together,
                 survives_a_full_disk):
        began = time.monotonic()
        c.attempt(test)
        c.note(f"{test.__name__}: {time.monotonic() - began:.1f} s")
    c.close()


if __name__ == "__main__":
    main()
