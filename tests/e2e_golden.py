#!/usr/bin/python3
"""Logits, lambda and cdf of all loops and positions, and exit loops, against an independent float64 model.

Relative error of a row of logits: max |found - expected| / max |expected| over the vocabulary; lambda and cdf
are probabilities, their error is |found - expected|. Both must be within 2e-5 for activations and K/V in
float32, whatever the dtype of the checkpoint (its numbers are widened exactly by both sides).

Exit loops: those `lens` marks at every position, and `generate --exit exact` with 4 tokens, for every q of QS.
Where the cdf comes within 2e-5 of q, or the two best logits are within 2e-5, float32 may go either way: such
a position or run is counted, not compared, and more than 5 % of them fail the test.
"""
import random

import numpy as np

from e2e_lib import DEMO, Checks, Failure, ids_text, make_checkpoint, reference, run_json, run_ok

TOLERANCE = 2e-5
QS = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.99, 1.0]
# name, arguments of scripts/make_checkpoint.py, --loops for both sides (0 = the model's), prompt lengths
SHAPES = [
    ("tiny", ["--seed", 1], 0, [1, 2, 17, 64, 300]),
    ("one-layer", ["--layers", 1, "--loops", 8, "--seed", 2], 0, [1, 33]),
    ("four-layers", ["--layers", 4, "--loops", 3, "--heads", 4, "--kv-heads", 1, "--seed", 3], 0, [5, 100]),
    ("odd-heads", ["--layers", 2, "--d-model", 90, "--ffn", 130, "--heads", 5, "--kv-heads", 5,
                   "--head-dim", 18, "--vocab", 101, "--loops", 2, "--seed", 4], 0, [1, 40]),
    ("grouped", ["--layers", 3, "--d-model", 96, "--ffn", 257, "--heads", 9, "--kv-heads", 3,
                 "--head-dim", 14, "--vocab", 77, "--loops", 5, "--seed", 5], 0, [3, 65]),
    ("bf16", ["--layers", 2, "--dtype", "bf16", "--vocab", 151, "--loops", 6, "--seed", 6], 0, [2, 80]),
    ("f16", ["--layers", 2, "--dtype", "f16", "--vocab", 150, "--loops", 7, "--seed", 7], 0, [2, 80]),
    ("tied", ["--layers", 2, "--tied", "--vocab", 99, "--loops", 1, "--seed", 8], 0, [1, 50]),
    ("sharded", ["--layers", 4, "--shards", 3, "--dtype", "bf16", "--seed", 9], 2, [10, 129]),
    ("llama", ["--arch", "llama", "--layers", 3, "--heads", 6, "--kv-heads", 2, "--seed", 10], 0, [1, 70]),
    ("llama-looped", ["--arch", "llama", "--tied", "--dtype", "bf16", "--seed", 11], 3, [20]),
]


CPU = ["--kv-dtype", "f32"]


def loops_of(n_loops):
    return ["--loops", n_loops] if n_loops else []


def compare_lens(c, name, directory, model, n_loops, ids):
    """c.options say where it runs, c.tolerance how near it comes, c.env what it sees of this machine."""
    where = f"{name}, {len(ids)} positions"
    q = QS[c.n_lens % len(QS)]
    c.n_lens += 1
    found = run_json("lens", directory, "--ids", ids_text(ids), "--top", model.vocab, *c.options,
                     "--exit-threshold", q, *loops_of(n_loops), timeout=120, env=c.env)
    hidden, lambdas = model.forward(ids)
    cdf = c.reference.exit_cdf(lambdas)
    positions = found["positions"]
    c.equal(len(positions), len(ids), f"{where}: positions")
    for i, position in enumerate(positions):
        loop, margin = c.reference.exit_loop(cdf[:, i], q, False, 1)
        if margin < c.tolerance:
            c.borderline += 1
            continue
        c.compared += 1
        c.equal(position["exit_loop"], loop, f"{where}: exit of position {i} at q={q}")
    worst = [0.0, 0.0, 0.0]
    for t in range(model.n_loops):
        logits = model.logits(hidden[t])
        for i, position in enumerate(positions):
            c.rows += 1
            loops = position["loops"]
            if len(loops) != model.n_loops or len(loops[t]["top"]) != model.vocab:
                raise Failure(f"{where}: position {i} has {len(loops)} loops, {len(loops[t]['top'])} logits")
            row = np.full(model.vocab, np.nan)
            row[[e["id"] for e in loops[t]["top"]]] = [e["logit"] for e in loops[t]["top"]]
            errors = [np.max(np.abs(row - logits[i])) / np.max(np.abs(logits[i])),
                      abs(loops[t]["cdf"] - cdf[t, i])]
            # A model without a gate has no lambda.
            errors.append(abs(loops[t]["lambda"] - lambdas[t, i]) if model.is_ouro else 0.0)
            # nan is not <= anything, so a logit that did not come fails.
            if not all(e <= c.tolerance for e in errors):
                c.check(False, f"{where}: position {i} loop {t + 1}: logits off by {errors[0]:.2e}, "
                               f"cdf {errors[1]:.2e}, lambda {errors[2]:.2e}")
            else:
                c.passed += 1
            worst = [max(w, e) for w, e in zip(worst, errors)]
    c.worst = max(c.worst, *worst)
    c.note(f"{where:28} T={model.n_loops}: worst logits {worst[0]:.1e}  cdf {worst[1]:.1e}  "
           f"lambda {worst[2]:.1e}")


def compare_exits(c, name, directory, model, n_loops, ids):
    for q in QS:
        expected = c.reference.generate(model, ids, 4, q, False, 1, [], True)
        margin = expected["margin"]
        if (margin is not None and margin < TOLERANCE) or expected["top2_gap"] < TOLERANCE:
            c.borderline += 1
            continue
        found = run_json("generate", directory, "--ids", ids_text(ids), "--max-tokens", 4, "--exit", "exact",
                         "--exit-threshold", q, "--ignore-eos", "--kv-dtype", "f32", *loops_of(n_loops))
        c.compared += 1
        where = f"{name}, {len(ids)} positions, q={q}"
        c.equal(found["exit_loops"], expected["exit_loops"], f"{where}: exit loops")
        c.equal(found["tokens"], expected["tokens"], f"{where}: tokens")
        for loop in expected["exit_loops"]:
            c.exits[loop] = c.exits.get(loop, 0) + 1


def compare_shape(c, name, directory, n_loops, lengths):
    model = c.reference.Model(directory, n_loops)
    rng = random.Random(name)
    for n in lengths:
        ids = [rng.randrange(model.vocab) for _ in range(n)]
        compare_lens(c, name, directory, model, n_loops, ids)
    if model.is_ouro:
        ids = [rng.randrange(model.vocab) for _ in range(lengths[-1])]
        compare_exits(c, name, directory, model, n_loops, ids)


def test_isas(c):
    """Every instruction set this machine has, not only the best one, equals the reference."""
    directory = make_checkpoint("grouped", *SHAPES[4][1])
    model = c.reference.Model(directory)
    ids = [5, 1, 70, 33, 2, 2, 9]
    hidden, _ = model.forward(ids)
    for isa in ("portable", "avx2", "avx512", "amx"):
        try:
            found = run_ok("lens", directory, "--ids", ids_text(ids), "--top", model.vocab, "--kv-dtype",
                           "f32", "--isa", isa, "--json").json()
        except Failure as e:
            c.check("instruction set" in str(e) or "isa" in str(e), str(e))
            c.note(f"{isa}: not on this machine")
            continue
        worst = 0.0
        for t in range(model.n_loops):
            logits = model.logits(hidden[t])
            for i in range(len(ids)):
                row = np.full(model.vocab, np.nan)
                for e in found["positions"][i]["loops"][t]["top"]:
                    row[e["id"]] = e["logit"]
                error = np.max(np.abs(row - logits[i])) / np.max(np.abs(logits[i]))
                worst = max(worst, error) if error == error else np.inf
        c.check(worst <= TOLERANCE, f"--isa {isa}: logits off by {worst:.2e}")


def prepare(c, tolerance, options, env):
    c.reference = reference()
    c.tolerance, c.options, c.env = tolerance, options, env
    c.rows = c.borderline = c.compared = c.n_lens = 0
    c.worst, c.exits = 0.0, {}


def main():
    c = Checks("e2e_golden")
    prepare(c, TOLERANCE, CPU, {})
    for name, args, n_loops, lengths in SHAPES:
        directory = make_checkpoint(name, *args)
        c.attempt(compare_shape, name, directory, n_loops, lengths)
    c.attempt(compare_shape, "demo", DEMO, 0, [1, 45, 200])
    c.attempt(test_isas)
    total = c.borderline + c.compared
    c.note(f"{c.rows} rows of logits; {c.compared} exits and generations compared, "
           f"{c.borderline} too near to call; "
           f"generations' exits by loop {dict(sorted(c.exits.items()))}")
    c.check(c.borderline <= 0.05 * total, f"{c.borderline} of {total} were too near to call")
    c.check(len(c.exits) >= 5, f"exits at {len(c.exits)} different loops only: the gates are not exercised")
    c.close()


if __name__ == "__main__":
    main()
