#!/usr/bin/python3
"""Exact early exit: the tokens and exit loops of the reference that computes all loops for all tokens, while
fewer loop rows are computed and parked rows are there, some of them revived.

Compared for q in 0.2, 0.5, 0.8 on the demo model and on random checkpoints, on 1 worker in this process and
on 3 workers over MPI. Tokens after a decision too near to call in float32 (2e-5) are not compared; at least
95 % must remain.
"""
import json

from e2e_lib import DEMO, Checks, ids_text, make_checkpoint, reference, run_json

NEAR = 2e-5
QS = [0.2, 0.5, 0.8]
N_TOKENS = 40
PLACES = [["--workers", 1, "--transport", "inproc"], ["--workers", 3, "--transport", "mpi"]]
# Gates that fire at every loop now and then: a wide logit around the middle.
MODELS = [
    ("exact-a", ["--seed", 21, "--gate-scale", 2.5, "--gate-bias", -0.5]),
    ("exact-b", ["--seed", 22, "--gate-scale", 2.0, "--gate-bias", -1.0, "--layers", 3, "--heads", 3,
                 "--kv-heads", 1, "--loops", 6, "--vocab", 75]),
    ("exact-c", ["--seed", 23, "--gate-scale", 3.0, "--gate-bias", 0.0, "--dtype", "bf16", "--loops", 3]),
]


def certain_prefix(model, ref, prompt, q):
    """The reference's tokens and exit loops up to the first decision that float32 may take otherwise."""
    past, pending, first, tokens, exits = model.empty_past(), list(prompt), 0, [], []
    for _ in range(N_TOKENS):
        hidden, lambdas = model.forward(pending, first, past)
        first += len(pending)
        loop, near = ref.exit_loop(ref.exit_cdf(lambdas)[:, -1], q, False, 1)
        logits = model.logits(hidden[loop - 1, -1])
        token = int(logits.argmax())
        best = sorted(logits)[-2:]
        if near < NEAR or best[1] - best[0] < NEAR * abs(best[1]):
            break
        tokens.append(token)
        exits.append(loop)
        pending = [token]
    return tokens, exits


def compare_model(c, name, directory, prompts):
    model = c.reference.Model(directory)
    for q in QS:
        for prompt in prompts:
            tokens, exits = certain_prefix(model, c.reference, prompt, q)
            c.wanted += N_TOKENS
            c.certain += len(tokens)
            for loop in exits:
                c.exits[loop] = c.exits.get(loop, 0) + 1
            for place in PLACES:
                found = run_json("generate", directory, "--ids", ids_text(prompt), "--max-tokens", N_TOKENS,
                                 "--exit", "exact", "--exit-threshold", q, "--ignore-eos", "--kv-dtype", "f32",
                                 *place)
                where = f"{name}, {len(prompt)} ids, q={q}, {place[1]} workers over {place[3]}"
                c.equal(found["finish_reason"], "length", f"{where}: finish reason")
                c.equal(len(found["tokens"]), N_TOKENS, f"{where}: number of tokens")
                c.equal(found["tokens"][: len(tokens)], tokens, f"{where}: tokens")
                c.equal(found["exit_loops"][: len(exits)], exits, f"{where}: exit loops")


def demo_prompts(n):
    vocab = json.loads((DEMO / "tokenizer.json").read_text())["model"]["vocab"]
    vocab = {**vocab, " ": vocab["Ġ"], "\n": vocab["Ċ"]}
    lines = (DEMO / "prompts.jsonl").read_text().splitlines()
    return [[vocab["<s>"]] + [vocab[x] for x in json.loads(line)["prompt"]] for line in lines[:n]]


def compare_work(c, name, directory):
    """The same requests with all loops and with exact exits: less work, parked rows, the same prompts."""
    def bench(*args):
        return run_json("bench", "engine", directory, "--workers", 3, "--transport", "mpi", "--requests", 24,
                        "--concurrency", 8, "--prompt-tokens", "4-20", "--output-tokens", "20-40",
                        "--prefill", "lazy", *args)

    def total(report, key):
        return sum(w[key] for w in report["workers"])

    full = bench("--exit", "full")
    n_loops = len(full["exits"])
    c.equal(total(full, "parked_total"), total(full, "revived_total"),
            f"{name}, full: what lazy prefill parks is revived")
    rows = [full["loop_rows"]]
    for q in reversed(QS):
        exact = bench("--exit", "exact", "--exit-threshold", q)
        where = f"{name}, q={q}"
        c.check(exact["loop_rows"] < rows[-1], f"{where}: {exact['loop_rows']} loop rows, not below {rows[-1]}")
        c.check(total(exact, "parked_total") > 0, f"{where}: no row was parked")
        c.check(total(exact, "revived_total") > 0, f"{where}: no parked row was revived")
        c.check(total(exact, "revived_total") <= total(exact, "parked_total"),
                f"{where}: more rows revived than parked")
        c.check(exact["mean_exit_loop"] < n_loops, f"{where}: mean exit loop {exact['mean_exit_loop']}")
        c.equal(exact["tokens"], full["tokens"], f"{where}: tokens generated")
        rows.append(exact["loop_rows"])
    apart = bench("--exit", "exact", "--exit-threshold", q, "--cuda-aware", "yes")
    c.equal([exact["rows_apart"], apart["rows_apart"]], [False, True], f"{name}: rows travel apart when asked to")
    c.equal(apart["tokens_hash"], exact["tokens_hash"], f"{where}: tokens and exits with rows apart")
    c.check(total(apart, "parked_total") > 0, f"{where}: no row was parked, with rows apart")
    c.note(f"{name}: loop rows {rows[0]} full; {', '.join(f'{r} at q={q}' for r, q in zip(rows[1:], reversed(QS)))}")


def main():
    c = Checks("e2e_exact")
    c.reference = reference()
    c.wanted = c.certain = 0
    c.exits = {}
    c.attempt(compare_model, "demo", DEMO, demo_prompts(3))
    for name, args in MODELS:
        directory = make_checkpoint(name, *args)
        c.attempt(compare_model, name, directory, [[7], [3, 14, 15, 9, 2, 6, 5, 35, 8, 9, 7, 9]])
        c.attempt(compare_work, name, directory)
    c.note(f"{c.certain} of {c.wanted} tokens compared; exits by loop {dict(sorted(c.exits.items()))}")
    c.check(c.certain >= 0.95 * c.wanted, f"{c.certain} of {c.wanted} tokens could be compared")
    c.check(len(c.exits) >= 4, f"exits at {len(c.exits)} different loops only: the gates are not exercised")
    c.close()


if __name__ == "__main__":
    main()
