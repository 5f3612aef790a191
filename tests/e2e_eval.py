#!/usr/bin/python3
"""`carousel eval`: its tables are those of the float64 reference over the same problems, whoever computes them.

The problems it saves are solved by scripts/check_tasks.py, which knows only their text; accuracy, loss and exit
loops are counted anew from scripts/reference.py. Decisions nearer than 2e-5 in float32 may go either way: they are
counted, and as many answers may differ.
"""
import json
import shutil

import numpy as np

from e2e_lib import DEMO, ROOT, WORK, Checks, make_checkpoint, run, run_command, run_json

NEAR = 2e-5
QS = [0.1, 0.3, 0.5, 0.8, 1.0]
ALPHABET = "\n abcdefghijklmnopqrstuvwxyz0123456789=>;+-*?,.:"


def ids_of(text):
    return [1 + ALPHABET.index(c) for c in text]


def expected(ref, model, problems):
    """Per problem: right at each loop, right and exit loops at each q, summed losses, and near decisions."""
    out = []
    for problem in problems:
        prompt, answer = [0] + ids_of(problem["prompt"]), ids_of(problem["answer"])
        hidden, lambdas = model.forward(prompt + answer[:-1])
        logits = model.logits(hidden[:, len(prompt) - 1:])
        cdf = ref.exit_cdf(lambdas)[:, len(prompt) - 1:]
        top = logits.max(axis=-1)

        lse = top + np.log(np.exp(logits - top[..., None]).sum(axis=-1))
        target = np.asarray(answer)
        score = logits[:, np.arange(len(answer)), target]
        hits = logits.argmax(axis=-1) == target
        ordered = np.sort(logits, axis=-1)
        near = (ordered[..., -1] - ordered[..., -2] < NEAR * np.abs(ordered[..., -1])).any()
        record = {"loops": hits.all(axis=1), "loss": (lse - score).sum(axis=1), "exits": {}, "q": {}, "near": near}
        for q in QS:
            found = [ref.exit_loop(cdf[:, i], q, False, 1) for i in range(len(answer))]
            record["near"] |= min(margin for _, margin in found) < NEAR
            record["exits"][q] = [loop for loop, _ in found]
            record["q"][q] = all(hits[loop - 1, i] for i, (loop, _) in enumerate(found))
        out.append(record)
    return out


def compare(c, name, directory, tasks, n, *options):
    WORK.mkdir(parents=True, exist_ok=True)
    saved = WORK / f"eval-{name}.jsonl"
    found = run_json("eval", directory, "--task", tasks, "-n", n, "--seed", 5, "--save", saved, "-q",
                     ",".join(str(q) for q in QS), *options)
    checked = run_command(["/usr/bin/python3", ROOT / "scripts" / "check_tasks.py", "--split", "test", saved])
    c.equal(checked.code, 0, f"{name}: problems are right and of the test split: {checked.out[-300:]}")
    problems = [json.loads(line) for line in saved.read_text().splitlines()]
    c.equal(len(problems), n, f"{name}: problems saved")
    model = c.reference.Model(directory)
    rows = expected(c.reference, model, problems)
    near = sum(r["near"] for r in rows)
    c.check(near <= 0.05 * n, f"{name}: {near} of {n} decisions too near to call")
    n_tokens = sum(len(p["answer"]) for p in problems)
    everything = found["all"]
    c.equal(everything["answers"], n, f"{name}: answers")
    c.equal(everything["tokens"], n_tokens, f"{name}: tokens")
    for t in range(found["loops"]):
        right = sum(bool(r["loops"][t]) for r in rows)
        c.check(abs(everything["exact_by_loop"][t] * n - right) <= near + 1e-6, f"{name}: right at loop {t + 1}")
        loss = sum(r["loss"][t] for r in rows) / n_tokens
        c.check(abs(everything["loss_by_loop"][t] - loss) < 1e-4 * max(1, loss), f"{name}: loss at loop {t + 1}")
    for i, q in enumerate(QS):
        right = sum(r["q"][q] for r in rows)
        c.check(abs(everything["exact_by_q"][i] * n - right) <= near + 1e-6, f"{name}: right at q = {q}")
        mean = sum(sum(r["exits"][q]) for r in rows) / n_tokens
        limit = near * found["loops"] / n_tokens + 1e-6
        c.check(abs(everything["mean_exit_by_q"][i] - mean) <= limit, f"{name}: mean exit loop at q = {q}")
    answers = sum(level["answers"] for level in found["levels"])
    c.equal(answers, n, f"{name}: answers of all levels")
    return found


def against_reference(c):
    compare(c, "demo", DEMO, "hop,chain", 64)
    # A random model with the demo's alphabet: answers of several tokens, all wrong, gates that fire everywhere.
    random = make_checkpoint("eval-random", "--vocab", 49, "--gate-scale", 2.5, "--gate-bias", -0.5, "--loops", 3)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO / name, random / name)
    compare(c, "random", random, "addition", 20, "--set", "operands=4")


def workers_agree(c):
    arguments = ["eval", DEMO, "--task", "hop,chain", "-n", 100]
    one = run_json(*arguments)
    for place in (["--workers", 1, "--transport", "inproc"], ["--workers", 3], ["--max-batch-rows", 7]):
        c.equal(run_json(*arguments, *place), one, f"the same with {place}")


def bad_input(c):
    no_tokenizer = make_checkpoint("eval-bare", "--vocab", 49)
    cases = [
        (["eval"], 2, "no task given; --task hop,chain asks both"),
        (["eval", "--task", "hob"], 2, "there is no task 'hob'; there are hop, chain, addition, phop, igsm"),
        (["eval", "--task", "hop", "--set", "letters=99"], 2, "letters of hop is 3 to 26"),
        (["eval", "--task", "hop", "-q", "0.5,2"], 1, "--thresholds: 2 is not in (0, 1]"),
        (["eval", "--task", "hop", "--only-save"], 2, "--only-save needs --save FILE"),
        (["eval", "--task", "hop", "--save", "/dev/full", "-n", 500], 1, "No space left"),
        (["eval", "--task", "hop", "--save", "/nowhere/x"], 1, "cannot write /nowhere/x: No such file"),
        (["eval", no_tokenizer, "--task", "hop"], 1, "tokenizer.json"),
        (["eval", "--task", "phop"], 1, "the model has 256 positions"),
    ]
    for arguments, code, says in cases:
        result = run(*arguments)
        what = " ".join(str(a) for a in arguments)
        c.equal(result.code, code, f"{what}: exit code")
        c.check(says in result.err, f"{what}: {result.err!r} does not say {says!r}")
        c.equal(result.err.count("\n"), 1, f"{what}: one line: {result.err!r}")


def main():
    c = Checks("e2e_eval")
    c.reference = __import__("e2e_lib").reference()
    c.attempt(against_reference)
    c.attempt(workers_agree)
    c.attempt(bad_input)
    c.close()


main()
