#!/usr/bin/python3
"""The life of a server: it says where it is, refuses at once what cannot work, finishes what runs when it is told to
end, and its exit code tells how that went: alone, with --workers, and under mpirun.
"""
import json
import os
import pathlib
import pty
import select
import signal
import socket
import subprocess
import time

from e2e_lib import DEMO, PROGRAM, WORK, Checks, Failure, clean_environment, run, run_command
from http_lib import Server, make_slow_model, split_events

AS_ROOT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
SOON = 20
MPIRUN = ["mpirun", "--quiet", "--oversubscribe"]


class ServerUnderMpirun(Server):
    """mpirun -n 3 carousel serve ..., by the user."""

    @staticmethod
    def program():
        return [*MPIRUN, "-n", "3", PROGRAM, "serve"]


def start(how, model=DEMO, *options):
    if how == "mpirun":
        return ServerUnderMpirun(model, *options, env=AS_ROOT)
    return Server(model, *options, *(["--workers", 2] if how == "--workers" else []))


def place_for(name):
    """An endpoint file that is not there yet."""
    path = WORK / "http" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    return path


class Attached(Server):
    """A server that the test has started by itself, in some way of its own."""

    def __init__(self, process, endpoint_file, command):
        self.process, self.endpoint_file, self.command = process, endpoint_file, command
        self.log_path, self.key, self.host = pathlib.Path(os.devnull), None, "127.0.0.1"

    def wait_for(self, state):
        self.port = super().wait_for(state)["port"]


def processes_of(session):
    """{pid: rank or None} of the living processes of a session."""
    found = {}
    for entry in pathlib.Path("/proc").iterdir():
        try:
            if not entry.name.isdigit() or os.getsid(int(entry.name)) != session:
                continue
            if (entry / "stat").read_text().rpartition(")")[2].split()[0] == "Z":
                continue
            words = (entry / "environ").read_bytes().split(b"\0")
        except (OSError, ProcessLookupError):
            continue
        ranks = [int(w.split(b"=")[1]) for w in words if w.startswith(b"OMPI_COMM_WORLD_RANK=")]
        found[int(entry.name)] = ranks[0] if ranks else None
    return found


def check_gone(c, server, what, code):
    """The exit code, soon, with nothing left behind and the endpoint file saying so."""
    try:
        found = server.process.wait(SOON)
    except subprocess.TimeoutExpired:
        server.kill()
        c.check(False, f"{what}: still there after {SOON} s: {server.log_tail()}")
        return
    c.equal(found, code, f"{what}: exit code; {server.log_tail()}")
    late = time.monotonic() + 5
    while processes_of(server.process.pid) and time.monotonic() < late:
        time.sleep(0.05)
    c.equal(processes_of(server.process.pid), {}, f"{what}: processes left")
    c.equal(json.loads(server.endpoint_file.read_text())["state"], "stopped", f"{what}: endpoint file")


class Stream:
    """A completion that is under way: its first token is there."""

    def __init__(self, server, max_tokens):
        self.wire = server.wire()
        self.wire.request("POST", "/v1/completions", {"prompt": "x", "max_tokens": max_tokens, "stream": True,
                                                      "ignore_eos": True, "temperature": 0,
                                                      "return_token_ids": True})
        self.head = self.wire.read_head()
        if self.head[1] != 200:
            raise Failure(f"stream: {self.head}")
        self.body = self.wire.read_chunk()

    def finish(self):
        """The events after which the server said that this is all."""
        while True:
            piece = self.wire.read_chunk()
            if not piece:
                break
            self.body += piece
        self.wire.close()
        return [e if e == b"[DONE]" else json.loads(e) for e in split_events(self.body)[0]]


def check_complete(c, events, n_tokens, what):
    c.equal(events[-1], b"[DONE]", f"{what}: last event")
    ids = [i for e in events[:-1] for choice in e.get("choices", []) for i in choice.get("token_ids") or []]
    c.equal(len(ids), n_tokens, f"{what}: tokens; {events[-2:]}")


def check_cut(c, events, what):
    errors = [e["error"] for e in events if isinstance(e, dict) and "error" in e]
    c.equal(len(errors), 1, f"{what}: error events; {events[-2:]}")
    c.check(events[-1] != b"[DONE]" or errors, f"{what}: ended as if whole")


# ---- starts ------------------------------------------------------------------------------------------


def says_where_it_is(c, how):
    server = start(how)
    n = {"alone": 1, "--workers": 2, "mpirun": 2}[how]
    e = server.endpoint
    ranks = {rank: pid for pid, rank in processes_of(server.process.pid).items()}
    c.equal(e["pid"], ranks.get(0, server.process.pid), f"{how}: pid of rank 0")
    c.equal((e["host"], e["url"], e["model"]), ("127.0.0.1", server.url, "demo"), f"{how}: endpoint")
    late = time.monotonic() + 5
    line = f"carousel: ready on {server.url} (model demo, {n} worker{'s' if n > 1 else ''}, started in "
    while line not in server.log_text() and time.monotonic() < late:
        time.sleep(0.02)
    c.check(line in server.log_text(), f"{how}: no ready line in {server.log_text()!r}")
    c.equal(server.ask("GET", "/ready").status, 200, f"{how}: /ready")
    answer = server.post_ok("/v1/completions", {"prompt": "x", "max_tokens": 3, "ignore_eos": True})
    c.equal(answer["usage"]["completion_tokens"], 3, f"{how}: tokens")
    server.process.send_signal(signal.SIGUSR1 if how == "mpirun" else signal.SIGTERM)
    check_gone(c, server, f"{how}, idle", 0)


def is_loading_until_the_cluster_is_there(c):
    """Rank 0 listens while MPI still waits for a worker that comes late."""

    options = [str(DEMO), "--port", "0", "--endpoint-file", str(place_for("late"))]
    late = f"sleep 2; exec {PROGRAM} serve \"$@\""
    command = [*MPIRUN, "-n", "1", PROGRAM, "serve", *options, ":", "-n", "1", "sh", "-c", late, "sh", *options]
    process = subprocess.Popen(command, env={**clean_environment(), **AS_ROOT}, stdin=subprocess.DEVNULL,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    server = Attached(process, pathlib.Path(options[-1]), command)
    try:
        server.wait_for("loading")
        c.equal(server.ask("GET", "/health").status, 200, "loading: /health")
        answer = server.ask("GET", "/ready")
        c.equal(answer.status, 503, "loading: /ready")
        answer = server.post("/v1/completions", {"prompt": "x"})
        c.equal(answer.status, 503, "loading: a request")
        c.equal(answer.error()["code"], "loading", "loading: code")
        c.check(answer.header("Retry-After"), "loading: no Retry-After")
        server.wait_for("ready")
        c.equal(server.ask("GET", "/ready").status, 200, "/ready after loading")
        process.send_signal(signal.SIGUSR1)
        check_gone(c, server, "late worker", 0)
    finally:
        server.kill()


def refuses_at_once(c):
    taken = socket.socket()
    taken.bind(("127.0.0.1", 0))
    taken.listen()
    port = taken.getsockname()[1]
    WORK.mkdir(parents=True, exist_ok=True)
    keys = WORK / "keys.txt"
    keys.write_text("# none\n")
    keys.chmod(0o600)
    cases = [
        (["--port", port], 1, f"127.0.0.1 port {port}"),
        (["--port", 0, "--api-key-file", "/nowhere/keys"], 1, "/nowhere/keys"),
        (["--port", 0, "--api-key-file", keys], 1, str(keys)),
        (["--port", 0, "--tls-cert", "/nowhere/cert", "--tls-key", "/nowhere/key"], 1, "/nowhere/"),
        (["--port", 0, "--tls-cert", "/nowhere/cert"], 2, "--tls-key"),
        (["--port", 0, "--host", "0.0.0.0"], 2, "--insecure"),
        (["--port", 0, "--host", "::"], 2, "--insecure"),
        (["--port", 70000], 2, "--port"),
        (["--served-model-name", "a,,b"], 2, "empty name"),
        (["--stop", "x"], 2, "--stop"),
        (["--port", 0, "/nowhere"], 1, "/nowhere"),
    ]
    for extra in ([], ["--workers", 2]):
        for args, code, words in cases:
            what = f"serve {' '.join(str(a) for a in args + extra)}"
            result = run("serve", *args, *extra, timeout=SOON)
            c.equal(result.code, code, f"{what}: exit code; {result.err!r}")
            c.check(words in result.err, f"{what}: said {result.err!r}")
            lines = [l for l in result.err.splitlines() if l.startswith("carousel")]
            c.equal(len(lines), 1, f"{what}: messages in {result.err!r}")
            c.equal(result.out, "", f"{what}: output")
    # Under mpirun only rank 0 knows, and the workers shall not wait for it.
    for args, code, words in (cases[0], cases[1], cases[5]):
        what = f"mpirun serve {' '.join(str(a) for a in args)}"
        result = run_command([*MPIRUN, "-n", 3, PROGRAM, "serve", *args], env=AS_ROOT, timeout=SOON)
        c.check(not result.is_late, f"{what}: still there after {SOON} s")
        c.equal(result.code, code, f"{what}: exit code; {result.err!r}")
        c.check(words in result.err, f"{what}: said {result.err!r}")
    taken.close()


# ---- ends --------------------------------------------------------------------------------------------


def ends_while_loading(c):
    """Told as soon as it listens, however far the loading is by then."""
    endpoint_file = place_for("early")
    command = [PROGRAM, "serve", str(make_slow_model()), "--port", "0", "--endpoint-file", str(endpoint_file)]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL, env=clean_environment(), start_new_session=True)
    server = Attached(process, endpoint_file, command)
    try:
        late = time.monotonic() + SOON
        while not endpoint_file.exists() and time.monotonic() < late:
            time.sleep(0.001)
        process.send_signal(signal.SIGTERM)
        check_gone(c, server, "SIGTERM while loading", 0)
    finally:
        server.kill()


def finishes_what_runs(c, how, number):
    what = f"{how}, {number.name}"
    server = start(how, make_slow_model())
    stream = Stream(server, 60)
    server.process.send_signal(number)
    server.wait_for("draining")
    answer = server.post("/v1/completions", {"prompt": "x", "max_tokens": 1})
    c.equal((answer.status, answer.error()["code"]), (503, "draining"), f"{what}: a new request")
    c.equal(server.ask("GET", "/ready").status, 503, f"{what}: /ready while draining")
    if number == signal.SIGUSR1:
        server.process.send_signal(number)  # once more is not "a second one"
    check_complete(c, stream.finish(), 60, what)
    check_gone(c, server, what, 0)


def is_cut_by_a_second_signal(c, how, first, second):
    what = f"{how}, {first.name}, {second.name}"
    server = start(how, make_slow_model())
    stream = Stream(server, 4000)
    server.process.send_signal(first)
    server.wait_for("draining")
    began = time.monotonic()
    server.process.send_signal(second)
    check_cut(c, stream.finish(), what)
    check_gone(c, server, what, 3)
    c.check(time.monotonic() < began + 10, f"{what}: took {time.monotonic() - began:.1f} s")


def is_cut_by_the_deadline(c, how):
    server = start(how, make_slow_model(), "--drain-timeout", 0.5)
    stream = Stream(server, 4000)
    server.process.send_signal(signal.SIGTERM)
    check_cut(c, stream.finish(), f"{how}, deadline")
    check_gone(c, server, f"{how}, deadline", 3)


def drains_when_every_rank_is_told(c):
    """As scancel does; workers leave when rank 0 is through, not before."""
    server = start("mpirun", make_slow_model())
    stream = Stream(server, 60)
    for pid, rank in processes_of(server.process.pid).items():
        if rank is not None:
            os.kill(pid, signal.SIGTERM)
    check_complete(c, stream.finish(), 60, "SIGTERM to all ranks")
    check_gone(c, server, "SIGTERM to all ranks", 0)


def ends_soon_when_mpirun_is_told(c):
    """mpirun kills its ranks a second after SIGTERM: no drain, but an end."""
    server = start("mpirun", make_slow_model())
    stream = Stream(server, 4000)
    server.process.send_signal(signal.SIGTERM)
    code = server.process.wait(SOON)
    c.check(code != 0, "SIGTERM to mpirun: exit code 0")
    late = time.monotonic() + 5
    while processes_of(server.process.pid) and time.monotonic() < late:
        time.sleep(0.05)
    c.equal(processes_of(server.process.pid), {}, "SIGTERM to mpirun: processes left")
    stream.wire.close()


def drains_at_ctrl_c(c, how):
    """On a terminal, where the whole foreground group gets it."""
    endpoint_file = place_for("terminal")
    args = [PROGRAM, "serve", str(make_slow_model()), "--port", "0", "--endpoint-file", str(endpoint_file)]
    args += ["--workers", "2"] if how == "--workers" else []
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(args[0], args, clean_environment())
    child = type("Child", (), {"poll": lambda self: None})()  # waited for below
    server = Attached(child, endpoint_file, args)
    said = b""
    status = None
    try:
        server.wait_for("ready")
        stream = Stream(server, 60)
        os.write(terminal, b"\x03")
        check_complete(c, stream.finish(), 60, f"{how}, Ctrl-C")
        late = time.monotonic() + SOON
        while status is None and time.monotonic() < late:
            if select.select([terminal], [], [], 0.1)[0]:
                try:
                    said += os.read(terminal, 65536)
                except OSError:
                    pass
            done, wait_status = os.waitpid(pid, os.WNOHANG)
            status = wait_status if done else None
        c.equal(status, 0, f"{how}, Ctrl-C: wait status; {said[-600:]!r}")
        c.check(b"carousel: ready on http://127.0.0.1:" in said, f"{how}: no ready line on a terminal: {said!r}")
        c.equal(processes_of(pid), {}, f"{how}, Ctrl-C: processes left")
    finally:
        for left in processes_of(pid):
            os.kill(left, signal.SIGKILL)
        if status is None:
            os.waitpid(pid, 0)
        os.close(terminal)


def outlives_the_reader_of_its_output(c, how):
    """serve | head -1"""
    endpoint_file = place_for("reader")
    args = [PROGRAM, "serve", str(DEMO), "--port", "0", "--endpoint-file", str(endpoint_file)]
    args += ["--workers", "2"] if how == "--workers" else []
    process = subprocess.Popen(args, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                               env=clean_environment(), start_new_session=True)
    server = Attached(process, endpoint_file, args)
    try:
        line = process.stdout.readline()
        process.stdout.close()
        c.check(line.startswith(b"carousel: ready on http://127.0.0.1:"), f"{how}: first line {line!r}")
        server.wait_for("ready")
        time.sleep(0.5)
        c.equal(server.ask("GET", "/ready").status, 200, f"{how}: /ready after its reader has left")
        process.send_signal(signal.SIGTERM)
        check_gone(c, server, f"{how}, reader gone", 0)
    finally:
        server.kill()


def leaves_nothing_behind_a_kill(c, how, victim):
    """victim: a rank, or the program that was started."""
    what = f"{how}, {victim} is killed"
    server = start(how, make_slow_model())
    stream = Stream(server, 4000)
    ranks = {rank: pid for pid, rank in processes_of(server.process.pid).items()}
    os.kill(ranks.get(victim, server.process.pid), signal.SIGKILL)
    try:
        code = server.process.wait(SOON)
        c.check(code != 0, f"{what}: exit code 0")
    except subprocess.TimeoutExpired:
        c.check(False, f"{what}: still there after {SOON} s")
        server.kill()
    late = time.monotonic() + SOON
    while processes_of(server.process.pid) and time.monotonic() < late:
        time.sleep(0.05)
    c.equal(processes_of(server.process.pid), {}, f"{what}: processes left")
    stream.wire.close()


def tells_when_the_cluster_is_lost(c):
    """A worker dies and nobody ends the others: mpirun told to let the rest live, as srun --no-kill."""

    class Survivors(Server):
        @staticmethod
        def program():
            return [*MPIRUN, "--enable-recovery", "--mca", "orte_abort_on_non_zero_status", "0", "-n", "3", PROGRAM,
                    "serve"]

    file = WORK / "lost-trace.json"
    file.unlink(missing_ok=True)
    server = Survivors(make_slow_model(), "--worker-timeout", 2, "--trace", file, env=AS_ROOT)
    stream = Stream(server, 4000)
    with server.wire() as whole:
        whole.request("POST", "/v1/completions", {"prompt": "x", "max_tokens": 4000, "ignore_eos": True})
        time.sleep(0.3)
        ranks = {rank: pid for pid, rank in processes_of(server.process.pid).items()}
        os.kill(ranks[2], signal.SIGKILL)
        answer = whole.read_answer("POST")
    c.equal((answer.status, answer.error()["code"]), (503, "cluster_lost"), "lost: a request that runs")
    c.check("rank 2" in answer.error()["message"], f"lost: {answer}")
    c.check(answer.header("Retry-After"), "lost: no Retry-After")
    errors = [e["error"]["code"] for e in stream.finish() if isinstance(e, dict) and "error" in e]
    c.equal(errors, ["cluster_lost"], "lost: error events of a stream")
    server.wait_for("stopped")
    server.process.wait(SOON)  # its code is mpirun's, which was told not to care
    lines = [line for line in server.log_text().splitlines() if line.startswith("carousel serve: ")]
    c.equal(len(lines), 1, f"lost: last words; {server.log_tail()}")
    ranks = json.loads(file.read_text())["otherData"]["ranks"]
    c.equal([r["missing"] for r in ranks], [False, True, True], "lost: whose records the trace has")
    c.check(ranks[0]["records"] > 0 and "missing=2" in server.log_text(), f"lost: the trace; {server.log_tail()}")
    c.equal(processes_of(server.process.pid), {}, "lost: processes left")


def main():
    c = Checks("e2e_serve_life")
    everywhere = ("alone", "--workers", "mpirun")
    for how in everywhere:
        c.attempt(says_where_it_is, how)
    c.attempt(is_loading_until_the_cluster_is_there)
    c.attempt(refuses_at_once)
    c.attempt(ends_while_loading)
    for how, number in (("alone", signal.SIGTERM), ("alone", signal.SIGINT), ("--workers", signal.SIGTERM),
                        ("--workers", signal.SIGHUP), ("mpirun", signal.SIGUSR1)):
        c.attempt(finishes_what_runs, how, number)
    for how, first, second in (("alone", signal.SIGTERM, signal.SIGTERM), ("alone", signal.SIGINT, signal.SIGTERM),
                               ("--workers", signal.SIGTERM, signal.SIGTERM), ("mpirun", signal.SIGUSR1, signal.SIGURG)):
        c.attempt(is_cut_by_a_second_signal, how, first, second)
    for how in ("alone", "--workers"):
        c.attempt(is_cut_by_the_deadline, how)
        c.attempt(drains_at_ctrl_c, how)
        c.attempt(outlives_the_reader_of_its_output, how)
    c.attempt(drains_when_every_rank_is_told)
    c.attempt(ends_soon_when_mpirun_is_told)
    c.attempt(tells_when_the_cluster_is_lost)
    for how, victim in (("--workers", 0), ("--workers", 2), ("--workers", "launcher"), ("mpirun", 1)):
        c.attempt(leaves_nothing_behind_a_kill, how, victim)
    c.close()


if __name__ == "__main__":
    main()
