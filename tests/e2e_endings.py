#!/usr/bin/python3
"""However a run ends, it ends soon, the exit code tells, and the reason is on standard error once.

Rank 0 that fails before it coordinates, a worker that is killed, a disk that is full.
"""
import os
import pathlib
import signal
import subprocess
import time

from e2e_lib import DEMO, PROGRAM, ROOT, WORK, Checks, clean_environment, run, run_command, stop_group

AS_ROOT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
SOON = 30  # seconds; a worker waits 120 for a coordinator's first word


def carousel_lines(text):
    return [line for line in text.splitlines() if line.startswith("carousel")]


def by_mpirun(*commands):
    command = ["mpirun", "--quiet", "--oversubscribe"]
    for i, (n, args) in enumerate(commands):
        command += ([":"] if i else []) + ["-n", n, PROGRAM, *args]
    return run_command(command, env=AS_ROOT, timeout=SOON)


def rank_0_fails_early(c):
    good, bad = ["generate", DEMO, "--ids", "1,2", "-n", 3], ["generate", "/nowhere", "--ids", "1,2"]
    for name, commands in (("on all ranks", [(3, bad)]), ("on rank 0", [(1, bad), (2, good)]),
                           ("on a worker", [(2, good), (1, bad)])):
        result = by_mpirun(*commands)
        c.check(not result.is_late, f"no model {name}: still there after {SOON} s")
        c.equal(result.code, 1, f"no model {name}: exit code")
        lines = carousel_lines(result.err)
        c.equal(len(lines), 1, f"no model {name}: messages in {result.err!r}")
        c.check("/nowhere does not exist" in result.err, f"no model {name}: said {result.err!r}")
    WORK.mkdir(parents=True, exist_ok=True)
    without = WORK / "no_tokenizer"
    without.mkdir(exist_ok=True)
    for name in ("config.json", "model.safetensors"):
        (without / name).write_bytes((DEMO / name).read_bytes())
    result = by_mpirun((3, ["generate", without, "hello"]))
    c.check(not result.is_late, f"no tokenizer: still there after {SOON} s")
    c.check("tokenizer.json does not exist" in result.err, f"no tokenizer: said {result.err!r}")


def ranks_of(pid):
    """{rank: pid} of a job's processes, found by what mpirun puts into their environment."""
    found = {}
    for entry in pathlib.Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and os.getsid(int(entry.name)) == os.getsid(pid):
                words = (entry / "environ").read_bytes().split(b"\0")
                rank = [w for w in words if w.startswith(b"OMPI_COMM_WORLD_RANK=")]
                if rank:
                    found[int(rank[0].split(b"=")[1])] = int(entry.name)
        except (OSError, ProcessLookupError):
            continue
    return found


def a_worker_is_killed(c):
    for to_file in (False, True):
        name = f"killed worker, output into a {'file' if to_file else 'pipe'}"
        out = open(os.devnull, "w", encoding="ascii") if to_file else subprocess.PIPE
        process = subprocess.Popen(
            [PROGRAM, "bench", "engine", str(DEMO), "--workers", "2", "-r", "200000", "-c", "8"],
            stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.PIPE, text=True, cwd=ROOT,
            env=clean_environment(), start_new_session=True)
        deadline = time.monotonic() + SOON
        ranks = {}
        while len(ranks) < 3 and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.1)
            ranks = ranks_of(process.pid)
        if c.equal(sorted(ranks), [0, 1, 2], f"{name}: ranks before"):
            time.sleep(0.5)
            os.kill(ranks[2], signal.SIGKILL)
        try:
            _, err = process.communicate(timeout=SOON)
            c.check(process.returncode not in (0, None), f"{name}: exit code {process.returncode}")
            c.check("ended by signal 9" in err, f"{name}: said {err!r}")
        except subprocess.TimeoutExpired:
            c.check(False, f"{name}: still there after {SOON} s")
            stop_group(process)
        if to_file:
            out.close()


def the_disk_is_full(c):
    for extra in ([], ["--workers", 2]):
        command = [PROGRAM, "generate", DEMO, "--ids", "1,2", "-n", 5, *extra]
        line = " ".join(str(word) for word in command) + " > /dev/full"
        result = run_command(["/bin/sh", "-c", line], timeout=SOON)
        c.equal(result.code, 1, f"full disk {extra}: exit code")
        c.check("cannot write standard output" in result.err, f"full disk {extra}: said {result.err!r}")


def more_in_flight_than_the_queue_holds(c):
    result = run("bench", "engine", DEMO, "-c", 5000, "-r", 5000, "-p", 1, "-o", 1, timeout=SOON)
    c.equal(result.code, 0, f"5000 at once: {result.err!r}")


def options_without_effect(c):
    for args in (["bench", "engine", DEMO, "--max-tokens", 3], ["bench", "engine", DEMO, "surplus"],
                 ["info", DEMO, "surplus"], ["doctor", DEMO, "surplus"],
                 ["generate", DEMO, "hello", "--thinking"]):
        result = run(*args, timeout=SOON)
        c.equal(result.code, 2, f"{' '.join(map(str, args))}: exit code")


def main():
    c = Checks("e2e_endings")
    for test in (rank_0_fails_early, a_worker_is_killed, the_disk_is_full, more_in_flight_than_the_queue_holds,
                 options_without_effect):
        c.attempt(test)
    c.close()


if __name__ == "__main__":
    main()
