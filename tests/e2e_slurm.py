#!/usr/bin/python3
"""The files of scripts/slurm/, submitted as they are to a real Slurm that scripts/slurm/testbed.sh brings up: a service
that answers and drains, a batch that its time limit interrupts and that goes on, a scaling study with its plot.

Needs root, slurmctld and munged; says so and is skipped where they are missing.
"""
import atexit
import json
import os
import pathlib
import shlex
import shutil
import signal
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request

from e2e_lib import DEMO, ROOT, WORK, Checks, Failure, run, run_command
from http_lib import Metrics, wait_for

PLACE = WORK / "slurm"
TESTBED = ROOT / "scripts" / "slurm" / "testbed.sh"
N_NODES = 9 # for a batch on 3, a service on 2 and a study on 1 + 3 at the same time
# Waits as long as a model does whose weights take 2 ms to read: the same on any machine, and hardly any CPU.
TIMED = ["--backend", "timed", "--cost", "weight_bound"]
# slurmctld looks at time limits every so often, counted from its start.
LIMIT_TICK_S = 30


def missing():
    if os.geteuid() != 0:
        return "needs root, because slurmd starts jobs under their owners' names"
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    absent = [name for name in ("slurmctld", "slurmd", "munged", "sbatch") if not shutil.which(name, path=path)]
    return f"there is no {', '.join(absent)} here (scripts/setup.sh tests)" if absent else None


class Testbed:
    """A private Slurm; its environment is what a user gets from `eval "$(testbed.sh up)"`."""

    def __init__(self, directory, n_nodes):
        self.directory, self.n_nodes, self.env = directory, n_nodes, {}
        atexit.register(self.down)

    def script(self, verb, *args):
        env = {"PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin"}
        return run_command([TESTBED, verb, "--dir", self.directory, *args], env=env)

    def up(self):
        result = self.script("up", "--nodes", self.n_nodes)
        if result.code != 0:
            raise Failure(str(result))
        self.began = time.monotonic()
        for line in result.out.splitlines():
            words = shlex.split(line)
            if words[:1] != ["export"]:
                raise Failure(f"up says {line!r}, which no shell shall evaluate")
            self.env.update(word.split("=", 1) for word in words[1:])
        return result

    def down(self):
        return self.script("down")

    def processes(self):
        """Command lines that name the directory."""
        found = []
        for entry in pathlib.Path("/proc").iterdir():
            try:
                line = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
            except OSError:
                continue
            if str(self.directory).encode() in line and b"testbed.sh" not in line:
                found.append(line.replace(b"\0", b" ").decode(errors="replace"))
        return found

    # ---- as a user ---------------------------------------------------------------------------------

    def command(self, *command, timeout=60, **variables):
        return run_command(command, env={**self.env, **variables}, timeout=timeout)

    def ok(self, *command, **options):
        result = self.command(*command, **options)
        if result.code != 0:
            raise Failure(str(result))
        return result.out

    def carousel(self, *args, **options):
        return run("slurm", *args, env=self.env, **options)

    def submit(self, name, nodes, options, *arguments, **variables):
        """The shipped script, unedited; what differs is given to sbatch."""
        out = self.ok("sbatch", "--parsable", f"--nodes={nodes}", f"--output={PLACE}/{name}.log", *options,
                      ROOT / "scripts" / "slurm" / f"{name.split('-')[0]}.sbatch", *arguments,
                      RUN_DIR=str(PLACE / name), **variables)
        return Job(self, out.strip(), PLACE / f"{name}.log", PLACE / name)


class Job:
    def __init__(self, testbed, number, log, run_dir):
        self.testbed, self.number, self.log, self.run_dir = testbed, number, log, run_dir

    def field(self, name):
        for word in self.testbed.ok("scontrol", "--oneliner", "show", "job", self.number).split():
            if word.startswith(name + "="):
                return word.split("=", 1)[1]
        raise Failure(f"job {self.number} has no {name}")

    def state(self):
        return self.field("JobState")

    def wait(self, states, seconds):
        found = ""

        def is_there():
            nonlocal found
            found = self.state()
            return found in states

        if not wait_for(is_there, seconds):
            raise Failure(f"job {self.number} is {found}, not {'/'.join(states)}, after {seconds} s: {self.tail()}")

    def tail(self):
        return self.log.read_text(errors="replace")[-1500:] if self.log.exists() else "(no log)"


# ---- the testbed ---------------------------------------------------------------------------------------------------

def test_testbed(c):
    place = pathlib.Path(tempfile.mkdtemp(prefix="carousel-testbed-"))
    beds = [Testbed(place / name, 2) for name in ("one", "two")]
    try:
        for turn in range(3):
            for bed in beds:  # side by side
                bed.up()
            for bed in beds:
                out = bed.ok("srun", "--nodes=2", "--ntasks=2", "--quiet", "printenv", "SLURMD_NODENAME", "SLURM_CONF")
                conf = bed.env["SLURM_CONF"]
                c.equal(sorted(out.split()), sorted(["n1", conf, "n2", conf]), f"turn {turn}: two nodes run a job")
        c.check("is up already" in beds[0].script("up", "--nodes", 2).err, "a second up finds it up")
        again = beds[0].script("up", "--nodes", 3)
        c.check(again.code == 1 and "take it down first" in again.err, f"another number of nodes: {again}")
        # What a crash leaves is replaced.
        for name in ("munged", "n2"):
            os.kill(int((beds[1].directory / "run" / f"{name}.pid").read_text()), signal.SIGKILL)
        c.equal(beds[1].script("status").code, 1, "a damaged testbed's status")
        beds[1].up()
        c.equal(beds[1].script("status").code, 0, "status of the one in its place")
        # Jobs that run do not hold it up.
        beds[1].ok("sbatch", "--nodes=2", "--output=/dev/null", "--wrap", "srun sleep 300")
        wait_for(lambda: "RUNNING" in beds[1].ok("squeue", "--noheader", "--format=%T"), 10)
        for bed in beds:
            result = bed.down()
            c.check(result.code == 0 and not bed.directory.exists(), f"down: {result}")
            c.equal(bed.processes(), [], "processes left")
        (place / "mine").mkdir()
        (place / "mine" / "file").write_text("mine")
        foreign = Testbed(place / "mine", 2)
        for verb in ("up", "down"):
            c.check("choose another --dir" in foreign.script(verb).err, f"{verb} in a directory with other files")
        c.equal((place / "mine" / "file").read_text(), "mine", "a file that is not the testbed's")
    finally:
        for bed in beds:
            bed.down()
        shutil.rmtree(place)


# ---- errors --------------------------------------------------------------------------------------------------------

def test_errors(c, bed):
    waits = bed.ok("sbatch", "--parsable", "--hold", "--wrap", "true").strip()
    other = bed.ok("sbatch", "--parsable", "--output=/dev/null", "--wrap", "sleep 60").strip()
    array = bed.ok("sbatch", "--parsable", "--output=/dev/null", "--array=1-3", "--wrap", "sleep 60").strip()
    if not wait_for(lambda: bed.ok("squeue", "--noheader", "--format=%T").count("RUNNING") == 4, 20):
        raise Failure(f"jobs do not start: {bed.ok('squeue')}")
    for args, code, words in (
            (["status"], 2, "which job"), (["stop", "1"], 2, "which job"), (["status", "1;ls"], 2, "not a job's number"),
            (["status", "99999"], 1, "knows no job 99999"),
            (["endpoint", waits], 1, "does not run yet: PENDING"), (["drain", waits], 1, f"scancel {waits}"),
            (["endpoint", other], 1, "no run directory"), (["endpoint", array], 1, "array"),
            (["endpoint", other, "--run-dir", PLACE / "nowhere"], 1, "no endpoint file")):
        result = bed.carousel(*args)
        c.equal(result.code, code, str(result))
        c.check(words in result.err and result.err.count("\n") == 1 and result.out == "", str(result))
    status = bed.carousel("status", other)
    c.check("RUNNING" in status.out and "endpoint   none" in status.out, f"status of a job that is none of ours: {status}")
    bed.ok("scancel", waits, other, array)
    nowhere = run("slurm", "status", "1", env={"PATH": "/nonexistent"})
    c.check(nowhere.code == 1 and "there is no Slurm here" in nowhere.err, str(nowhere))


def test_asking(c):
    """A controller that is never asked more often than needed, and a run directory of somebody who means ill."""
    place = PLACE / "asking"
    place.mkdir()
    asked = place / "asked"
    squeue = place / "squeue"
    squeue.write_text(f"""#!/bin/sh
echo "$*" >>{asked}
case "$*" in
*RestartCnt*) echo 0 ;;
*jobs=9*) printf '9|RUNNING|1|0:10|None|carousel:/\\377\\n' ;;
*jobs=8*) echo "8|RUNNING|1|0:10|None|carousel:{place}" ;;
*) echo "7|PENDING|1|0:10|Resources|" ;;
esac
""")
    squeue.chmod(0o700)
    env = {"PATH": f"{place}:{os.environ.get('PATH', '')}"}
    late = run("slurm", "endpoint", "7", "--wait", "4", env=env)
    c.check(late.code == 1 and "does not run yet" in late.err and late.seconds >= 4, f"waits for the start: {late}")
    n_asked = len(asked.read_text().splitlines())
    c.check(4 <= n_asked <= 22, f"squeue was asked {n_asked} times in 4 s")
    os.mkfifo(place / "endpoint.json")
    pipe = run("slurm", "endpoint", "8", env=env, timeout=10)
    c.check(pipe.code == 1 and "no endpoint file" in pipe.err, f"a pipe in the endpoint file's place: {pipe}")
    latin = run("slurm", "status", "9", "--json", env=env)
    c.check(latin.code == 1 and "no UTF-8" in latin.err and latin.out == "", f"a run directory in Latin-1: {latin}")
    for drain_s in ("09", "1m"):  # bash would take the first for an octal number, when it is too late
        script = run_command(["bash", ROOT / "scripts" / "slurm" / "batch.sbatch"], cwd=ROOT,
                             env={"SLURM_JOB_ID": "1", "DRAIN_S": drain_s, "RUN_DIR": str(place / "run")})
        c.check(script.code == 1 and f"DRAIN_S={drain_s}" in script.err, f"DRAIN_S: {script}")


# ---- serve ---------------------------------------------------------------------------------------------------------

def ask(url, key, n_tokens, answers):
    body = {"model": "demo", "prompt": "f>w c>x", "max_tokens": n_tokens, "ignore_eos": True}
    request = urllib.request.Request(url + "/v1/completions", json.dumps(body).encode(),
                                     {"Authorization": f"Bearer {key}", "Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            answers.append((answer.status, json.load(answer)["usage"]["completion_tokens"]))
    except urllib.error.HTTPError as e:
        answers.append((e.code, 0))
    except OSError as e:
        answers.append((str(e), 0))


def n_running(url, key):
    request = urllib.request.Request(url + "/metrics", headers={"Authorization": f"Bearer {key}"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return Metrics(answer.read().decode()).sum("num_requests_running")


def serve(c, bed, name, launcher, end, state):
    """Up, asked, ended while requests run: they are answered, and the job ends as it should."""
    job = bed.submit(name, 2, ["--time=10"], DEMO, *TIMED, LAUNCHER=launcher)
    found = bed.carousel("endpoint", job.number, "--wait", 30)
    if found.code != 0:
        raise Failure(f"{found}: {job.tail()}")
    url, key = found.out.strip(), (job.run_dir / "api_key").read_text()
    status = json.loads(bed.carousel("status", job.number, "--json").out)
    c.equal((status["state"], status["nodes"], status["requeues"], status["ready"], status["endpoint"]["url"]),
            ("RUNNING", 2, 0, True, url), f"{name}: status")
    c.equal((job.run_dir / "hosts").read_text().split()[0:1] * 2, (job.run_dir / "hosts").read_text().split()[0:2],
            f"{name}: the coordinator is on the first worker's node")
    answers, refused = [], []
    ask(url, "wrong", 1, refused)
    c.equal(refused, [(401, 0)], f"{name}: without the key")
    threads = [threading.Thread(target=ask, args=(url, key, 150, answers)) for _ in range(6)]
    for t in threads:
        t.start()
    if not wait_for(lambda: len(answers) + n_running(url, key) >= 6, 20):
        raise Failure(f"{name}: requests do not start: {answers}, {job.tail()}")
    ended = end(job)
    for t in threads:
        t.join()
    c.equal(answers, [(200, 150)] * 6, f"{name}: what ran is answered")
    c.equal(ended.code, 0, f"{name}: {ended}")
    job.wait([state], 20)
    c.equal(json.loads((job.run_dir / "endpoint.json").read_text())["state"], "stopped", f"{name}: the endpoint file")
    c.check("has ended with 0" in job.tail(), f"{name}: exit code of serve: {job.tail()}")
    late = bed.carousel("endpoint", job.number)
    c.check(late.code == 1 and "does not run any more" in late.err, f"{name}: endpoint of a job that has ended: {late}")


def test_serve(c, bed):
    serve(c, bed, "serve-drained", "mpirun", lambda job: bed.carousel("drain", job.number), "COMPLETED")
    serve(c, bed, "serve-cancelled", "mpirun", lambda job: bed.command("scancel", job.number), "CANCELLED")
    serve(c, bed, "serve-srun", "srun", lambda job: bed.carousel("drain", job.number), "COMPLETED")


# ---- batch ---------------------------------------------------------------------------------------------------------

def start_batch(_, bed):
    """200 prompts that take 20 s or more, with the shortest limit that Slurm has and its signal as early as can be."""
    with open(PLACE / "in.jsonl", "w", encoding="ascii") as f:
        for i in range(200):
            f.write(json.dumps({"custom_id": f"line-{i}", "prompt": "f>w c>x", "max_tokens": 25, "ignore_eos": True}) + "\n")
    # Neither at the end of the batch nor before it has begun.
    phase = (time.monotonic() - bed.began) % LIMIT_TICK_S
    if not 12 <= phase <= 16:
        time.sleep((12 - phase) % LIMIT_TICK_S)
    return bed.submit("batch-limit", 3, ["--time=1", "--signal=B:USR1@50"], DEMO, "-i", PLACE / "in.jsonl",
                      "-o", PLACE / "out.jsonl", "--max-sequences", "2", *TIMED)


def finish_batch(c, bed, job):
    job.wait(["COMPLETED"], 100)
    log = job.log.read_text()
    n_starts = int(job.field("Restarts")) + 1
    c.check(n_starts >= 2 and log.count("the job waits to go on") == n_starts - 1, f"batch: {n_starts} starts: {log}")
    c.check("USR1" in log and "drained after SIGUSR1" in log, f"batch: the limit drained it: {log}")
    status = bed.carousel("status", job.number)
    c.check(f"requeues   {n_starts - 1}" in status.out, f"batch: {status.out}")
    lines = [json.loads(line) for line in (PLACE / "out.jsonl").read_text().splitlines()]
    c.equal(sorted(line["custom_id"] for line in lines), sorted(f"line-{i}" for i in range(200)),
            "batch: every id exactly once")
    c.check(all(line["error"] is None for line in lines), "batch: all are answered")
    c.equal(log.count("carousel batch has ended with 0"), 1, "batch: one start has finished it")
    c.note(f"batch: {n_starts} starts")


def test_batch_drain(c, bed):
    """A drain by a user is the end: the job does not start again."""
    job = bed.submit("batch-drained", 2, ["--time=10"], DEMO, "-i", PLACE / "in.jsonl", "-o", PLACE / "drained.jsonl",
                     "--max-sequences", "2", *TIMED, LAUNCHER="mpirun")
    if not wait_for(lambda: (PLACE / "drained.jsonl").exists() and (PLACE / "drained.jsonl").stat().st_size > 0, 20):
        raise Failure(f"no answer: {job.tail()}")
    result = bed.carousel("drain", job.number)
    c.check(result.code == 0 and "has ended" in result.out, f"batch drained: {result}")
    c.equal(job.state(), "FAILED", "batch drained: not all lines are done")
    c.equal(job.field("ExitCode"), "130:0", "batch drained: exit code")
    lines = (PLACE / "drained.jsonl").read_text().splitlines()
    c.check(0 < len(lines) < 200 and all(json.loads(line)["error"] is None for line in lines), "batch drained: lines")


# ---- scaling -------------------------------------------------------------------------------------------------------

def start_scaling(c, bed):
    result = bed.command(ROOT / "scripts" / "slurm" / "scaling.sh", "--nodes", "3,1,2", "--out", PLACE / "scaling",
                         "--time", "5", "--", "--series", "strong", "--repetitions", "2", "--base", "default",
                         "--strong-concurrency", "12", "--rounds", "2", "--", *TIMED)
    c.equal(result.code, 0, f"scaling: {result}")
    said = [line.split()[1:4] for line in result.out.splitlines()]
    c.equal([words[1:] for words in said], [["1", "nodes"], ["2", "nodes"], ["3", "nodes"], ["the", "plot,"]],
            f"scaling: jobs {result.out}")
    out = PLACE / "scaling"
    return Job(bed, said[-1][0].rstrip(":"), out / f"plot-{said[-1][0].rstrip(':')}.log", out)


def finish_scaling(c, bed, job):
    out = job.run_dir
    wait_for(lambda: job.state() in ("COMPLETED", "FAILED", "CANCELLED"), 90)
    logs = "".join(p.read_text(errors="replace") for p in sorted(out.glob("*.log")))
    if not c.equal(job.state(), "COMPLETED", f"scaling: the plot's job: {logs[-1500:]}"):
        return
    for n in (1, 2, 3):
        points = json.loads((out / f"w{n}.json").read_text())["points"]
        c.equal([p["ok"] for p in points], [True, True], f"scaling: points of {n} workers")
        c.equal({len(p["result"]["workers"]) for p in points}, {n}, "scaling: workers that measured")
    rows = (out / "scaling.csv").read_text().splitlines()
    c.check(len(rows) >= 4, f"scaling: {rows}")
    c.check((out / "scaling.png").read_bytes().startswith(b"\x89PNG") and "<svg" in (out / "scaling.svg").read_text(),
            "scaling: the plot")
    c.check((out / "manifest.json").exists(), "scaling: the manifest")
    bad = bed.command(ROOT / "scripts" / "slurm" / "scaling.sh", "--nodes", "1,x")
    c.check(bad.code == 1 and bad.err.count("\n") == 1 and "numbers with commas" in bad.err, f"scaling: {bad}")


def timed(c, function, *args):
    began = time.monotonic()
    result = c.attempt(function, *args)
    c.note(f"{function.__name__}: {time.monotonic() - began:.1f} s")
    return result


def main():
    why = missing()
    if why:
        print(f"e2e_slurm: skipped: {why}")
        sys.exit(0)
    c = Checks("e2e_slurm")
    directory = PLACE / "bed"
    if len(str(directory)) > 70:  # a socket's name is short
        directory = pathlib.Path(tempfile.mkdtemp(prefix="carousel-e2e-")) / "bed"
    bed = Testbed(directory, N_NODES)
    bed.down()  # what a test that was killed has left
    shutil.rmtree(PLACE, ignore_errors=True)
    PLACE.mkdir(parents=True)
    result = bed.up()
    c.note(result.err.strip())
    timed(c, test_errors, bed)
    timed(c, test_asking)
    batch = timed(c, start_batch, bed)
    study = timed(c, start_scaling, bed)
    timed(c, test_serve, bed)
    timed(c, test_batch_drain, bed)
    timed(c, test_testbed)
    if study is not None:
        timed(c, finish_scaling, bed, study)
    if batch is not None:
        timed(c, finish_batch, bed, batch)
    bed.down()
    c.equal(bed.processes(), [], "processes left")
    c.check(not directory.exists(), f"{directory} is left")
    c.close()


if __name__ == "__main__":
    main()
