#!/usr/bin/python3
"""scripts/gpu_check.sh itself, rehearsed on the emulated device: what would run on a GPU runs, and its JSON has
every figure that the targets of docs/gpu.md are judged by. No figure of a rehearsal means anything."""
import json
import os
import pathlib
import subprocess

ROOT = pathlib.Path(__file__).resolve().parent.parent
os.environ["CAROUSEL"] = str(ROOT / "build" / "emulated" / "carousel")

from e2e_lib import WORK, Checks  # noqa: E402

PARTS = ["targets", "invariance", "workers"]


def main():
    c = Checks("e2e_gpu_check")
    WORK.mkdir(parents=True, exist_ok=True)
    out = WORK / "gpu_check.json"
    out.unlink(missing_ok=True)
    done = subprocess.run([ROOT / "scripts/gpu_check.sh", "--rehearse", "-o", out, "--python", "/usr/bin/python3",
                           *PARTS], capture_output=True, text=True, timeout=400, check=False)
    c.check(done.returncode == 0, f"the rehearsal succeeds: {done.stderr[-800:]}")
    report = json.loads(out.read_text())
    for part in PARTS:
        c.check(report["parts"].get(part, {}).get("ok") is True, f"part {part}: {report['parts'].get(part)}")
    targets = report["parts"]["targets"]
    c.check(targets["backend"] == "cuda", f"runs on the backend cuda: {targets['backend']}")
    for row in targets["decode"]:
        c.check(row["bytes"] > 0 and row["bound_ms"] > 0 and row["step_ms"] > 0 and row["ahead_ms"] > 0,
                f"decode figures are there: {row}")
    # Weights of the block once a loop and of the head once, K and V of all loops, two bytes each: shape tiny.
    weights = 2 * (4 * 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 192) + 128 * 64)
    kv = 2 * 4 * 2 * 2 * (2 * 16) * 64
    first = targets["decode"][0]
    c.check(first["bytes"] == weights + kv, f"bytes of a step: {first['bytes']} and {weights + kv}")
    logits = report["parts"]["invariance"]["logits"]
    c.check(logits["deterministic"]["same_bits"] == logits["deterministic"]["compared"] > 1000,
            f"--deterministic: the cut does not show: {logits}")
    c.check(0 < logits["fast"]["largest"] < 0.05, f"without it it does, a little: {logits}")
    c.note(f"cut into batches, fast: {logits['fast']}")
    names = [row["name"] for row in report["targets"]]
    for word in ("decode, 1 sequences", "device busy", "prefill"):
        c.check(any(word in name for name in names), f"a target '{word}': {names}")
    c.check(all("met" not in row for row in report["targets"]), "a rehearsal judges nothing")
    bad = subprocess.run([ROOT / "scripts/gpu_check.sh", "--rehearse", "everything"], capture_output=True, text=True,
                         timeout=60, check=False)
    c.check(bad.returncode == 2 and "no part everything" in bad.stderr, f"an unknown part: {bad.stderr}")
    c.close()


if __name__ == "__main__":
    main()
