#!/usr/bin/python3
"""The timed backend: ranks that wait instead of computing.

Over several numbers of workers, in one process and over MPI, tokens and exits of the same requests are the same, because
they depend on seed and position only; so are the numbers of rows that full depth makes. What a batch took is what
the cost file says; the bound is wide, because the machine that runs the tests is busy. Every shipped cost file
loads, and a model whose weights are holes in a file serves.
"""
import json
import pathlib
import subprocess
import sys
import time

from e2e_lib import ROOT, WORK, Checks, run_json, run_ok

EXITS = "0.1,0.3,0.3,0.3"


def bench(*options, model=None):
    return run_json("bench", "engine", *([model] if model else []), "--backend", "timed", "--json", *options)


def cost_file(path, **changes):
    cost = json.loads((ROOT / "cluster" / "costs" / "weight_bound.json").read_text())
    cost.update(changes)
    path.write_text(json.dumps(cost))
    return path


def check_same_tokens(checks, cost):
    """Exits and tokens at every W and on both transports."""
    work = ["-r", 24, "-c", 24, "-p", "2-12", "-o", "4-24", "--cost", cost]
    for name, more in (("full depth", []), ("forced exits", ["--force-exits", EXITS])):
        base = None
        for transport, w in (("inproc", 1), ("inproc", 4), ("mpi", 1), ("mpi", 2), ("mpi", 4), ("mpi", 6)):
            found = bench(*work, *more, "--transport", transport, "--workers", w)
            told = {k: found[k] for k in ("tokens", "exits", "tokens_hash")}
            if not more:  # with exits, what is parked at the end depends on who was where
                told["rows"] = sum(worker["rows"] for worker in found["workers"])
            base = base or told
            checks.equal(f"{name}, {w} workers, {transport}", told, base)
        share = [n / base["tokens"] for n in base["exits"]]
        wanted = [float(x) for x in EXITS.split(",")] if more else [0, 0, 0, 1]
        checks.true(f"{name}: exits {share} are about {wanted}",
                    max(abs(a - b) for a, b in zip(share, wanted)) < 0.1)


def check_duration(checks, directory):
    """One row a batch, so the length of each is known: 4 loops of 2 ms a token."""
    cost = cost_file(directory / "exact.json", block_us=[[1, 2000]], jitter=0)
    found = bench("-r", 2, "-c", 1, "-p", 1, "-o", 40, "--cost", cost)
    batches = found["workers"][0]["batches"]
    mean_ms = 1e3 * found["seconds"] * found["workers"][0]["busy"] / batches
    print(f"e2e_timed: a batch of 2.000 ms took {mean_ms:.3f} ms, TPOT {found['tpot_ms']['p50']:.3f} ms of 8.000 ms")
    checks.equal("one batch a loop and token", batches, 2 * 40 * 4)
    checks.true(f"a batch of 2 ms took {mean_ms} ms", 1.98 < mean_ms < 2.6)
    checks.true("no token comes early", found["tpot_ms"]["p50"] > 7.9)


def check_costs(checks):
    """Each shipped file, by its name."""
    for path in sorted((ROOT / "cluster" / "costs").glob("*.json")):
        found = bench("-r", 2, "-c", 2, "-p", 2, "-o", 2, "--cost", path.stem)
        checks.equal(f"{path.stem} serves", found["tokens"], 4)


def check_sparse(checks, directory):
    """The shape of Ouro-1.4B from a file of holes; 8 ranks with 100 GB of KV each that nobody takes."""
    model = directory / "sparse"
    subprocess.run([sys.executable, ROOT / "scripts" / "make_checkpoint.py", "--shape", "ouro-1.4b",
                    "--dtype", "bf16", "--sparse", model], check=True, stdout=subprocess.DEVNULL)
    weights = (model / "model.safetensors").stat()
    checks.true("the weights take no room", weights.st_size > 2.8e9 and weights.st_blocks * 512 < 1e6)
    began = time.monotonic()
    found = bench("-r", 32, "-c", 32, "-p", 64, "-o", 8, "--cost", "h200_ib", "--workers", 8, "--kv-memory", "100G",
                  model=model)
    print(f"e2e_timed: 8 ranks of Ouro-1.4B's shape: {found['tokens_per_s']:.0f} tokens/s, "
          f"{time.monotonic() - began:.1f} s in all, {found['bytes_sent'] / 1e6:.0f} MB sent")
    checks.equal("all tokens", found["tokens"], 32 * 8)
    # 71 positions a request, three hops each, 8 KB a row
    checks.true("frames have their real size", found["bytes_sent"] > 32 * 71 * 3 * 8192 * 0.7)
    blocks = found["workers"][0]["kv_blocks_total"]
    checks.equal("KV of 100 GiB", blocks, (100 << 30) // (16 * (196608 + 8192)))
    checks.true("observing is refused", "timed" in run_ok_error(model))


def run_ok_error(model):
    from e2e_lib import run_program
    result = run_program("lens", model, "--ids", "1,2,3", "--backend", "timed", "--cost", "between")
    return result.err if result.code == 1 and len(result.err.splitlines()) == 1 else str(result)


def main():
    checks = Checks("e2e_timed")
    directory = pathlib.Path(WORK) / "timed"
    directory.mkdir(parents=True, exist_ok=True)
    fast = cost_file(directory / "fast.json", block_us=[[1, 300], [101, 1300]])
    checks.run(check_same_tokens, checks, fast)
    return checks.close()


if __name__ == "__main__":
    sys.exit(main())
