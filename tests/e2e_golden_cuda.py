#!/usr/bin/python3
"""The backend cuda against the independent float64 model, on the emulated device (make CUDA=emulated) or on a GPU.

Logits, lambda and cdf of all loops and positions as in e2e_golden.py, then one batch of prompts a model, full and with
exact exits at several q, with tokens and exit loops as the reference has them.

Weights that are bf16 already, and others that the GPU rounds; activations and K/V are bf16 in either case. A rounding
to bf16 is off by 2^-9 = 0.002 of a number at most, and a row meets some 20 of them a loop: TOLERANCE is 0.03, and what
was found at worst is printed beside it. A hundredth of what is allowed would be another arithmetic than bf16: it fails.
An exit or a token that is nearer than TOLERANCE (of the largest logit) to being another one is counted, not compared.
"""
import json
import os
import pathlib
import random

ROOT = pathlib.Path(__file__).resolve().parent.parent
os.environ.setdefault("CAROUSEL", str(ROOT / "build" / "emulated" / "carousel"))

import e2e_golden  # noqa: E402
from e2e_lib import WORK, Checks, Failure, make_checkpoint, run_ok  # noqa: E402

TOLERANCE = 0.03
N_TOKENS = 2
GPU = ["--backend", "cuda", "--kv-memory", "4M"]
# As in e2e_golden.py. Heads of a GPU are multiples of 16 wide.
SHAPES = [
    ("cuda-grouped", ["--d-model", 96, "--ffn", 160, "--heads", 6, "--kv-heads", 2, "--head-dim", 16, "--vocab", 77,
                      "--loops", 3, "--seed", 21], 0, 37),
    ("cuda-f16-tied", ["--dtype", "f16", "--tied", "--vocab", 99, "--loops", 2, "--seed", 22], 0, 20),
    ("cuda-sharded", ["--shards", 3, "--dtype", "bf16", "--head-dim", 32, "--seed", 23], 0, 18),
    ("cuda-llama", ["--arch", "llama", "--dtype", "bf16", "--layers", 3, "--heads", 6, "--seed", 24], 0, 21),
]
QS = [0.2, 0.5, 0.8]


def write_lines(path, model, rng):
    """custom_id -> (prompt, q); q is None where all loops run."""
    lines = {}
    with open(path, "w") as out:
        for i in range(12):
            q = QS[i % 4] if model.is_ouro and i % 4 < len(QS) else None
            prompt = [rng.randrange(model.vocab) for _ in range(1 + 5 * (i % 5))]
            loops = {"mode": "full"} if q is None else {"mode": "exact", "exit_threshold": q}
            lines[f"line-{i}"] = prompt, q
            out.write(json.dumps({"custom_id": f"line-{i}", "prompt": prompt, "max_tokens": N_TOKENS, "temperature": 0,
                                  "ignore_eos": True, "return_token_ids": True, "loops": loops}) + "\n")
    return lines


def compare_generations(c, name, directory, model, n_loops, rng):
    """Through the engine: batches of several prompts, the exit rule and the sampler on the device."""
    source, target = WORK / f"{name}.in.jsonl", WORK / f"{name}.out.jsonl"
    lines = write_lines(source, model, rng)
    target.unlink(missing_ok=True)
    run_ok("batch", directory, "-i", source, "-o", target, *c.options, *e2e_golden.loops_of(n_loops), timeout=120,
           env=c.env)
    answers = [json.loads(line) for line in target.read_text().splitlines()]
    c.equal(sorted(a["custom_id"] for a in answers), sorted(lines), f"{name}: answers")
    for answer in answers:
        if answer["error"]:
            raise Failure(f"{name}: {answer}")
        body = answer["response"]["body"]
        prompt, q = lines[answer["custom_id"]]
        expected = c.reference.generate(model, prompt, N_TOKENS, q or 1.0, q is None, 1, [], True)
        hidden, _ = model.forward(prompt)
        near = TOLERANCE * abs(model.logits(hidden[-1, -1])).max()
        if (q is not None and (expected["margin"] or 1) < TOLERANCE) or expected["top2_gap"] < near:
            c.borderline += 1
            continue
        c.compared += 1
        where = f"{name}, {answer['custom_id']}, {len(prompt)} positions, q={q}"
        c.equal(body["loop_stats"]["exit_loops"], expected["exit_loops"], f"{where}: exit loops")
        c.equal(body["choices"][0]["token_ids"], expected["tokens"], f"{where}: tokens")
        for loop in expected["exit_loops"] if q is not None else []:
            c.exits[loop] = c.exits.get(loop, 0) + 1


def compare_shape(c, name, directory, n_loops, length):
    model = c.reference.Model(directory, n_loops)
    rng = random.Random(name)
    ids = [rng.randrange(model.vocab) for _ in range(length)]
    e2e_golden.compare_lens(c, name, directory, model, n_loops, ids)
    compare_generations(c, name, directory, model, n_loops, rng)


def main():
    c = Checks("e2e_golden_cuda")
    shown = os.environ.get("CUDA_VISIBLE_DEVICES", "0")
    e2e_golden.prepare(c, TOLERANCE, GPU, {"CUDA_VISIBLE_DEVICES": shown})
    for name, args, n_loops, length in SHAPES:
        c.attempt(compare_shape, name, make_checkpoint(name, *args), n_loops, length)
    total = c.borderline + c.compared
    c.note(f"{c.rows} rows of logits, off by {c.worst:.4f} at most of {TOLERANCE}; {c.compared} exits and generations "
           f"compared, {c.borderline} too near to call; exits by loop {dict(sorted(c.exits.items()))}")
    c.check(c.worst > TOLERANCE / 100, f"off by {c.worst:.1e} at most: that is not bf16")
    c.check(c.borderline <= total / 2, f"{c.borderline} of {total} were too near to call")
    c.check(len(c.exits) >= 3, f"exits at {len(c.exits)} different loops only: the gates are not exercised")
    c.close()


if __name__ == "__main__":
    main()
