#!/usr/bin/python3
"""Bit-identical results, hashed, however the same work is run.

One base setting (1 worker in this process, 1 thread, one request at a time) gives the expected hashes of
  - every logit of every position at every loop (`lens --json` over the whole vocabulary, exact decimal text),
  - tokens and exit loops of 64 requests of mixed lengths, thresholds, temperatures and seeds (`bench engine`),
  - log-probabilities over the whole vocabulary of those tokens that 64 requests at once give (`batch`).
Each axis is then varied alone, and some settings are drawn at random: workers and transport, concurrency, chunk
size, eager and lazy prefill, threads, KV block size and memory, rings, batching rule, row budget, batches in flight. Every
hash must be the same.

The random settings come from the printed seed; E2E_SEED=N repeats them.
"""
import hashlib
import json
import os
import random
import time

from e2e_lib import DEMO, WORK, Checks, ids_text, make_checkpoint, run_json, run_ok

BASE = {"workers": 1, "transport": "inproc", "threads": 1, "prefill-chunk": 64, "prefill": "eager",
        "batching": "knee", "block-size": 16, "max-batch-rows": 256, "batches-in-flight": 1, "concurrency": 1}
AXES = {
    "prefill-chunk": [1, 7, 4096],
    "prefill": ["lazy"],
    "threads": [2],
    "block-size": [8],
    "batching": ["greedy", "tick", "round"],
    "max-batch-rows": [5],
    "batches-in-flight": [2],
    "concurrency": [64],
}
WORKERS = [1, 2, 3, 4, 6]
MIXED = {
    "two rings over MPI": {"workers": 4, "ring-size": 2, "transport": "mpi", "concurrency": 64},
    "three rings of two": {"workers": 6, "ring-size": 2, "concurrency": 64},
    "rings of one": {"workers": 3, "ring-size": 1, "concurrency": 64},
    "KV memory for few": {"workers": 2, "kv-memory": "1200K", "concurrency": 64},
    "one row a batch": {"workers": 3, "max-batch-rows": 1, "concurrency": 64},
    "two in flight, one worker": {"batches-in-flight": 2, "batching": "greedy", "prefill-chunk": 7,
                                  "concurrency": 64},
    "two in flight, two rings over MPI": {"batches-in-flight": 2, "workers": 4, "ring-size": 2,
                                          "transport": "mpi", "prefill-chunk": 7, "concurrency": 64},
    **{f"{w} workers, rows apart": {"workers": w, "transport": "mpi", "cuda-aware": "yes", "concurrency": 64}
       for w in (2, 3, 4)},
    "two in flight, rows apart, lazy": {"batches-in-flight": 2, "workers": 4, "transport": "mpi", "prefill": "lazy",
                                        "cuda-aware": "yes", "prefill-chunk": 7, "concurrency": 64},
    "two in flight, lazy": {"batches-in-flight": 2, "workers": 3, "prefill": "lazy", "prefill-chunk": 7,
                            "concurrency": 64},
    "blocks of one, no patience": {"workers": 2, "block-size": 1, "wait-limit": 0.001, "concurrency": 64},
}
N_RANDOM = 8


def settings(rng):
    yield "base", BASE
    for axis, values in AXES.items():
        for value in values:
            yield f"{axis} {value}", {**BASE, axis: value}
    for transport in ("mpi", "inproc"):
        for w in WORKERS:
            if (w, transport) != (1, "inproc"):
                yield f"{w} workers, {transport}", {**BASE, "workers": w, "transport": transport,
                                                    "concurrency": 64}
    for name, some in MIXED.items():
        yield name, {**BASE, **some}
    for i in range(N_RANDOM):
        some = {axis: rng.choice([BASE[axis], *values]) for axis, values in AXES.items()}
        some.update(workers=rng.choice(WORKERS), transport=rng.choice(["mpi", "inproc"]))
        yield f"random {i}: " + " ".join(f"--{k} {v}" for k, v in some.items()), {**BASE, **some}


def options(setting, *without):
    return [x for k, v in setting.items() if k not in without for x in (f"--{k}", v)]


def digest(thing):
    return hashlib.sha256(json.dumps(thing, sort_keys=True).encode()).hexdigest()[:16]


def lens_hash(directory, vocab, ids, setting):
    report = run_json("lens", directory, "--ids", ids_text(ids), "--top", vocab,
                      *options(setting, "concurrency"), timeout=120)
    rows = [[(t["lambda"], t["cdf"], [(e["id"], e["logit"]) for e in t["top"]]) for t in p["loops"]]
            for p in report["positions"]]
    assert len(rows) == len(ids) and all(len(t[2]) == vocab for row in rows for t in row)
    return digest(rows)


def bench_hash(directory, setting):
    """Hash of all requests' outputs, and the program's own hash of the same."""
    path = WORK / "bits.jsonl"
    report = run_json("bench", "engine", directory, "--mixed", "--requests", 64, "--prompt-tokens", "1-80",
                      "--output-tokens", "1-16", "--workload-seed", 5, "--outputs", path,
                      *options(setting), timeout=120)
    outputs = sorted((json.loads(line) for line in path.read_text().splitlines()),
                     key=lambda o: o["request"])
    assert [o["request"] for o in outputs] == list(range(64))
    return digest(outputs), report["tokens_hash"]


def batch_hash(directory, vocab, setting):
    """64 lines at once: the log-probabilities of the whole vocabulary for every token, and the exit loops."""
    rng = random.Random(3)
    source, answers = WORK / "bits-in.jsonl", WORK / "bits-out.jsonl"
    answers.unlink(missing_ok=True)
    with source.open("w") as f:
        for i in range(64):
            body = {"prompt": [rng.randrange(2, vocab) for _ in range(rng.randint(1, 60))], "max_tokens": 6,
                    "logprobs": vocab, "temperature": 0, "ignore_eos": True,
                    "loops": {"mode": "exact", "exit_threshold": rng.choice([0.3, 0.6, 1.0])}}
            f.write(json.dumps({"custom_id": str(i), "method": "POST", "url": "/v1/completions",
                                "body": body}) + "\n")
    # batch keeps as many requests in flight as the cluster takes.
    run_ok("batch", directory, "-i", source, "-o", answers, "--max-sequences", setting["concurrency"],
           *options(setting, "concurrency"), timeout=120)
    found = {}
    for line in answers.read_text().splitlines():
        answer = json.loads(line)
        assert answer.get("error") is None, line[:500]
        body = answer["response"]["body"]
        rows = body["choices"][0]["logprobs"]["top_logprobs"]
        assert len(rows) == 6 and all(len(row) == vocab for row in rows), "not the whole vocabulary"
        stats = body["loop_stats"]  # whose times are never the same
        found[answer["custom_id"]] = (body["choices"], stats["exit_loops"], stats["mean_exit_loop"])
    assert len(found) == 64, f"{len(found)} answers"
    return digest(found)


def compare(c, name, what, function, *args):
    try:
        found = function(*args)
    except AssertionError as e:
        return c.check(False, f"{what}, {name}: {e}")
    return c.equal(found, c.expected.setdefault(what, found), f"{what}, {name}: hash")


def main():
    c = Checks("e2e_bits")
    seed = int(os.environ.get("E2E_SEED", time.time_ns() % 1000000))
    c.note(f"random settings from E2E_SEED={seed}")
    c.expected = {}
    rng = random.Random(seed)
    small = make_checkpoint("bits-vocab20", "--vocab", 20, "--seed", 31, "--gate-scale", 2.5)
    odd = make_checkpoint("bits-bf16", "--dtype", "bf16", "--layers", 2, "--d-model", 90, "--ffn", 130,
                          "--heads", 5, "--kv-heads", 1, "--head-dim", 18, "--vocab", 71, "--loops", 3,
                          "--gate-scale", 2.5, "--seed", 32)
    fixed = random.Random(7)
    ids = {directory: [fixed.randrange(vocab) for _ in range(150)] for directory, vocab in ((DEMO, 49), (odd, 71))}
    for name, setting in settings(rng):
        for directory, vocab in ((DEMO, 49), (odd, 71)):
            which = directory.name
            c.attempt(lambda c: compare(c, name, f"logits of {which}", lens_hash, directory, vocab,
                                        ids[directory], setting))
            c.attempt(lambda c: compare(c, name, f"tokens of {which}", bench_hash, directory, setting))
        c.attempt(lambda c: compare(c, name, "log-probabilities of 64 requests", batch_hash, small, 20, setting))
    for what, value in c.expected.items():
        c.note(f"{what}: {value}")
    c.check(len(set(map(str, c.expected.values()))) == 5, "different work has different hashes")
    c.close()


if __name__ == "__main__":
    main()
