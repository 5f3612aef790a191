#!/usr/bin/env python3
"""carousel gate from end to end: a gate fitted anew gives back what the demo's loops can do, its table is
what the engine then does, any number of workers gives the same files, and the states it fits on are those
of an independent float64 model.
"""
import json
import pathlib
import random
import shutil
import struct
import sys

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from e2e_lib import DEMO, ROOT, WORK, Checks, Failure, make_checkpoint, reference, run, run_command, run_json, run_ok

PLACE = WORK / "gate"
GATE = ("model.early_exit_gate.weight", "model.early_exit_gate.bias")


def hop(rng):
    """One cycle over n letters, and how many arrows to follow: the difficulty is the number of arrows."""
    letters = rng.sample("abcdefghijklmnopqrstuvwxyz", rng.randint(3, 8))
    pairs = list(zip(letters, letters[1:] + letters[:1]))
    follow = dict(pairs)
    rng.shuffle(pairs)
    arrows = rng.randint(1, min(4, len(letters) - 1))
    start = at = rng.choice(letters)
    for _ in range(arrows):
        at = follow[at]
    text = " ".join(f"{a}>{b}" for a, b in pairs) + f";{start}" + ">" * arrows
    return {"prompt": text, "answer": at, "level": arrows}


def write_lines(name, lines):
    path = PLACE / name
    path.write_text("".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines))
    return path


def read_tensors(path):
    data = path.read_bytes()
    (n,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8:8 + n])
    return {name: (v["dtype"], v["shape"], data[8 + n + v["data_offsets"][0]:8 + n + v["data_offsets"][1]])
            for name, v in header.items() if name != "__metadata__"}


def zeroed_demo():
    """The demo model with a gate of zeros: lambda is 1/2 everywhere."""
    directory = PLACE / "zeroed"
    shutil.copytree(DEMO, directory)
    path = directory / "model.safetensors"
    data = bytearray(path.read_bytes())
    (n,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8:8 + n])
    for name in GATE:
        a, b = header[name]["data_offsets"]
        data[8 + n + a:8 + n + b] = bytes(b - a)
    path.write_bytes(data)
    return directory


def gate(model, out, *args, **options):
    shutil.rmtree(PLACE / out, ignore_errors=True)
    return run_json("gate", model, "--out", PLACE / out, *args, **options)


def by_q(found):
    return {x["q"]: x for x in found["held_out"]["thresholds"]}


def test_refit(checks, model, data, held, problems):
    found = gate(model, "refit", "--data", data, "--validation", held)
    level = sum(x["level"] for x in problems) / len(problems)
    checks.equal(found["held_out"]["rows"], len(problems), "refit: rows held out")
    for q in (0.1, 0.5, 0.9):
        old, new = by_q(found)[q]["old"], by_q(found)[q]["new"]
        checks.equal(new["accuracy"], 1.0, f"refit: accuracy at q = {q}")
        checks.check(abs(new["mean_loops"] - level) < 0.1,
                     f"refit: {new['mean_loops']:.3f} loops at q = {q}, the mean difficulty is {level:.3f}")
        checks.equal(sum(new["exits"]), len(problems), f"refit: exits at q = {q}")
        checks.check(old["accuracy"] < 0.8 or old["mean_loops"] > 3.5,
                     f"refit: the gate of zeros is no good at q = {q}: {old}")
    fixed = found["held_out"]["loops"]
    checks.equal(fixed[3]["accuracy"], 1.0, "refit: accuracy of the last loop")
    checks.check(all(a["accuracy"] < b["accuracy"] for a, b in zip(fixed, fixed[1:])),
                 "refit: every loop solves more")
    checks.check(found["fit"]["last_loss"] < 0.05 < 0.69 < found["fit"]["first_loss"] < 0.7,
                 f"refit: loss {found['fit']['first_loss']} -> {found['fit']['last_loss']}")
    checks.note(f"refit: mean difficulty {level:.3f}, mean loops at q = 0.1, 0.5, 0.9: " +
                ", ".join(f"{by_q(found)[q]['new']['mean_loops']:.3f}" for q in (0.1, 0.5, 0.9)))
    return found


def test_files(checks, model, found):
    out = PLACE / "refit"
    patch = read_tensors(out / "gate.safetensors")
    checks.equal({k: v[:2] for k, v in patch.items()}, {GATE[0]: ("F32", [1, 64]), GATE[1]: ("F32", [1])},
                 "files: the patch")
    merged, own = read_tensors(out / "model" / "model.safetensors"), read_tensors(model / "model.safetensors")
    for name, value in own.items():
        checks.equal(merged.get(name), patch[name] if name in GATE else value, f"files: tensor {name}")
    checks.equal((out / "model" / "tokenizer.json").read_bytes(), (DEMO / "tokenizer.json").read_bytes(),
                 "files: the tokenizer")
    checks.equal(json.loads((out / "gate.json").read_text()), found, "files: --json is gate.json")
    checks.equal(sorted(x.name for x in out.iterdir()), ["gate.json", "gate.safetensors", "model"],
                 "files: nothing else stays behind")


def test_engine_agrees(checks, found, problems):
    """The table is what the engine does with the merged model."""
    lines = [{"prompt": x["prompt"], "max_tokens": 1, "custom_id": str(i)} for i, x in enumerate(problems)]
    for q in (0.3, 0.9):
        answers = PLACE / f"answers-{q}.jsonl"
        answers.unlink(missing_ok=True)
        run_ok("batch", PLACE / "refit" / "model", "-i", write_lines("batch.jsonl", lines), "-o", answers,
               "-q", q)
        exits, n_right = [0] * 4, 0
        for line in answers.read_text().splitlines():
            record = json.loads(line)
            body = record["response"]["body"]
            exits[body["loop_stats"]["exit_loops"][0] - 1] += 1
            n_right += body["choices"][0]["text"] == problems[int(record["custom_id"])]["answer"]
        expected = by_q(found)[q]["new"]
        checks.equal(exits, expected["exits"], f"engine: exits at q = {q}")
        checks.equal(n_right / len(problems), expected["accuracy"], f"engine: accuracy at q = {q}")


def test_workers(checks, model, data):
    results = []
    for args in (["--workers", 1], ["--workers", 3, "--prefill-chunk", 5, "--prefill", "lazy"],
                 ["--transport", "inproc", "--workers", 2, "--batching", "greedy"]):
        gate(model, "workers", "--data", data, "--holdout", 0.3, *args)
        results.append(((PLACE / "workers" / "gate.safetensors").read_bytes(),
                        (PLACE / "workers" / "gate.json").read_bytes()))
    checks.check(results[0] == results[1], "workers: 3 over MPI give the files of 1")
    checks.check(results[0] == results[2], "workers: 2 in one process give the files of 1")
    gate(model, "workers", "--data", data, "--holdout", 0.3, "--seed", 1)
    checks.check(results[0][0] != (PLACE / "workers" / "gate.safetensors").read_bytes(),
                 "workers: another seed is another fit")


def test_labels(checks, model, data):
    future = gate(model, "labels", "--data", data, "--holdout", 0.3)
    for label in ("past", "next"):
        other = gate(model, "labels", "--data", data, "--holdout", 0.3, "--label", label)
        checks.check(by_q(other)[0.1]["new"]["accuracy"] < by_q(future)[0.1]["new"]["accuracy"],
                     f"labels: {label} exits too early at q = 0.1, future does not")
    checks.equal(other["fit"]["label"], "next", "labels: the name in gate.json")
    epochs = gate(model, "labels", "--data", data, "--epochs", 3, "--batch", 50, "--merge", "none")
    checks.equal(epochs["fit"]["steps"], -(-3 * epochs["train"]["rows"] // 50), "labels: steps of 3 epochs")
    checks.check(not (PLACE / "labels" / "model" / "config.json").exists(), "labels: --merge none")


def test_continued(checks, model, problems):
    """Prompts alone: the model's own greedy answers, each with the newline that ends it."""
    data = write_lines("prompts.jsonl", [{"prompt": x["prompt"]} for x in problems])
    found = gate(model, "continued", "--data", data, "--max-tokens", 4)
    texts = found["train"]["texts"] + found["held_out"]["texts"]
    rows = found["train"]["rows"] + found["held_out"]["rows"]
    checks.equal(found["train"]["generated"], len(problems), "continued: texts")
    checks.equal((texts, rows), (len(problems), 2 * len(problems)), "continued: texts and rows")
    checks.equal(found["held_out"]["loops"][3]["exact"], 1.0, "continued: its own answers are its best")
    checks.equal(by_q(found)[0.5]["new"]["exact"], 1.0, "continued: also where the new gate exits")


# ---- any checkpoint ------------------------------------------------------------------------------


def read_states(path, n_loops, d):
    kind = np.dtype([("index", "<u4"), ("hits", "<u4"), ("ce", "<f4", n_loops), ("lambda", "<f4", n_loops),
                     ("hidden", "<f4", (n_loops, d))])
    return np.fromfile(path, dtype=kind)


def check_rows(checks, what, model, rows, ids, first_target):
    """Rows of one text against the reference."""
    hidden, lambdas = model.forward(ids[:-1])
    hidden, lambdas = np.asarray(hidden), np.asarray(lambdas)
    logits = hidden @ model.w[model.head_name].T
    logp = logits - logits.max(-1, keepdims=True)
    logp -= np.log(np.exp(logp).sum(-1, keepdims=True))
    at = np.arange(first_target - 1, len(ids) - 1)
    targets = np.asarray(ids[first_target:])
    ce = -logp[:, at, targets].T
    best = np.sort(logits[:, at], axis=-1)
    clear = (best[..., -1] - best[..., -2]).T > 1e-3
    hits = (logits[:, at].argmax(-1) == targets).T
    found_hits = (rows["hits"][:, None] >> np.arange(model.n_loops)) & 1
    scale = np.abs(hidden).max()
    worst = np.abs(rows["hidden"] - hidden[:, at].transpose(1, 0, 2)).max() / scale
    checks.equal(list(rows["index"]), list(range(len(at))), f"{what}: places")
    checks.check(worst < 2e-5, f"{what}: hidden states differ by {worst:.2e} of their largest")
    checks.check(np.abs(rows["ce"] - ce).max() < 1e-3, f"{what}: losses differ by {np.abs(rows['ce'] - ce).max():.2e}")
    checks.check(np.abs(rows["lambda"] - lambdas[:, at].T).max() < 1e-4, f"{what}: lambda")
    checks.check((found_hits == hits)[clear].all(), f"{what}: hits")
    return worst


def test_any_checkpoint(checks):
    model_dir = make_checkpoint("gate-bf16", "--dtype", "bf16", "--shards", 3, "--layers", 3, "--d-model", 48,
                                "--heads", 3, "--kv-heads", 1, "--head-dim", 16, "--ffn", 80, "--vocab", 301)
    rng = random.Random(7)
    texts, lines = [], []
    for i in range(14):
        ids = [rng.randrange(301) for _ in range(rng.randint(3, 40))]
        n_prompt = rng.randint(1, len(ids) - 1) if i % 3 else None
        texts.append((ids, n_prompt or 1))
        lines.append({"ids": ids, **({"prompt_tokens": n_prompt} if n_prompt else {})})
    prompt = [5, 17, 200, 3]
    lines.append({"ids": prompt, "prompt_tokens": len(prompt)})
    held = write_lines("ids-held.jsonl", [{"ids": [1, 2, 3, 4]}])
    data = write_lines("ids.jsonl", lines)
    found = gate(model_dir, "any", "--data", data, "--validation", held, "--keep-states", "--kv-dtype", "f32",
                 "--merge", "link", "--max-tokens", 5, "--workers", 2, "--epochs", 2)
    model = reference().Model(model_dir)
    greedy = run_json("generate", model_dir, "--ids", ",".join(map(str, prompt)), "--exit", "full",
                      "--max-tokens", 5, "--kv-dtype", "f32")["tokens"]
    texts.append((prompt + greedy, len(prompt)))
    rows = read_states(PLACE / "any" / "states-train.bin", model.n_loops, 48)
    checks.equal(len(rows), sum(len(ids) - first for ids, first in texts), "any: rows kept")
    at, worst = 0, 0.0
    for i, (ids, first) in enumerate(texts):
        n = len(ids) - first
        worst = max(worst, check_rows(checks, f"any: text {i}", model, rows[at:at + n], ids, first))
        at += n
    checks.note(f"any: {len(rows)} rows, hidden states within {worst:.1e} of the reference")
    merged = PLACE / "any" / "model"
    checks.equal(run("info", merged).code, 0, "any: the linked model opens")
    linked = sorted(merged.glob("weights-*.safetensors"))
    checks.equal([x.stat().st_ino for x in linked],
                 [x.stat().st_ino for x in sorted(model_dir.glob("model-*.safetensors"))], "any: weights are links")
    lens = run_json("lens", merged, "--ids", "1,2,3,4", "--kv-dtype", "f32")
    patch = read_tensors(PLACE / "any" / "gate.safetensors")
    weight, bias = (np.frombuffer(patch[name][2], "<f4").astype(float) for name in GATE)
    hidden = np.asarray(model.forward([1, 2, 3, 4])[0])
    expected = 1 / (1 + np.exp(-(hidden @ weight + bias[0])))
    got = np.asarray([[x["lambda"] for x in p["loops"]] for p in lens["positions"]]).T
    checks.check(np.abs(got - expected).max() < 1e-4, "any: the engine runs the new gate")
    checks.equal(found["n_loops"], model.n_loops, "any: loops")


# ---- what is refused -----------------------------------------------------------------------------


def test_bad_input(checks, model, data):
    llama = make_checkpoint("gate-llama", "--arch", "llama")
    good = json.dumps({"prompt": "a>b b>c c>a;a>", "answer": "b"})
    cases = [
        (["gate", model, "--out", PLACE / "bad"], 2, "no texts; give --data FILE"),
        (["gate", model, "--data", data], 2, "no place for the results; give --out DIR"),
        (["--steps", 3, "--epochs", 2, "--data", data], 2, "--steps and --epochs: give one of them"),
        (["--thresholds", "0.5,1.5", "--data", data], 2, "--thresholds: 1.5 is outside (0, 1]"),
        (["--label", "best", "--data", data], 2, "past|next|future"),
        (["--data", PLACE / "none.jsonl"], 1, "No such file"),
        (["--loops", 1, "--data", data], 1, "there is nothing for a gate to decide"),
        (["--holdout", 1, "--data", data], 2, "--holdout 1 leaves no texts"),
        (["--holdout", 0, "--data", data], 2, "--holdout 0 leaves no texts"),
        (["--lr", 1000, "--data", data, "--out", "/proc/none"], 1, "cannot make /proc/none"),
    ]
    lines = [
        ("{", "line 2: this line"),
        ("[1]", "line 2: this line"),
        ({"text": "a", "prompt": "b"}, "line 2: expected one of prompt"),
        ({"label": 3}, "line 2: expected one of prompt"),
        ({"prompt": "a", "answer": 3}, "line 2: field answer: expected a string, found 3"),
        ({"prompt": "a", "answer": ""}, "line 2: the answer is empty"),
        ({"prompt": "a", "answer": "b", "completion": "b"}, "line 2: expected one of prompt"),
        ({"prompt": "a", "answer": "B"}, "line 2: "),
        ({"ids": [1, 99]}, "line 2: token id 99 at place 1 is outside the vocabulary 0..48"),
        ({"ids": [1, "x"]}, "line 2: field ids[1]: expected a token id"),
        ({"ids": [1, 2], "prompt_tokens": 3}, "line 2: field prompt_tokens: expected 1..2, found 3"),
        ({"ids": [4]}, "line 2: 1 tokens: there is nothing to predict"),
        ({"text": "ab" * 200}, "line 2: 401 tokens; the model has 256 positions: cut the text"),
        ({"prompt": "ab" * 150}, "line 2: 301 tokens; the model has 256 positions"),
    ]
    for i, (line, says) in enumerate(lines):
        path = write_lines(f"bad-{i}.jsonl", [good, line, good])
        cases.append((["--data", path], 1, says))
    for args, code, says in cases:
        if args[0] != "gate":
            args = ["gate", model, "--out", PLACE / "bad", *args]
        found = run(*args)
        checks.check(found.code == code and says in found.err and found.err.count("\n") == 1 and not found.out,
                     f"bad input: expected {says!r} and code {code}: {found}")
    found = run("gate", llama, "--data", data, "--out", PLACE / "bad")
    checks.check(found.code == 1 and "an architecture without an exit gate" in found.err, f"bad input: {found}")
    kept = (PLACE / "refit" / "gate.json").read_bytes()
    found = run("gate", PLACE / "refit" / "model", "--data", data, "--out", PLACE / "refit")
    checks.check(found.code == 1 and "is the model itself; give another --out" in found.err, f"bad input: {found}")
    checks.check((PLACE / "refit" / "gate.json").read_bytes() == kept, "bad input: the refused run wrote nothing")
    checks.check(not (PLACE / "bad" / "gate.safetensors").exists(), "bad input: no gate is written")


def test_plot(checks):
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        checks.note("plot: matplotlib is not installed")
    else:
        script = ROOT / "scripts" / "plot_gate.py"
        done = run_command(["/usr/bin/python3", script, PLACE / "refit" / "gate.json", "-o", PLACE / "gate.svg"])
        checks.check(done.code == 0 and (PLACE / "gate.svg").stat().st_size > 10000, f"plot: {done}")
        done = run_command(["/usr/bin/python3", script, DEMO / "config.json"])
        checks.check(done.code == 1 and "is no gate.json" in done.err, f"plot: {done}")


def main():
    checks = Checks("e2e_gate")
    shutil.rmtree(PLACE, ignore_errors=True)
    PLACE.mkdir(parents=True)
    rng = random.Random(20)
    problems = [hop(rng) for _ in range(900)]
    held_problems = problems[600:]
    model = zeroed_demo()
    data, held = write_lines("train.jsonl", problems[:600]), write_lines("held.jsonl", held_problems)
    few = write_lines("few.jsonl", problems[:150])
    found = checks.attempt(test_refit, model, data, held, held_problems)
    if found is not None:
        checks.attempt(test_files, model, found)
        checks.attempt(test_engine_agrees, found, held_problems)
    checks.attempt(test_workers, model, few)
    checks.attempt(test_labels, model, data)
    checks.attempt(test_continued, model, problems[:100])
    checks.attempt(test_any_checkpoint)
    checks.attempt(test_bad_input, model, few)
    checks.attempt(test_plot)
    checks.close()


if __name__ == "__main__":
    main()
