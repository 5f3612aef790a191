"""scripts/scaling_study.sh: points in random order that can be taken up again, intervals that are right, a picture that
shows something, failures that are told. Ranks wait by a cost file instead of computing.
"""
import concurrent.futures
import csv
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree

from e2e_lib import ROOT, WORK, Checks, Failure, run_command

sys.path.insert(0, str(ROOT / "scripts"))
import scaling_stats  # noqa: E402

STUDY = ROOT / "scripts" / "scaling_study.sh"
PLACE = WORK / "study"
SMALL = ["--base", "default", "--strong-concurrency", "6", "--weak-concurrency", "2", "--rounds", "2",
         "--prompt-tokens", "8", "--output-tokens", "4-6", "--long-prompt", "64"]
TIMED = ["--", "--backend", "timed", "--cost", "weight_bound"]
COUNTS = [1, 2, 3]


def study(*args, env=None):
    return run_command([STUDY, *args], timeout=120, env=env)


def points_of(directory, workers):
    return json.loads((directory / f"w{workers}.json").read_text())["points"]


def rows_of(directory):
    with open(directory / "scaling.csv", newline="", encoding="utf-8") as f:
        return list(csv.DictReader(f))


def exact_bootstrap(n):
    """P(median of a bootstrap sample <= k-th smallest of n) for k = 1..n, n odd: at least (n + 1) / 2 of n draws, each
    with probability k / n, are among the k smallest (Efron 1979)."""
    def at_least(k):
        p = k / n
        return sum(math.comb(n, j) * p**j * (1 - p) ** (n - j) for j in range((n + 1) // 2, n + 1))
    return [at_least(k) for k in range(1, n + 1)]


def check_bootstrap(c):
    import numpy
    for n in (3, 5, 7, 11, 21):
        values = numpy.arange(1, n + 1) ** 1.5
        exact = exact_bootstrap(n)
        medians = scaling_stats.resampled_medians(values, f"test {n}")
        for k, share in enumerate(exact):
            found = float(numpy.mean(medians <= values[k] + 1e-9))
            c.check(abs(found - share) < 0.02, f"n = {n}: {found:.4f} of the medians are <= value {k + 1}, exactly {share:.4f}")
        if any(abs(share - tail) < 0.005 for share in exact for tail in (0.025, 0.975)):
            continue
        low, high = (next(float(v) for v, share in zip(values, exact) if share >= tail) for tail in (0.025, 0.975))
        c.equal(scaling_stats.median_interval(values, f"test {n}"), (float(numpy.median(values)), low, high),
                f"n = {n}: the interval")
    c.equal(scaling_stats.median_interval([4.0], "one"), (4.0, 4.0, 4.0), "one value has no width")
    middle, low, high = scaling_stats.ratio_interval([10.0, 11, 12], [5.0], 0.5, "ratio")
    c.equal((middle, low, high), (1.1, 1.0, 1.2), "a ratio over a fixed base is the interval over it")
    rng = numpy.random.default_rng(7)
    held = sum(low <= 0 <= high for low, high in (
        scaling_stats.median_interval(rng.standard_normal(9), f"cover {i}")[1:] for i in range(300)))
    c.check(0.90 <= held / 300 <= 0.99, f"the 95 % interval held the median in {held} of 300 samples")


def check_run(c, directory):
    done = study("all", "--workers", "3,1,2,1", "--series", "strong,single", "--repetitions", "2", "--out", directory,
                 *SMALL, *TIMED)
    if not c.check(done.code == 0, str(done)):
        raise Failure(f"no study: {done.out}")
    c.check("12 points, 0 of them are there" in done.out, done.out)
    orders = sorted((p["order"], p["series"], w, p["repetition"]) for w in COUNTS for p in points_of(directory, w))
    c.equal([o[0] for o in orders], list(range(12)), "each point has its place in the order")
    c.check([o[1:] for o in orders] != sorted(o[1:] for o in orders), f"the order is random: {orders}")
    kept = {w: points_of(directory, w) for w in COUNTS}
    again = study("run", "--workers", "1,2,3", "--series", "strong,single", "--repetitions", "2", "--out", directory,
                  *SMALL, *TIMED)
    c.check(again.code == 0 and "12 points, 12 of them are there" in again.out, f"again: {again} {again.out}")
    c.equal({w: points_of(directory, w) for w in COUNTS}, kept, "what is there is kept")
    # One point less, two series more: only what is missing is measured.
    book = json.loads((directory / "w2.json").read_text())
    book["points"] = [p for p in book["points"] if (p["series"], p["repetition"]) != ("strong", 2)]
    (directory / "w2.json").write_text(json.dumps(book))
    more = study("all", "--workers", "1,2,3", "--series", "strong", "--repetitions", "2", "--out", directory, *SMALL,
                 *TIMED)
    c.check(more.code == 0 and "6 points, 5 of them are there" in more.out and "[1/1] strong W=2 #2" in more.out,
            f"the missing one: {more} {more.out}")
    more = study("all", "--series", "weak,kv", "--repetitions", "1", "--workers", "1,2,3", "--out", directory, *SMALL,
                 *TIMED)
    c.check(more.code == 0, str(more))


def check_csv(c, directory):
    rows = rows_of(directory)
    metrics = [("strong", "tokens_per_s"), ("weak", "tokens_per_s"), ("kv", "sequences"), ("kv", "tokens_per_s"),
               ("single", "tpot_ms"), ("single", "ttft_ms")]
    c.equal(sorted((r["series"], r["metric"], int(r["workers"])) for r in rows),
            sorted((*m, w) for m in metrics for w in COUNTS), "a row for each series, metric and count")
    for r in rows:
        name = f"{r['series']} {r['metric']} W={r['workers']}"
        low, middle, high = (float(r[k]) for k in ("ci_low", "median", "ci_high"))
        c.check(0 < low <= middle <= high, f"{name}: {low} <= {middle} <= {high}")
        c.equal((r["failed"], r["n"]), ("0", "2" if r["series"] in ("strong", "single") else "1"), name)
        if r["metric"] in ("tokens_per_s", "sequences"):
            c.check(float(r["efficiency_low"]) <= float(r["efficiency"]) <= float(r["efficiency_high"]), name)
    # By hand, from the points themselves.
    values = [p["result"] for p in points_of(directory, 2) if p["series"] == "single"]
    mean = sum(v["tpot_ms"]["p50"] for v in values) / 2
    found = next(r for r in rows if (r["series"], r["metric"], r["workers"]) == ("single", "tpot_ms", "2"))
    c.check(abs(float(found["median"]) - mean) < 1e-4 * mean, f"median of two: {found['median']}, {mean}")
    kinds = {r["metric"]: r["model_kind"] for r in rows}
    c.equal(kinds, {"tokens_per_s": "simulated", "sequences": "ideal", "tpot_ms": "simulated", "ttft_ms": "simulated"},
            "the model line is the simulator's")
    for r in rows:
        model = float(r["model"])
        c.check(8.0 <= model <= 9.0 if r["metric"] == "tpot_ms" else model > 0, f"the model says {model}: {r}")
    # weight_bound: 2.01 ms a loop and 5 % jitter, four loops a token; whatever W, one stream is not faster.
    c.check(7.5 <= mean <= 80, f"one stream takes {mean:.2f} ms a token at 4 loops of 2 ms")
    open_now = {int(r["workers"]): float(r["median"]) for r in rows if r["metric"] == "sequences"}
    c.check(open_now[1] >= 12 and open_now[2] >= 1.8 * open_now[1], f"sequences that fit: {open_now}")


def check_model(c, directory):
    """The simulator's answers are kept as long as it is the same simulator with the same costs."""
    path = directory / "model.json"
    kept = json.loads(path.read_text())
    found = next(result for result in kept["results"].values() if "tpot_ms" in result)
    wrong = json.loads(path.read_text())
    for result in wrong["results"].values():
        result["tpot_ms"]["p50"] = 1234.5

    def models():
        c.equal(study("plot", directory).code, 0, "plot")
        return {float(r["model"]) for r in rows_of(directory) if r["metric"] == "tpot_ms"}

    c.check(found["tpot_ms"]["p50"] > 0, f"what simulate said: {found}")
    path.write_text(json.dumps(wrong))
    c.equal(models(), {1234.5}, "what is kept is not asked again")
    wrong["simulator"][1] += 1
    path.write_text(json.dumps(wrong))
    c.check(1234.5 not in models(), "another program's answers are not taken")
    wrong["simulator"] = [*kept["simulator"][:2], "{}"]
    path.write_text(json.dumps(wrong))
    c.check(1234.5 not in models(), "answers for other costs are not taken")


def check_pictures(c, directory):
    import matplotlib.image
    import numpy
    image = matplotlib.image.imread(directory / "scaling.png")[:, :, :3]
    c.check(image.shape[1] >= 1000 and image.std() > 0.05, f"a picture of {image.shape} that varies by {image.std()}")
    for name, colour in (("points", (0x0B, 0x5F, 0xA5)), ("efficiency", (0xD9, 0x73, 0x0D))):
        near = numpy.all(numpy.abs(image - numpy.array(colour) / 255) < 0.05, axis=2).sum()
        c.check(near > 150, f"{near} pixels have the colour of the {name}")
    words = " ".join(xml.etree.ElementTree.parse(directory / "scaling.svg").getroot().itertext())
    for word in ("Strong", "Weak", "Efficiency", "sequences that fit", "time per token", "first token",
                 "measured, 95 % CI", "cost file weight_bound"):
        c.check(word in words, f"the svg does not say '{word}'")


def check_manifest(c, directory):
    m = json.loads((directory / "manifest.json").read_text())
    facts = m["facts"]["2"]
    c.check(len(facts["git"]["commit"] or "") == 40 or not (ROOT / ".git").exists(), f"commit: {facts['git']}")
    c.check(isinstance(facts["git"]["dirty"], bool) or not (ROOT / ".git").exists(), f"dirty: {facts['git']}")
    c.check(facts["carousel"].startswith("carousel ") and "Open MPI" in facts["mpi"], str(facts))
    c.check(facts["cpu"]["cores"] >= 1 and facts["cpu"]["model"] and isinstance(facts["gpu"], list), str(facts))
    c.check("--backend timed --cost weight_bound" in facts["command"], facts["command"])
    c.equal((m["plan"]["seed"], m["plan"]["extra"], m["failed"], m["is_timed"]),
            (1, ["--backend", "timed", "--cost", "weight_bound"], 0, True), "plan")
    c.equal((len(m["points"]), m["bootstrap"]["level"]), (18, 0.95), "points")
    c.check(all(p["began"] and "bench engine" in p["command"] for p in m["points"]), "each point has its command")
    c.equal([list(of.values()) for of in m["tokens_hashes"].values()], [[COUNTS]] * 2, "the same tokens at any W")


def check_failures(c):
    """A ring of two does not divide one worker; the rest goes on, and the picture shows it."""
    directory = PLACE / "failing"
    done = study("all", "--workers", "1,2", "--series", "strong", "--repetitions", "1", "--out", directory, *SMALL,
                 *TIMED, "--ring-size", "2")
    c.check(done.code == 1 and "1 of 2 points failed" in done.err, f"exit code and message: {done}")
    bad, = points_of(directory, 1)
    c.check(not bad["ok"] and "--ring-size 2 does not divide 1 workers" in bad["message"], str(bad))
    rows = {r["workers"]: r for r in rows_of(directory)}
    c.equal((rows["1"]["n"], rows["1"]["failed"], rows["1"]["median"]), ("0", "1", ""), "the failed row")
    c.check("does not divide" in rows["1"]["message"] and float(rows["2"]["median"]) > 0, f"rows: {rows}")
    c.equal(json.loads((directory / "manifest.json").read_text())["failed"], 1, "manifest")
    again = study("run", "--workers", "1,2", "--series", "strong", "--repetitions", "1", "--out", directory, *SMALL,
                  *TIMED, "--ring-size", "2")
    c.check("2 points, 1 of them are there" in again.out, f"a failed one is tried again: {again.out}")
    c.equal(len(points_of(directory, 1)), 1, "and recorded once")
    slow = study("run", "--workers", "2", "--series", "strong", "--repetitions", "1", "--out", PLACE / "slow",
                 "--timeout", "1", *SMALL, "--rounds", "4000", *TIMED)
    c.check(slow.code == 1 and slow.seconds < 25, f"over its time: {slow}")
    c.check("longer than 1 s" in points_of(PLACE / "slow", 2)[0]["message"], "a point over its time says so")


def check_end(c):
    """A study that is ended leaves no ranks, and what it has measured."""
    directory = PLACE / "ended"
    mark = f"{os.getpid()}"
    line = [str(STUDY), "run", "--workers", "2", "--series", "strong", "--repetitions", "1", "--out", str(directory),
            *SMALL, "--rounds", "4000", *TIMED, "--wait-limit", mark]
    with subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        began = time.monotonic()
        while n_ranks(mark) < 3 and time.monotonic() - began < 20:
            time.sleep(0.1)
        c.check(n_ranks(mark) >= 3, "ranks run")
        process.send_signal(signal.SIGTERM)
        c.equal(process.wait(timeout=25), 143, "exit code")
    began = time.monotonic()
    while n_ranks(mark) > 0 and time.monotonic() - began < 5:
        time.sleep(0.1)
    c.equal(n_ranks(mark), 0, "ranks that are left")


def n_ranks(mark):
    """Processes with this --wait-limit that are carousel or its mpirun."""
    found = 0
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as f:
                words = f.read().split(b"\0")
        except OSError:
            continue
        found += mark.encode() in words and b"bench" in words and b"--out" not in words
    return found


def check_real_arithmetic(c):
    """Several ranks on few cores: the picture must not call it scaling. Started by a command of ours."""
    directory = PLACE / "real"
    many = len(os.sched_getaffinity(0))
    done = study("all", "--workers", f"1,{many}", "--series", "weak", "--repetitions", "1", "--out", directory, *SMALL,
                 "--mpirun", "mpirun --quiet --oversubscribe --bind-to none", env={"OMPI_MCA_btl_tcp_if_include": "lo",
                                                                                  "OMPI_MCA_oob_tcp_if_include": "lo"})
    c.check(done.code == 0, f"real arithmetic: {done}")
    m = json.loads((directory / "manifest.json").read_text())
    c.equal({r["model_kind"] for r in rows_of(directory)}, {"ideal"}, "without a cost file the line is the ideal one")
    c.check(f"share {many} cores" in (m["warning"] or "") and not m["is_timed"], f"warning: {m['warning']}")
    c.check("not how a cluster scales" in (directory / "scaling.svg").read_text(), "the picture says so")
    c.equal(m["facts"]["1"]["environment"].get("OMPI_MCA_btl_tcp_if_include"), "lo", "environment")


def check_refusals(c, directory):
    for args, word in ((["run", "--workers", "1", "--out", directory, "--seed", "5", *SMALL, *TIMED], "seed was 1"),
                       (["run", "--workers", "0", "--out", PLACE / "x"], "'0'"),
                       (["run", "--series", "strong,size", "--out", PLACE / "x"], "'size'"),
                       (["run"], "--out"), (["draw"], "'draw'"),
                       (["run", "--launcher", "slurm", "--out", PLACE / "x"], "scripts/slurm/scaling.sh"),
                       (["run", "--model", PLACE / "none", "--out", PLACE / "x"], "no config.json"),
                       (["run", "--out", PLACE / "x", "--prompt-tokens", "400"], "context of 256"),
                       (["plot", PLACE / "none"], "has no study")):
        result = study(*args)
        c.check(result.code in (1, 2) and word in result.err and "Traceback" not in result.err, f"{args}: {result}")
    (directory / "w1.json").write_text("{")
    result = study("plot", directory)
    c.check(result.code == 1 and "not JSON" in result.err, f"a broken file: {result}")


def main():
    c = Checks("e2e_study")
    shutil.rmtree(PLACE, ignore_errors=True)
    PLACE.mkdir(parents=True)
    directory = PLACE / "timed"
    # Studies of their own, beside each other: most of their time is waiting.
    with concurrent.futures.ThreadPoolExecutor(3) as beside:
        running = [beside.submit(c.attempt, check) for check in (check_failures, check_end, check_real_arithmetic)]
        c.attempt(check_bootstrap)
        try:
            check_run(c, directory)
            for check in (check_csv, check_model, check_pictures, check_manifest, check_refusals):
                c.attempt(check, directory)
        except Failure as e:
            c.check(False, str(e))
        for one in running:
            one.result()
    c.close()


if __name__ == "__main__":
    main()
