#!/usr/bin/env python3
"""Runs every check that needs a GPU and writes one JSON; scripts/gpu_check.sh says how to call it.

Each part is a subprocess or a few, with a time limit, and leaves its figures and an `ok`; a part that
fails does not stop the next. `targets` holds what docs/gpu.md promises, the figure, and whether it is
met. Needs Python's own library only; part `pytorch` needs torch, and says so where there is none.
"""
import argparse
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
PARTS = ("build", "units", "golden", "sanitize", "targets", "invariance", "exits", "workers", "pytorch")
FORCED = "0.1,0.3,0.3,0.3"


class Failure(Exception):
    """A command that did not do what it should; the text is for the report."""


def run(command, limit_s, env=None, ok_codes=(0,)):
    """(stdout, stderr) of a command; Failure with the end of what it said."""
    try:
        done = subprocess.run([str(c) for c in command], cwd=ROOT, capture_output=True, text=True,
                              timeout=limit_s, env={**os.environ, **(env or {})},
                              stdin=subprocess.DEVNULL, check=False)
    except FileNotFoundError as e:
        raise Failure(f"{command[0]}: not there ({e.strerror})") from e
    except subprocess.TimeoutExpired as e:
        raise Failure(f"{' '.join(map(str, command))}: over {limit_s} s") from e
    if done.returncode not in ok_codes:
        tail = (done.stdout + done.stderr)[-1500:]
        raise Failure(f"{' '.join(map(str, command))}: exit {done.returncode}: {tail}")
    return done.stdout, done.stderr


class Check:
    def __init__(self, args):
        self.args = args
        self.is_rehearsal = args.rehearse
        build = "build/emulated" if args.rehearse else "build/release"
        self.build = ROOT / build
        self.carousel = self.build / "carousel"
        self.work = pathlib.Path(tempfile.mkdtemp(prefix="carousel-gpu-"))
        self.report = {"rehearsal": args.rehearse, "parts": {}, "targets": []}
        self.machine = None
        self.bench = None

    # ---- what the parts share ------------------------------------------------------------------

    def target(self, name, value, least, unit="of bound"):
        row = {"name": name, "value": round(value, 4), "target": least, "unit": unit}
        if not self.is_rehearsal:
            row["met"] = value >= least
        self.report["targets"].append(row)

    def model(self):
        """Ouro-1.4B with random weights; a tiny one of the same layout for a rehearsal."""
        path = self.work / "model"
        if not path.exists():
            shape = (["--shape", "tiny", "--max-positions", "512"] if self.is_rehearsal
                     else ["--shape", "ouro-1.4b"])
            run([self.args.python, "scripts/make_checkpoint.py", *shape, "--dtype", "bf16", path], 300)
        return path

    def carousel_json(self, *command, limit_s=400):
        out, _ = run([self.carousel, *command, "--json"], limit_s)
        return json.loads(out)

    def bench_replica(self, *more):
        small = ["--sequences", "1,4", "--context", "64", "--prefill", "96", "--chunk", "48", "--repeats",
                 "2", "--kv-memory", "64M"]
        large = ["--sequences", self.args.sequences, "--context", "2048", "--prefill", "8192",
                 "--chunk", "4096", "--repeats", str(self.args.repeats)]
        return self.carousel_json("bench", "replica", self.model(), "--backend", "cuda",
                                  *(small if self.is_rehearsal else large), *more)

    # ---- parts ---------------------------------------------------------------------------------

    def build_part(self):
        goals = ["build/emulated/carousel", "CUDA=emulated"] if self.is_rehearsal else ["build/carousel"]
        run(["make", f"-j{os.cpu_count()}", *goals], 1500)
        doctor, _ = run([self.carousel, "doctor"], 300)
        facts = {"doctor": [line for line in doctor.splitlines() if re.search("cuda|gpu|GPU", line)]}
        if not self.is_rehearsal:
            out, _ = run(["nvidia-smi", "--query-gpu=name,driver_version,memory.total",
                          "--format=csv,noheader"], 60)
            facts["gpu"] = out.strip()
            out, _ = run([shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc", "--version"], 60)
            facts["nvcc"] = out.strip().splitlines()[-1]
        return facts

    def unit_binaries(self):
        names = sorted(p.stem for word in ("cuda", "kernels", "replica")
                       for p in (ROOT / "tests").glob(f"test_{word}*.c"))
        goals = [f"{self.build.relative_to(ROOT)}/tests/{name}" for name in names]
        make = ["make", f"-j{os.cpu_count()}", *goals]
        run(make + (["CUDA=emulated"] if self.is_rehearsal else []), 1200)
        return [ROOT / g for g in goals]

    def units_part(self):
        counts, skipped = {"passed": 0, "failed": 0}, []
        failures = []
        for binary in self.unit_binaries():
            try:
                out, err = run([binary], 300)
            except Failure as e:
                failures.append(str(e)[-600:])
                counts["failed"] += 1
                continue
            found = re.search(r"(\d+) test\(s\).*PASSED|PASSED.*?(\d+) test\(s\)", out + err)
            counts["passed"] += int(next(g for g in found.groups() if g)) if found else 0
            if re.search(r"SKIPPED", out + err):
                skipped.append(binary.name)
        if failures:
            raise Failure("; ".join(failures))
        return {**counts, "with_skips": skipped}

    def golden_part(self):
        """The tests below are for the emulated build but for this variable."""
        binary = {"CAROUSEL": str(self.carousel)}
        lines = {}
        for name in ("e2e_cuda", "e2e_golden_cuda"):
            out, _ = run([self.args.python, f"tests/{name}.py"], 900, env=binary)
            lines[name] = out.strip().splitlines()[-1]
        return lines

    def sanitize_part(self):
        """compute-sanitizer over the kernels' unit tests; the emulator's own checks in a rehearsal."""
        if self.is_rehearsal:
            return {"skipped": "compute-sanitizer needs a GPU"}
        tool = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
        results = {}
        for binary in self.unit_binaries():
            if not binary.name.startswith("test_cuda_"):
                continue
            for kind in ("memcheck", "racecheck"):
                out, err = run([tool, "--tool", kind, "--error-exitcode", "9", binary], 600)
                lines = [s for s in (out + err).splitlines() if "ERROR SUMMARY" in s or "RACECHECK SUMMARY" in s]
                if not lines:
                    raise Failure(f"{binary.name} {kind}: no summary: {(out + err)[-600:]}")
                results[f"{binary.name} {kind}"] = lines[-1].strip("= ")
        if not results:
            raise Failure("no unit test of the kernels was found")
        return results

    def targets_part(self):
        self.bench = b = self.bench_replica()
        least = {1: 0.80, 4: 0.75, 64: 0.75, 256: 0.65}
        for row in b["decode"]:
            n = row["sequences"]
            self.target(f"decode, {n} sequences at {row['context']}", row["of_bound"], least.get(n, 0.65))
            if n in (4, 64):
                # A gap is a cost: the target is an upper bound, kept as 1 - gap.
                self.target(f"device busy, {n} sequences at {row['context']}", 1 - row["host_gap"], 0.98,
                            "share of time")
        self.target(f"prefill, {b['prefill']['tokens']} tokens", b["prefill"]["of_rate"], 0.55,
                    "of product rate")
        if not self.is_rehearsal:
            self.target("ready, 1 / seconds", 1 / b["ready_s"], 1 / 3, "1/s")
        return b

    def invariance_part(self):
        """What --deterministic costs."""
        fast = self.bench or self.bench_replica()
        slow = self.bench_replica("--deterministic")
        rows = [{"sequences": f["sequences"], "fast_ms": f["step_ms"], "deterministic_ms": s["step_ms"],
                 "ratio": s["step_ms"] / f["step_ms"]} for f, s in zip(fast["decode"], slow["decode"])]
        return {"decode": rows, "prefill_ratio": slow["prefill"]["seconds"] / fast["prefill"]["seconds"]}

    def exits_part(self):
        """Full depth beside exits at 0.1/0.3/0.3/0.3, one wave of 32 sequences on one worker."""
        n, prompt, output = (4, 8, 16) if self.is_rehearsal else (32, 512, 256)
        common = ["bench", "engine", self.model(), "--backend", "cuda", "--requests", n, "--warmup", 0,
                  "--concurrency", n, "--prompt-tokens", prompt, "--output-tokens", output]
        common = [str(c) for c in common]
        if self.is_rehearsal:
            common += ["--kv-memory", "64M"]
        self.carousel_json(*common)  # algorithms are chosen, graphs are not kept: a warm file cache
        full = self.carousel_json(*common, "--exit", "full")
        exits = self.carousel_json(*common, "--exit", "exact", "--force-exits", FORCED)
        shape = json.loads((self.model() / "config.json").read_text())
        d, kv = shape["hidden_size"], shape["num_key_value_heads"] * shape["head_dim"]
        q, f = shape["num_attention_heads"] * shape["head_dim"], shape["intermediate_size"]
        layers, loops = shape["num_hidden_layers"], shape["total_ut_steps"]
        block = 2 * layers * (2 * d * q + 2 * d * kv + 3 * d * f)
        context = n * (prompt + output / 2) * layers * kv * 4
        head = 2 * shape["vocab_size"] * d
        mean = exits["mean_exit_loop"]
        # A batch reads the block once and each sequence's K and V once, however many rows of it are
        # parked; with exits every batch ends some token, at full depth every T-th does.
        allowed = (loops * (block + context) + head) / (mean * (block + context + head))
        got = full["tpot_ms"]["p50"] / exits["tpot_ms"]["p50"]
        self.target("exact exits, 32 sequences: speed-up of what is allowed", got / allowed, 0.95,
                    "of allowed")
        return {"full_tpot_ms": full["tpot_ms"]["p50"], "exits_tpot_ms": exits["tpot_ms"]["p50"],
                "mean_exit_loop": mean, "speed_up": got, "allowed": allowed,
                "rows_per_batch": exits["rows_per_batch"]}

    def workers_part(self):
        """Four workers as four processes on this GPU draw the tokens of one worker."""
        n = 6 if self.is_rehearsal else 48
        common = ["bench", "engine", self.model(), "--backend", "cuda", "--deterministic", "--requests",
                  str(n), "--warmup", "0", "--concurrency", "8", "--prompt-tokens", "5-40",
                  "--output-tokens", "4-24", "--mixed"]
        common += ["--kv-memory", "32M"] if self.is_rehearsal else ["--kv-memory", "4G"]
        hashes = {}
        for workers in (1, 4):
            how = ["--workers", str(workers)] if workers > 1 else []
            hashes[str(workers)] = self.carousel_json(*common, *how, limit_s=600)["tokens_hash"]
        if len(set(hashes.values())) != 1:
            raise Failure(f"tokens differ: {hashes}")
        return {"tokens_hash": hashes}

    def pytorch_part(self):
        if self.is_rehearsal:
            shape = ["--shape", "tiny", "--sequences", "1,4", "--context", "64", "--steps", "2"]
        else:
            shape = ["--sequences", "1,64", "--context", "2048", "--steps", "20"]
        try:
            run([self.args.python, "-c", "import torch"], 120)
        except Failure:
            return {"skipped": f"{self.args.python} has no torch; --python names another"}
        out, _ = run([self.args.python, "scripts/bench_pytorch.py", *shape], 600)
        torch = json.loads(out)
        ours = {row["sequences"]: row for row in (self.bench or self.bench_replica())["decode"]}
        rows = []
        for row in torch["decode"]:
            mine = ours.get(row["sequences"])
            if mine is None:
                continue
            ratio = row["step_ms"] / mine["step_ms"]
            rows.append({"sequences": row["sequences"], "pytorch_ms": row["step_ms"],
                         "carousel_ms": mine["step_ms"], "ratio": ratio})
            self.target(f"PyTorch's time over ours, {row['sequences']} sequences", ratio, 2.0, "x")
        return {"torch": torch, "compared": rows}

    # ---- all of them ---------------------------------------------------------------------------

    def require_gpu(self):
        """Without one no part has anything to say: ends with the program's own reason."""
        if not self.carousel.exists():
            sys.exit(f"gpu_check: there is no {self.carousel}: part build makes it")
        try:
            run([self.carousel, "generate", ROOT / "model/demo", "--ids", "1", "--max-tokens", "1", "--backend",
                 "cuda", "--kv-memory", "8M"], 120)
        except Failure as e:
            shutil.rmtree(self.work, ignore_errors=True)
            sys.exit(f"gpu_check: the backend cuda does not run here: {e}")

    def all(self):
        failed = 0
        parts = self.args.parts or PARTS
        for i, name in enumerate(parts):
            if name != "build" and (i == 0 or parts[i - 1] == "build"):
                self.require_gpu()
            began = time.monotonic()
            try:
                result = {"ok": True, **getattr(self, name + "_part")()}
            except Failure as e:
                result, failed = {"ok": False, "why": str(e)}, failed + 1
            except (KeyError, ValueError, IndexError) as e:
                result, failed = {"ok": False, "why": f"an answer is not as expected: {e!r}"}, failed + 1
            result["seconds"] = round(time.monotonic() - began, 1)
            self.report["parts"][name] = result
            word = "skipped" if "skipped" in result else "ok" if result["ok"] else "FAILED"
            print(f"gpu_check: {name:<11} {result['seconds']:7.1f} s  {word}", file=sys.stderr)
            self.write()
        for row in self.report["targets"]:
            verdict = "" if self.is_rehearsal else "met" if row["met"] else "MISSED"
            print(f"gpu_check: {row['name']:<60} {row['value']:8.3f} target {row['target']:.3f} "
                  f"{row['unit']} {verdict}", file=sys.stderr)
        shutil.rmtree(self.work, ignore_errors=True)
        return failed

    def write(self):
        pathlib.Path(self.args.out).write_text(json.dumps(self.report, indent=1) + "\n")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("parts", nargs="*", metavar="PART", help=f"of {' '.join(PARTS)}; none: all")
    p.add_argument("-o", "--out", default="build/gpu_check.json")
    p.add_argument("--rehearse", action="store_true", help="emulated build, small shapes, no verdicts")
    p.add_argument("--python", default=sys.executable, help="with numpy, and torch for part pytorch")
    p.add_argument("--sequences", default="1,64,256")
    p.add_argument("--repeats", type=int, default=20)
    args = p.parse_args()
    unknown = [part for part in args.parts if part not in PARTS]
    if unknown:
        p.error(f"no part {unknown[0]}: choose from {', '.join(PARTS)}")
    os.makedirs(os.path.dirname(os.path.abspath(args.out)), exist_ok=True)
    check = Check(args)
    failed = check.all()
    missed = sum(1 for row in check.report["targets"] if row.get("met") is False)
    print(f"gpu_check: {len(check.report['parts']) - failed} parts ok, {failed} failed, "
          f"{missed} targets missed; {args.out}", file=sys.stderr)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
