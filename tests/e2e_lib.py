"""What the end-to-end tests share: runs the program with a time limit, counts checks, makes checkpoints.

The program is build/carousel, or $CAROUSEL. Everything is written below build/e2e. Each test prints its
failures as they come and closes with `e2e_x: N passed, N failed`; its exit code is 1 when any check failed.
"""
import importlib.util
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROGRAM = os.environ.get("CAROUSEL", str(ROOT / "build" / "carousel"))
WORK = ROOT / "build" / "e2e"
DEMO = ROOT / "model" / "demo"


def reference():
    """scripts/reference.py as a module."""
    spec = importlib.util.spec_from_file_location("reference", ROOT / "scripts" / "reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def clean_environment():
    """Ours without CAROUSEL_* options, which would change what is tested, and without GPUs: --backend auto is the CPU
    everywhere. A test of GPUs gives CUDA_VISIBLE_DEVICES back."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("CAROUSEL_")}
    clean["CUDA_VISIBLE_DEVICES"] = ""
    return clean


class Result:
    def __init__(self, command, code, out, err, seconds, is_late):
        self.command, self.code, self.out, self.err = command, code, out, err
        self.seconds, self.is_late = seconds, is_late

    def json(self):
        try:
            return json.loads(self.out)
        except ValueError:
            raise Failure(f"{self}: not one JSON object: {self.out[:300]!r}") from None

    def __str__(self):
        late = ", over its time limit" if self.is_late else ""
        return f"{' '.join(self.command)}: exit code {self.code}{late}: {self.err.strip()[-600:]}"


class Failure(Exception):
    """A run that gave nothing to check; fails the test but not the tests after it."""


def stop_group(process):
    """Ends a process and what it started: mpirun passes TERM on to its ranks, KILL is for a deaf one."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(timeout=5)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue


def run_command(command, timeout=60, stdin=None, cwd=None, env=None):
    command = [str(a) for a in command]
    environment = clean_environment()
    environment.update(env or {})
    began = time.monotonic()
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE if stdin is not None else subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=cwd or ROOT, env=environment, text=True,
        errors="replace", start_new_session=True)
    is_late = False
    try:
        out, err = process.communicate(stdin, timeout=timeout)
    except subprocess.TimeoutExpired:
        is_late = True
        stop_group(process)
        out, err = process.communicate()
    return Result(command, process.returncode, out, err, time.monotonic() - began, is_late)


def run(*args, **options):
    """carousel ARGS..."""
    return run_command([PROGRAM, *args], **options)


def run_ok(*args, **options):
    result = run(*args, **options)
    if result.code != 0 or result.is_late:
        raise Failure(str(result))
    return result


def run_json(*args, **options):
    return run_ok(*args, "--json", **options).json()


def ids_text(ids):
    return ",".join(str(i) for i in ids)


def make_checkpoint(name, *args):
    """A random checkpoint build/e2e/models/NAME, made anew when the arguments or the script changed."""
    directory = WORK / "models" / name
    stamp = directory / "made_by"
    script = ROOT / "scripts" / "make_checkpoint.py"
    line = " ".join(str(a) for a in args) + f" {script.stat().st_mtime_ns}"
    if not (stamp.exists() and stamp.read_text() == line):
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        done = run_command(["/usr/bin/python3", script, *args, directory])
        if done.code != 0:
            raise Failure(str(done))
        stamp.write_text(line)
    return directory


class Checks:
    """Counts; prints what fails at once, so that a hang later does not hide it."""

    MOST_SHOWN = 30

    def __init__(self, name):
        self.name, self.passed, self.failed = name, 0, 0
        if not os.access(PROGRAM, os.X_OK):
            sys.exit(f"{name}: there is no program {PROGRAM}: run make, or set CAROUSEL to another one")

    def check(self, is_good, what):
        if is_good:
            self.passed += 1
        else:
            self.failed += 1
            if self.failed <= self.MOST_SHOWN:
                print(f"FAILED {what}", flush=True)
        return bool(is_good)

    def equal(self, found, expected, what):
        text = f"{what}: found {str(found)[:400]}, expected {str(expected)[:400]}"
        return self.check(found == expected, text)

    def note(self, text):
        print(f"  {text}", flush=True)

    def attempt(self, function, *args):
        """Runs one test function; a run without a result counts as one failed check."""
        try:
            return function(self, *args)
        except Failure as e:
            self.check(False, str(e))
            return None

    def close(self):
        print(f"{self.name}: {self.passed} passed, {self.failed} failed", flush=True)
        sys.exit(1 if self.failed or not self.passed else 0)
