#!/usr/bin/python3
"""The backend cuda through the whole program, on the emulated device (make CUDA=emulated) or on a GPU.

One batch of prompts of the demo model, greedy and sampled, with full and exact exits, with penalties (drawn on the
host), runs on the CPU with K/V in bf16 and then in several ways on the GPU:

* against the CPU: the weights are rounded to bf16 there, so a token may differ where the CPU's own two best are within
  TIE of each other, and an exit where the cdf is within NEAR of q; what differs for another reason fails, and so does
  a quarter of the lines differing at all. Log-probabilities of the common prefix are within LOGPROB.
* with --deterministic: all lines together, one after the other, in other chunks and blocks, on three workers of one
  process and on four of an MPI job that share the device: tokens, exits and log-probabilities are the same, bit by
  bit.
* options that a GPU must refuse or obey: a device that is not there, more KV than there is, fp32 KV.
* doctor's own proof on the GPU, with little of its memory.
"""
import json
import os
import pathlib

ROOT = pathlib.Path(__file__).resolve().parent.parent
os.environ.setdefault("CAROUSEL", str(ROOT / "build" / "emulated" / "carousel"))

import e2e_lib  # noqa: E402
from e2e_lib import DEMO, WORK, Checks, Failure, ids_text  # noqa: E402

PLACE = WORK / "cuda"
TIE, NEAR, LOGPROB = 0.15, 0.02, 0.15
N_TOKENS, Q = 4, 0.5
KINDS = {
    "full": {"loops": {"mode": "full"}, "logprobs": 3},
    "exact": {"loops": {"mode": "exact", "exit_threshold": Q}, "logprobs": 3},
    "penalties": {"repetition_penalty": 1.3, "presence_penalty": 0.4, "logprobs": 3},
    "sampled": {"temperature": 0.8, "top_k": 12, "top_p": 0.95, "seed": 7, "logprobs": 3},
}
GPU = ["--backend", "cuda", "--kv-memory", "24M"]
DETERMINISTIC = [*GPU, "--deterministic"]
RUNS = [
    ("together", ["--max-sequences", 64]),
    ("one after the other", ["--max-sequences", 1]),
    ("chunks of 5, blocks of 8, lazy", ["--prefill-chunk", 5, "--block-size", 8, "--prefill", "lazy"]),
    ("three workers of one process", ["--transport", "inproc", "--workers", 3]),
    ("four workers of an MPI job", ["--workers", 4, "--kv-memory", "8M"]),
]


def with_gpus(function):
    """The GPUs of our own environment, where e2e_lib shows none."""
    shown = os.environ.get("CUDA_VISIBLE_DEVICES", "0")
    return lambda *a, **options: function(*a, env={"CUDA_VISIBLE_DEVICES": shown}, **options)


run, run_json, run_ok = (with_gpus(f) for f in (e2e_lib.run, e2e_lib.run_json, e2e_lib.run_ok))


def write_input():
    """Three lines of each kind, from all over the demo's prompts."""
    PLACE.mkdir(parents=True, exist_ok=True)
    lines = (DEMO / "prompts.jsonl").read_text().splitlines()
    prompts = [json.loads(line)["prompt"] for line in lines]
    with open(PLACE / "in.jsonl", "w") as out:
        for k, (kind, fields) in enumerate(KINDS.items()):
            for i in range(3):
                body = {"custom_id": f"{kind}-{i}", "prompt": prompts[(k + 4 * i) * 11 % len(prompts)],
                        "max_tokens": N_TOKENS, "ignore_eos": True, "return_token_ids": True, **fields}
                out.write(json.dumps(body) + "\n")


def answers(name, options):
    """custom_id -> (prompt ids, tokens, exit loops, log-probabilities, the best of each place)."""
    output = PLACE / (name.replace(" ", "_").replace(",", "") + ".jsonl")
    output.unlink(missing_ok=True)
    run_ok("batch", "-i", PLACE / "in.jsonl", "-o", output, *options, timeout=120)
    found = {}
    for line in output.read_text().splitlines():
        answer = json.loads(line)
        if answer["error"]:
            raise Failure(f"{name}: {answer['custom_id']}: {answer['error']}")
        body = answer["response"]["body"]
        choice = body["choices"][0]
        found[answer["custom_id"]] = {
            "prompt": choice["prompt_token_ids"], "tokens": choice["token_ids"],
            "exits": body["loop_stats"]["exit_loops"], "logprobs": choice["logprobs"]["token_logprobs"],
            "top": choice["logprobs"]["top_logprobs"]}
    return found


def first_difference(a, b):
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), None)


def is_near(line, place):
    """The CPU's cdf at the position before this token is within NEAR of q at some loop."""
    ids = (line["prompt"] + line["tokens"])[:len(line["prompt"]) + place]
    found = run_json("lens", DEMO, "--ids", ids_text(ids), "--backend", "cpu", "--kv-dtype", "bf16",
                     "--exit-threshold", Q)
    return any(abs(loop["cdf"] - Q) < NEAR for loop in found["positions"][-1]["loops"])


def compare_with_cpu(c, cpu, gpu):
    n_differ, worst = 0, 0.0
    for name, a in cpu.items():
        b = gpu.get(name)
        if not c.check(b is not None, f"{name}: has an answer"):
            continue
        at_token, at_exit = first_difference(a["tokens"], b["tokens"]), first_difference(a["exits"], b["exits"])
        same = min(x if x is not None else N_TOKENS for x in (at_token, at_exit))
        for i in range(same):
            worst = max(worst, abs(a["logprobs"][i] - b["logprobs"][i]))
        if same == N_TOKENS:
            continue
        n_differ += 1
        kind = name.split("-")[0]
        if at_exit is not None and at_exit == same:
            c.check(is_near(a, same), f"{name}: exit {same} is loop {b['exits'][same]}, on the CPU "
                                      f"{a['exits'][same]}, and no cdf there is near {Q}")
        elif kind in ("full", "exact"):
            best = sorted(a["top"][same].values(), reverse=True)
            c.check(best[0] - best[1] < TIE, f"{name}: token {same} differs from the CPU's, whose best two are "
                                             f"{best[0] - best[1]:.3f} apart")
    c.check(n_differ <= len(cpu) // 4, f"{n_differ} of {len(cpu)} lines differ from the CPU's")
    c.check(worst < LOGPROB, f"log-probabilities are within {LOGPROB}: {worst:.4f}")
    c.check(worst > 0, "log-probabilities are those of another arithmetic, not the CPU's own")
    c.note(f"against the CPU: {n_differ} of {len(cpu)} lines differ, log-probabilities by {worst:.4f} at most")


def test_against_cpu(c):
    cpu = answers("cpu", ["--backend", "cpu", "--kv-dtype", "bf16"])
    loops = {loop for name, a in cpu.items() if name.startswith("exact") for loop in a["exits"]}
    c.check(len(loops) > 1, f"exact exits use several loops: {loops}")
    compare_with_cpu(c, cpu, answers("gpu", GPU))


def test_deterministic(c):
    expected = answers("deterministic", [*DETERMINISTIC, *RUNS[0][1]])
    for name, options in RUNS[1:]:
        found = c.attempt(lambda _, n, o: answers(n, o), name, [*DETERMINISTIC, *options])
        if found is None:
            continue
        for line, a in expected.items():
            c.equal(found.get(line), a, f"{name}: {line}")


def test_options(c):
    ids = ["generate", DEMO, "--ids", "1,2,3", "--max-tokens", 2]
    for options, words in (
            (["--backend", "cuda", "--device", 900], "--device 900"),
            (["--backend", "cuda", "--kv-memory", "900G"], "--kv-memory"),
            (["--backend", "cuda", "--gpu-memory-fraction", "0.0001"], "--gpu-memory-fraction"),
            (["--device", 0, "--kv-dtype", "f32"], "KV on a GPU is bf16"),
            (["--device", 0, "--isa", "portable"], "--isa portable")):
        result = run(*ids, *options)
        c.check(result.code == 1 and words in result.err and len(result.err.splitlines()) == 1,
                f"{options}: {result}")
    for options in (["--kv-memory", "8M"], ["--device", 0, "--gpu-memory-fraction", "0.05"]):
        result = run_ok(*ids, "--backend", "cuda", *options)
        c.check("rank=1" in result.err and "kv_blocks=" in result.err, f"{options}: {result.err}")
    # The CPU's options choose the CPU.
    result = run_ok(*ids, "--kv-dtype", "f32")
    c.check("gpu=" not in result.err, f"auto with fp32 KV is the CPU: {result.err}")


def test_doctor(c):
    result = run("doctor", timeout=250)
    c.check(result.code == 0 and result.out.rstrip().endswith("all well"), f"doctor: {result.out[-1500:]}{result}")
    hashes = [line.split()[-1] for line in result.out.splitlines() if line.startswith("  ok    cuda ")]
    c.check(len(hashes) == 5 and len(set(hashes)) == 1, f"doctor's runs on the GPU: {hashes}")


def main():
    c = Checks("e2e_cuda")
    write_input()
    c.attempt(test_options)
    c.attempt(test_against_cpu)
    c.attempt(test_deterministic)
    c.attempt(test_doctor)
    c.close()


main()
