#!/usr/bin/python3
"""The server when it is pushed: clients that leave, full queues, deadlines, slow readers, too many, no key, TLS."""
import json
import os
import socket
import ssl
import struct
import time

from e2e_lib import DEMO, ROOT, Checks, Failure, run_command
from http_lib import (PLACE, Server, make_certificate, make_chat_model, make_slow_model, request_bytes, split_events,
                      wait_for)

ASK = {"prompt": "l>j f>l j>u u>f;j>>", "temperature": 0, "max_tokens": 8}
LONG = {"prompt": "the", "temperature": 0, "max_tokens": 2000, "ignore_eos": True}


def rss_kib(pid):
    with open(f"/proc/{pid}/status", encoding="ascii") as f:
        return next(int(line.split()[1]) for line in f if line.startswith("VmRSS"))


def start_long(server, body=None, **options):
    """A long stream whose first token is there."""
    w = server.wire(**options)
    w.request("POST", "/v1/completions", {**LONG, "stream": True, **(body or {})})
    w.read_until(b"data: ")
    return w


# ---- clients that leave --------------------------------------------------------------------------------


def test_disconnect(c, server):
    """Streaming or not, running or waiting, by FIN or by RST: rows and KV are free again."""
    for is_stream in (True, False):
        for is_reset in (True, False):
            what = f"{'stream' if is_stream else 'whole answer'}, {'RST' if is_reset else 'FIN'}"
            before = server.metrics().sum("cancelled_total", reason="disconnect") or 0
            w = server.wire()
            w.request("POST", "/v1/completions", {**LONG, "stream": is_stream, "n": 3})
            c.check(wait_for(lambda: server.metrics().sum("num_requests_running") == 3), f"{what}: three run")
            c.check(wait_for(lambda: server.metrics().max("kv_cache_usage_ratio") > 0), f"{what}: KV is in use")
            if is_reset:
                w.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            w.close()
            m = server.wait_until_idle()
            c.check(m.is_idle(), f"{what}: nothing runs, KV use is {m.max('kv_cache_usage_ratio')}")
            c.check(m.sum("cancelled_total", reason="disconnect") > before, f"{what}: counted")
            c.equal(m.sum("parked_rows"), 0, f"{what}: parked rows")


def test_disconnect_waiting(c, server):
    """One that is still in the queue leaves it."""
    with start_long(server), start_long(server), start_long(server), start_long(server):
        w = server.wire()
        w.request("POST", "/v1/completions", LONG)
        c.check(wait_for(lambda: server.metrics().sum("num_requests_waiting") == 1), "it waits")
        w.close()
        c.check(wait_for(lambda: server.metrics().sum("num_requests_waiting") == 0), "it has left the queue")
        c.equal(server.metrics().sum("num_requests_running"), 4, "the others run on")
    c.check(server.wait_until_idle().is_idle(), "all have left")


def test_half_request(c, server):
    """Clients that leave inside a head or a body cost nothing."""
    whole = request_bytes("POST", "/v1/completions", ASK)
    for at in range(1, len(whole), 17):
        with server.wire() as w:
            w.send(whole[:at])
    c.equal(server.post("/v1/completions", ASK).status, 200, "after requests cut anywhere")


# ---- limits --------------------------------------------------------------------------------------------


def test_queue_by_requests(c, server):
    """4 run, 2 wait, the next is refused, and is welcome once there is room."""
    running = [start_long(server) for _ in range(4)]
    waiting = []
    for i in range(2):
        waiting.append(server.wire())
        waiting[i].request("POST", "/v1/completions", {**LONG, "stream": True})
        c.check(wait_for(lambda n=i + 1: server.metrics().sum("num_requests_waiting") == n), f"{i + 1} wait")
    for body in (LONG, {**LONG, "stream": True}):
        answer = server.post("/v1/completions", body)
        c.equal((answer.status, answer.error()["type"], answer.error()["code"]),
                (429, "rate_limit_error", "queue_full"), "a full queue")
        c.equal(answer.reason, "Too Many Requests", "a full queue: the status line")
        c.check(int(answer.header("Retry-After") or 0) >= 1, f"Retry-After: {answer.header('Retry-After')}")
    many = server.post("/v1/completions", {**LONG, "n": 3})
    c.equal(many.status, 429, "choices count, not requests")
    for w in running + waiting:
        w.close()
    c.check(server.wait_until_idle().is_idle(), "all have left")
    c.equal(server.post("/v1/completions", {**LONG, "max_tokens": 1}).status, 200, "room again")


def test_queue_by_tokens(c, server):
    """The queue is full of prompt tokens before it is full of requests."""
    running = [start_long(server) for _ in range(4)]
    with server.wire() as w:
        w.request("POST", "/v1/completions", {**LONG, "prompt": "x" * 2500, "max_tokens": 1})
        c.check(wait_for(lambda: server.metrics().sum("num_requests_waiting") == 1), "2500 tokens wait")
        answer = server.post("/v1/completions", {**LONG, "prompt": "y" * 2500, "max_tokens": 1})
        c.equal((answer.status, answer.error()["code"]), (429, "queue_full"), "2500 more")
    for w in running:
        w.close()
    c.check(server.wait_until_idle().is_idle(), "all have left")


def test_deadline(c, server):
    began = time.monotonic()
    answer = server.post("/v1/completions", LONG)
    c.equal((answer.status, answer.error()["type"], answer.error()["code"]), (504, "timeout_error", "deadline_exceeded"),
            "past the deadline")
    c.check(0.9 < time.monotonic() - began < 5, f"after {time.monotonic() - began:.2f} s, the deadline is 1 s")
    answer = server.post("/v1/completions", {**LONG, "stream": True})
    c.equal(answer.status, 200, "a stream has begun before its deadline")
    events, _ = split_events(answer.body)
    last = json.loads(events[-2] if events[-1] == b"[DONE]" else events[-1])
    c.equal(last["error"]["code"], "deadline_exceeded", "the stream's last word")
    c.check(server.wait_until_idle().is_idle(), "nothing runs on behind it")
    c.equal(server.post("/v1/completions", {**LONG, "max_tokens": 2}).status, 200, "a short one")


def test_slow_reader(c, server):
    """Who asks for a lot and reads nothing is cut off; meanwhile memory is bounded."""
    body = {"prompt": "the", "max_tokens": 6000, "ignore_eos": True, "temperature": 1, "n": 20, "stream": True,
            "logprobs": 20}
    server.post_ok("/v1/completions", {**LONG, "max_tokens": 5})
    pid = server.endpoint["pid"]
    w = server.wire(receive_buffer=4096)
    w.request("POST", "/v1/completions", body)
    before, peak = rss_kib(pid), 0
    late = time.monotonic() + 40

    def is_cut():
        nonlocal peak
        peak = max(peak, rss_kib(pid))
        return (server.metrics().sum("cancelled_total", reason="slow_reader") or 0) > 0

    c.check(wait_for(is_cut, late - time.monotonic()), "the slow reader is cut off")
    c.check(server.wait_until_idle().is_idle(), "nothing runs on behind it")
    c.check(peak - before < 65536, f"memory grew by {peak - before} KiB before that")
    w.socket.settimeout(20)
    size = 0
    try:
        while True:
            piece = w.socket.recv(1 << 20)
            if not piece:
                break
            size += len(piece)
    except ConnectionResetError:
        pass
    c.check(size < 16 << 20, f"it could still read {size} bytes")
    w.close()
    c.equal(server.post("/v1/completions", {**LONG, "max_tokens": 1}).status, 200, "others are served")


def test_connections(c, server):
    """8 connections are allowed; a ninth waits outside, and is served when one leaves."""
    held = [server.wire() for _ in range(8)]
    for w in held:
        w.request("GET", "/health")
        c.equal(w.read_answer().status, 200, "within the limit")
    with server.wire(timeout=0.5) as ninth:
        ninth.request("GET", "/health")
        try:
            c.check(False, f"one too many is answered: {ninth.read_answer()}")
        except Failure:
            c.check(True, "one too many has to wait")
        for w in held:
            w.request("GET", "/health")
            c.equal(w.read_answer().status, 200, "those inside did not notice")
        held.pop().close()
        ninth.socket.settimeout(10)
        c.equal(ninth.read_answer().status, 200, "and comes in when one leaves")
    for w in held:
        w.close()
    c.equal(server.ask("GET", "/health").status, 200, "room again")


def test_idle(c, server):
    """Connections that say nothing, or stop inside a request, are ended after a while; a running answer is not."""
    with server.wire() as silent, server.wire() as head, server.wire() as body:
        head.send(b"GET /health HTTP/1.1\r\nHost: x\r\n")
        body.send(request_bytes("POST", "/v1/completions", ASK)[:-5])
        for what, w in (("nothing", silent), ("half a head", head), ("half a body", body)):
            w.socket.settimeout(10)
            try:
                w.read_to_end()
                is_ended = True
            except Failure:
                is_ended = False
            c.check(is_ended, f"a client that sent {what} is let go")
    with start_long(server, {"max_tokens": 300}) as w:
        rest = w.read_to_end()
        c.check(b"data: [DONE]\n\n" in rest, "a stream longer than the idle limit comes to its end")


# ---- who may -------------------------------------------------------------------------------------------


def test_keys(c):
    keys = PLACE / "pressure.keys"
    keys.write_text("# for the test\nalice sk-alice-1\n\nsk-second\n")
    keys.chmod(0o600)
    server = Server(DEMO, "--api-key-file", keys)
    for value, status in ((None, 401), ("Bearer sk-alice-1", 200), ("Bearer sk-second", 200), ("bearer sk-second", 200),
                          ("Bearer sk-secon", 401), ("Bearer sk-second2", 401), ("Bearer ", 401), ("Bearer", 401),
                          ("sk-second", 401), ("Basic c2stc2Vjb25k", 401), ("Bearer alice", 401),
                          ("Bearer " + "x" * 5000, 401)):
        headers = {"Authorization": value} if value is not None else {}
        for method, path, body in (("POST", "/v1/completions", ASK), ("GET", "/v1/models", None),
                                   ("POST", "/tokenize", {"prompt": "a"})):
            answer = server.ask(method, path, body, headers)
            if not c.equal(answer.status, status, f"{path} with Authorization {str(value)[:30]!r}"):
                continue
            if status == 401:
                error = answer.error()
                c.equal((error["type"], error["code"]), ("authentication_error", "invalid_api_key"), "the error of 401")
                c.check(answer.header("WWW-Authenticate"), "401 has WWW-Authenticate")
    for path in ("/health", "/ready"):
        c.equal(server.ask("GET", path).status, 200, f"{path} needs no key")
    c.check("sk-alice-1" not in server.log_text() and "sk-second" not in server.log_text(), "no key is in the log")
    c.equal(server.stop(), 0, "exit code")
    keys.chmod(0o644)
    done = run_command([*server.command[:2], DEMO, "--port", 0, "--api-key-file", keys])
    c.check(done.code != 0 and str(keys) in done.err, f"a key file that everybody can read is refused: {done}")


def test_insecure(c):
    """Beyond loopback only with a key, or by saying so."""
    done = run_command([*Server.program(), DEMO, "--host", "0.0.0.0", "--port", 0], timeout=30)
    c.equal(done.code, 2, "0.0.0.0 without a key: exit code")
    c.check("--insecure" in done.err and "--api-key-file" in done.err, f"0.0.0.0 without a key: {done.err}")
    server = Server(DEMO, "--host", "0.0.0.0", "--insecure")
    c.equal(server.ask("GET", "/health").status, 200, "0.0.0.0 with --insecure, asked on loopback")
    c.equal(server.stop(), 0, "exit code")


def test_tls(c):
    cert, key = make_certificate()
    server = Server(DEMO, "--tls-cert", cert, "--tls-key", key, scheme="https")
    c.check(server.endpoint["url"].startswith("https://"), f"the endpoint file says {server.endpoint['url']}")
    trust = ssl.create_default_context(cafile=str(cert))
    answer = server.post("/v1/completions", ASK, tls=trust)
    c.equal(answer.json()["choices"][0]["text"], "f", "a completion over TLS")
    answer = server.post("/v1/completions", {**ASK, "stream": True, "ignore_eos": True, "max_tokens": 100}, tls=trust)
    events, _ = split_events(answer.body)
    c.equal(events[-1], b"[DONE]", "a stream over TLS")
    with server.wire(tls=trust) as w:
        for _ in range(5):
            w.request("POST", "/v1/completions", ASK)
            c.equal(w.read_answer().status, 200, "keep-alive over TLS")
    try:
        server.ask("GET", "/health", tls=ssl.create_default_context())
        c.check(False, "a client that does not know the certificate took it")
    except ssl.SSLCertVerificationError:
        c.check(True, "a client that does not know the certificate refuses it")
    with server.wire(timeout=5) as w:
        w.request("GET", "/health")
        data = w.read_to_end()
        c.check(not data.startswith(b"HTTP/1.1 200"), f"plain HTTP to the TLS port gives {data[:40]!r}")
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        trust = ssl.create_default_context(cafile=str(cert))
        trust.minimum_version = trust.maximum_version = version
        c.equal(server.ask("GET", "/health", tls=trust).status, 200, f"{version.name}")
    c.equal(server.stop(), 0, "exit code")
    none = PLACE / "none.pem"
    for given, code, said in ((["--tls-cert", cert], 2, "--tls-key"),
                              (["--tls-cert", ROOT / "README.md", "--tls-key", key], 1, "README.md: not a PEM certificate"),
                              (["--tls-cert", cert, "--tls-key", none], 1, f"{none}: No such file")):
        done = run_command([*Server.program(), DEMO, "--port", 0, *given], timeout=30)
        c.equal((done.code, len(done.err.strip().splitlines())), (code, 1), f"exit code and lines: {done}")
        c.check(said in done.err, f"{said!r} is not in {done}")


def main():
    c = Checks("e2e_http_pressure")
    slow = make_slow_model()
    # Room for the KV of four long answers.
    server = Server(slow, "--max-sequences", 4, "--max-queue", 2, "--max-queue-tokens", 4096, "--kv-memory", "600M")
    c.equal(server.metrics().sum("num_requests_waiting"), 0, "nothing waits yet")
    for test in (test_disconnect, test_disconnect_waiting, test_half_request, test_queue_by_requests, test_queue_by_tokens):
        c.attempt(test, server)
    c.equal(server.stop(), 0, "exit code after SIGTERM")
    server = Server(slow, "--request-timeout", 1)
    c.attempt(test_deadline, server)
    server.stop()
    fast = make_chat_model("long", 8192)
    server = Server(fast, "--max-unsent", "256K", "--max-connections", 8)
    c.attempt(test_connections, server)
    c.attempt(test_slow_reader, server)
    server.stop()
    server = Server(slow, "--idle-timeout", 1)
    c.attempt(test_idle, server)
    server.stop()
    c.attempt(test_keys)
    c.attempt(test_insecure)
    c.attempt(test_tls)
    c.close()


if __name__ == "__main__":
    main()
