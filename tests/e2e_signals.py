#!/usr/bin/python3
"""A rank that is killed, and a program that is told to stop, end the whole job: soon, with an exit code other
than 0, leaving no process.
"""
import os
import signal
import subprocess
import time

from e2e_lib import DEMO, PROGRAM, WORK, Checks, Failure, clean_environment, stop_group

N_WORKERS = 3
SOON_S = 20


def session_processes(session):
    """pid -> rank (None: no rank) of the living processes of a session."""
    found = {}
    for entry in os.listdir("/proc"):
        try:
            if not entry.isdigit() or os.getsid(int(entry)) != session:
                continue
            with open(f"/proc/{entry}/environ", "rb") as f:
                pairs = [v.partition(b"=") for v in f.read().split(b"\0")]
        except OSError:
            continue
        ranks = [int(value) for key, _, value in pairs if key == b"OMPI_COMM_WORLD_RANK"]
        with open(f"/proc/{entry}/stat") as f:
            if f.read().rpartition(")")[2].split()[0] != "Z":
                found[int(entry)] = ranks[0] if ranks else None
    return found


def await_ranks(process):
    """rank -> pid, a second after all ranks are there, when they compute."""
    deadline = time.monotonic() + SOON_S
    while time.monotonic() < deadline and process.poll() is None:
        ranks = {rank: pid for pid, rank in session_processes(process.pid).items() if rank is not None}
        if len(ranks) == N_WORKERS + 1:
            time.sleep(1)
            return ranks
        time.sleep(0.05)
    raise Failure(f"{N_WORKERS + 1} ranks did not come up")


def end(c, is_piped, victim, number):
    what = f"{signal.Signals(number).name} to {victim}, output in a {'pipe' if is_piped else 'file'}"
    WORK.mkdir(parents=True, exist_ok=True)
    with open(WORK / "signals.out", "w") as out, open(WORK / "signals.err", "w+") as err:
        process = subprocess.Popen(
            [PROGRAM, "bench", "engine", str(DEMO), "--workers", str(N_WORKERS), "--requests", "1000000",
             "--output-tokens", "100"], stdout=subprocess.PIPE if is_piped else out, stderr=err,
            env=clean_environment(), start_new_session=True)
        try:
            ranks = await_ranks(process)
            os.kill(process.pid if victim == "program" else ranks[victim], number)
            began = time.monotonic()
            try:
                process.wait(timeout=SOON_S)
            except subprocess.TimeoutExpired:
                pass
            c.check(process.poll() is not None, f"{what}: still running after {SOON_S} s")
            c.check(process.poll() != 0, f"{what}: exit code 0")
            while session_processes(process.pid) and time.monotonic() < began + SOON_S:
                time.sleep(0.1)
            c.equal(session_processes(process.pid), {}, f"{what}: processes left")
        finally:
            if process.poll() is None:
                stop_group(process)
            if is_piped:
                process.stdout.close()
        err.seek(0)
        text = err.read()
        c.check("Segmentation" not in text and "Process received signal" not in text, f"{what}: {text[:600]}")


def main():
    c = Checks("e2e_signals")
    for is_piped, victim, number in (
            (True, 0, signal.SIGKILL), (False, N_WORKERS, signal.SIGTERM), (True, "program", signal.SIGTERM),
            (True, "program", signal.SIGINT), (False, "program", signal.SIGTERM)):
        c.attempt(end, is_piped, victim, number)
    c.close()


if __name__ == "__main__":
    main()
