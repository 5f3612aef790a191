#!/usr/bin/python3
"""The server's side of the wire, byte by byte: framing of answers and streams, connections, headers in and out."""
import json
import threading
import time

from e2e_lib import DEMO, Checks, Failure
from http_lib import Server, event_texts, make_chat_model, make_slow_model, request_bytes, split_events, wait_for

PROMPT = "l>j f>l j>u u>f;j>>"
ASK = {"prompt": PROMPT, "temperature": 0, "max_tokens": 8}
HALVES = {"prompt": "the €", "temperature": 1, "seed": 5, "max_tokens": 400, "ignore_eos": True}


def test_small_endpoints(c, server):
    for path in ("/health", "/ready"):
        for method in ("GET", "HEAD"):
            answer = server.ask(method, path)
            c.equal(answer.status, 200, f"{method} {path}")
    version = server.ask("GET", "/version").json()
    c.check(version.get("version"), f"/version: {version}")
    models = server.ask("GET", "/v1/models").json()
    c.equal((models["object"], models["data"][0]["id"], models["data"][0]["object"]), ("list", "demo", "model"),
            "/v1/models")
    c.equal(server.ask("GET", "/v1/models?limit=3").status, 200, "a query string is no other path")
    answer = server.ask("GET", "/metrics")
    c.check(answer.header("Content-Type").startswith("text/plain; version=0.0.4"),
            f"/metrics: Content-Type {answer.header('Content-Type')}")


def test_tokenize(c, server):
    found = server.post_ok("/tokenize", {"prompt": "a>b;a>"})
    c.equal(found["count"], 7, "/tokenize: count, <s> included")
    c.equal(len(found["tokens"]), 7, "/tokenize: tokens")
    back = server.post_ok("/detokenize", {"tokens": found["tokens"][1:]})
    c.equal(back["prompt"], "a>b;a>", "/detokenize gives the text back")
    bare = server.post_ok("/tokenize", {"prompt": "a>b;a>", "add_special_tokens": False})
    c.equal(bare["tokens"], found["tokens"][1:], "/tokenize without special tokens")
    usage = server.post_ok("/v1/completions", {**ASK, "prompt": "a>b;a>"})["usage"]
    c.equal(usage["prompt_tokens"], found["count"], "/tokenize counts as a completion does")


def test_answer_headers(c, server):
    answer = server.post("/v1/completions", ASK)
    c.check(answer.header("Content-Type").startswith("application/json"), f"Content-Type {answer.header('Content-Type')}")
    c.equal(answer.header("Content-Length"), str(len(answer.body)), "Content-Length")
    c.check(answer.header("X-Request-Id"), "X-Request-Id is there")
    c.equal(answer.version, "HTTP/1.1", "version")


def test_request_id(c, server):
    for given, is_taken in (("mine-42", True), ("x" * 128, True), ("x" * 129, False), ("ünsafe", False), ("a b", False)):
        answer = server.ask("GET", "/health", headers={"X-Request-Id": given.encode().decode("latin-1")})
        found = answer.header("X-Request-Id")
        c.check((found == given) == is_taken and found, f"X-Request-Id {given[:20]!r}... came back as {found!r}")
    ids = {server.post("/v1/completions", ASK).header("X-Request-Id") for _ in range(5)}
    c.equal(len(ids), 5, "ids of five requests differ")
    c.equal(server.post("/v1/completions", {}, {"X-Request-Id": "bad-1"}).header("X-Request-Id"), "bad-1",
            "errors carry the id as well")
    c.check("mine-77" in server.log_text() or server.post("/v1/completions", ASK, {"X-Request-Id": "mine-77"}).status == 200
            and wait_for(lambda: "mine-77" in server.log_text()), "the log has the client's id")


# ---- streams -----------------------------------------------------------------------------------------


def test_stream(c, server, path, body):
    with server.wire() as w:
        w.request("POST", path, {**body, "stream": True, "stream_options": {"include_usage": True}},
                  {"Accept": "application/json"})
        _, status, _, headers = w.read_head()
        fields = {k.lower(): v for k, v in headers}
        c.equal(status, 200, f"{path}: status")
        c.equal(fields.get("transfer-encoding"), "chunked", f"{path}: Transfer-Encoding")
        c.check("content-length" not in fields, f"{path}: a stream has no Content-Length")
        c.check(fields["content-type"].startswith("text/event-stream"), f"{path}: {fields['content-type']}")
        c.check("no-cache" in fields.get("cache-control", ""), f"{path}: Cache-Control {fields.get('cache-control')}")
        pieces = []
        while True:
            piece = w.read_chunk()
            if not piece:
                break
            pieces.append(piece)
            c.check(piece.endswith(b"\n\n"), f"{path}: a chunk ends inside an event: {piece[-60:]!r}")
            piece.decode()
        # The connection lives on.
        w.request("GET", "/health")
        c.equal(w.read_answer().status, 200, f"{path}: the connection after a stream")
    events, _ = split_events(b"".join(pieces))
    c.equal(events[-1], b"[DONE]", f"{path}: the last event")
    c.equal(events.count(b"[DONE]"), 1, f"{path}: [DONE]")
    parsed = [json.loads(e) for e in events[:-1]]
    kind = "chat.completion.chunk" if "chat" in path else "text_completion"
    c.equal({e["object"] for e in parsed}, {kind}, f"{path}: object")
    c.equal({(e["id"], e["created"], e["model"]) for e in parsed}, {(parsed[0]["id"], parsed[0]["created"], parsed[0]["model"])},
            f"{path}: id, created, model are the same in all chunks")
    c.equal(parsed[-1]["choices"], [], f"{path}: the usage chunk has no choices")
    c.equal([e for e in parsed[:-1] if e.get("usage")], [], f"{path}: usage comes in the last chunk only")
    finish = [e["choices"][0]["finish_reason"] for e in parsed[:-1]]
    c.equal(finish[:-1], [None] * (len(finish) - 1), f"{path}: finish_reason before the last")
    c.check(finish[-1] in ("stop", "length"), f"{path}: finish_reason {finish[-1]}")
    c.equal([i for i, e in enumerate(parsed) if "loop_stats" in e], [len(parsed) - 2], f"{path}: loop_stats")
    if "chat" in path:
        c.equal(parsed[0]["choices"][0]["delta"], {"role": "assistant", "content": ""}, f"{path}: the first delta")
        c.check(not any("role" in e["choices"][0]["delta"] for e in parsed[1:-1]), f"{path}: role comes once")
    return parsed


def test_streams(c, server, chat_server):
    c.attempt(test_stream, server, "/v1/completions", {**ASK, "ignore_eos": True, "max_tokens": 50})
    parsed = c.attempt(test_stream, server, "/v1/completions", {**ASK, "echo": True})
    if parsed:
        c.equal(event_texts(parsed), PROMPT + "f", "echo in a stream")
    chat = {"messages": [{"role": "user", "content": "hellö"}], **{k: HALVES[k] for k in HALVES if k != "prompt"}}
    c.attempt(test_stream, chat_server, "/v1/chat/completions", chat)
    one = {**chat, "max_tokens": 1}
    c.attempt(test_stream, chat_server, "/v1/chat/completions", one)


def test_halves(c, server):
    """A random model says halves of characters all the time: each event is UTF-8 by itself, the sum is the whole."""
    whole = server.post_ok("/v1/completions", HALVES)["choices"][0]["text"]
    answer = server.post("/v1/completions", {**HALVES, "stream": True})
    events, _ = split_events(answer.body)
    text = ""
    for event in events[:-1]:
        text += json.loads(event.decode("utf-8"))["choices"][0]["text"]
    c.equal(text, whole, "text of the stream")
    c.check(any(ord(x) > 127 and x != "�" for x in whole) and "�" in whole, f"the text has both whole and broken characters")


def test_choices_mixed(c, server):
    """Choices of a stream interleave; each has its own end."""
    body = {**HALVES, "n": 3, "max_tokens": 60, "prompt": ["the", "an"]}
    whole = server.post_ok("/v1/completions", body)
    events = server.stream("/v1/completions", body)
    for i, choice in enumerate(whole["choices"]):
        c.equal(event_texts(events, i), choice["text"], f"choice {i} of 6")
    ends = [y["index"] for e in events for y in e["choices"] if y["finish_reason"]]
    c.equal(sorted(ends), list(range(6)), "every choice ends once")


def test_pings(c, server):
    """A stream that waits behind another one has nothing to say, and says so."""
    with server.wire() as first, server.wire() as second:
        first.request("POST", "/v1/completions", {"prompt": "the", "max_tokens": 4000, "ignore_eos": True, "stream": True})
        first.read_until(b"data: ")
        second.request("POST", "/v1/completions", {"prompt": "the", "max_tokens": 2, "ignore_eos": True, "stream": True})
        _, status, _, _ = second.read_head()
        c.equal(status, 200, "a stream that waits has its head")
        pings = [second.read_chunk() for _ in range(3)]
        c.equal(pings, [b": ping\n\n"] * 3, "three pings")
        first.close()
        rest = b"".join(pings)
        while True:
            chunk = second.read_chunk()
            if not chunk:
                break
            rest += chunk
    events, comments = split_events(rest)
    c.check(events and events[-1] == b"[DONE]" and len(comments) >= 3, f"then the answer: {events[-1:]}")
    c.check(server.wait_until_idle().is_idle(), "after the disconnect nothing is left")


# ---- connections -------------------------------------------------------------------------------------


def test_keep_alive(c, server):
    with server.wire() as w:
        for i in range(20):
            w.request("POST", "/v1/completions", ASK)
            c.equal(w.read_answer().json()["choices"][0]["text"], "f", f"request {i} on one connection")
        w.request("POST", "/v1/completions", {**ASK, "temperature": -1})
        c.equal(w.read_answer().status, 400, "a bad request")
        w.request("GET", "/no/such/path")
        c.equal(w.read_answer().status, 404, "an unknown path")
        w.request("POST", "/v1/completions", ASK)
        c.equal(w.read_answer().status, 200, "and the connection lives on")
        w.request("GET", "/health", headers={"Connection": "close"})
        answer = w.read_answer()
        c.equal((answer.status, (answer.header("Connection") or "").lower()), (200, "close"), "Connection: close")
        c.check(w.is_closed(), "it is closed then")


def test_http_1_0(c, server):
    with server.wire() as w:
        w.request("POST", "/v1/completions", ASK, version="1.0")
        answer = w.read_answer()
        c.equal((answer.status, answer.was_chunked), (200, False), "HTTP/1.0")
        c.equal(answer.json()["choices"][0]["text"], "f", "HTTP/1.0: text")
        c.check(w.is_closed(), "HTTP/1.0 closes")
    with server.wire() as w:
        w.request("POST", "/v1/completions", {**ASK, "stream": True}, version="1.0")
        answer = w.read_answer()
        c.equal((answer.status, answer.was_chunked), (200, False), "HTTP/1.0: a stream is not chunked")
        events, _ = split_events(answer.body)
        c.equal(events[-1], b"[DONE]", "HTTP/1.0: a stream")


def test_pipelining(c, server):
    """Requests sent without waiting for answers are answered in their order."""
    bodies = [{**ASK, "prompt": f"a>{x} b>a;b>>", "max_tokens": 1} for x in "bcdefgh"]
    expected = [server.post_ok("/v1/completions", b)["choices"][0]["text"] for b in bodies]
    with server.wire() as w:
        w.send(b"".join(request_bytes("POST", "/v1/completions", b) for b in bodies) + request_bytes("GET", "/health"))
        found = [w.read_answer().json()["choices"][0]["text"] for _ in bodies]
        c.equal(found, expected, "seven requests at once")
        c.equal(w.read_answer().status, 200, "and one behind them")


def test_pieces(c, server):
    """A request that comes byte by byte, and one whose body comes in chunks."""
    with server.wire() as w:
        for i, byte in enumerate(request_bytes("POST", "/v1/completions", ASK)):
            w.send(bytes([byte]))
            if i % 40 == 0:
                time.sleep(0.005)
        c.equal(w.read_answer().json()["choices"][0]["text"], "f", "byte by byte")
        body = json.dumps(ASK).encode()
        w.send(request_bytes("POST", "/v1/completions", None, {"Transfer-Encoding": "chunked",
                                                               "Content-Type": "application/json"}))
        for at in range(0, len(body), 7):
            part = body[at:at + 7]
            w.send(b"%x\r\n%s\r\n" % (len(part), part))
        w.send(b"0\r\n\r\n")
        c.equal(w.read_answer().json()["choices"][0]["text"], "f", "a chunked body")


def test_expect(c, server):
    with server.wire() as w:
        body = json.dumps(ASK).encode()
        w.send(request_bytes("POST", "/v1/completions", None, {"Expect": "100-continue", "Content-Length": str(len(body)),
                                                               "Content-Type": "application/json"}))
        c.equal(w.read_head()[1], 100, "Expect: 100-continue")
        w.send(body)
        c.equal(w.read_answer().json()["choices"][0]["text"], "f", "the answer after 100")


# ---- loops through headers ------------------------------------------------------------------------------


def test_loop_headers(c, server):
    headers = {"X-Carousel-Loop-Mode": "exact", "X-Carousel-Exit-Threshold": "0.5", "X-Carousel-Return-Exit-Loops": "true"}
    answer = server.post("/v1/completions", ASK, headers)
    stats = server.post_ok("/v1/completions", {**ASK, "loops": {"mode": "exact", "exit_threshold": 0.5,
                                                               "return_exit_loops": True}})["loop_stats"]
    found = answer.json()["loop_stats"]
    c.equal(found["exit_loops"], stats["exit_loops"], "headers do what the field does")
    c.equal(numbers(answer, "X-Carousel-Exit-Loops"), stats["exit_loops"], "X-Carousel-Exit-Loops")
    c.check(abs(float(answer.header("X-Carousel-Mean-Exit-Loop")) - stats["mean_exit_loop"]) < 1e-3, "mean exit loop")
    for part in ("Wait", "Compute", "Hop"):
        values = numbers(answer, f"X-Carousel-Loop-{part}-Ms")
        told = [l[f"{part.lower()}_ms"] for l in found["per_loop"]]
        c.check(len(values) == 4 and all(abs(a - b) < 0.01 + 0.01 * b for a, b in zip(values, told)),
                f"X-Carousel-Loop-{part}-Ms {values}, per_loop {told}")
    answer = server.post("/v1/completions", {**ASK, "loops": {"max": 4, "exit_threshold": 0.9}},
                         {"X-Carousel-Max-Loops": "2", "X-Carousel-Loop-Mode": "full", "X-Carousel-Return-Exit-Loops": "true"})
    c.equal(set(numbers(answer, "X-Carousel-Exit-Loops")), {2}, "headers override the body")
    answer = server.post("/v1/completions", {**ASK, "ignore_eos": True}, {
        "X-Carousel-Min-Loops": "3", "X-Carousel-Exit-Threshold": "0.01", "X-Carousel-Return-Exit-Loops": "true"})
    c.equal(set(numbers(answer, "X-Carousel-Exit-Loops")), {3}, "X-Carousel-Min-Loops")
    c.equal(server.post("/v1/completions", ASK).header("X-Carousel-Exit-Loops"), None, "only on request")
    events, _ = split_events(server.post("/v1/completions", {**ASK, "stream": True}, headers).body)
    c.equal(json.loads(events[-2])["loop_stats"]["exit_loops"], stats["exit_loops"], "headers and a stream")


def numbers(answer, name):
    value = answer.header(name)
    if value is None:
        raise Failure(f"no header {name} in {answer.headers}")
    return [float(x) if "." in x else int(x) for x in value.split(",")]


# ---- many at once ----------------------------------------------------------------------------------------


def test_many(c, server):
    """64 connections at once, streams and not: everybody gets the answer to his own question."""
    prompts = [f"{a}>{b} {b}>c;{a}>" for a in "abdefghi" for b in "jklmnopq"]
    expected = [server.post_ok("/v1/completions", {**ASK, "prompt": p})["choices"][0]["text"] for p in prompts]
    found = [None] * len(prompts)

    def ask(i):
        body = {**ASK, "prompt": prompts[i]}
        if i % 2:
            found[i] = event_texts(server.stream("/v1/completions", body))
        else:
            found[i] = server.post_ok("/v1/completions", body)["choices"][0]["text"]

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(prompts))]
    for t in threads:
        t.start()
    for t in threads:
        t.join(60)
    c.equal(found, expected, "64 at once")


def main():
    c = Checks("e2e_http")
    server, chat_server = Server(DEMO), Server(make_chat_model())
    for test in (test_small_endpoints, test_tokenize, test_answer_headers, test_request_id, test_keep_alive, test_http_1_0,
                 test_pipelining, test_pieces, test_expect, test_loop_headers, test_many):
        c.attempt(test, server)
    c.attempt(test_streams, server, chat_server)
    c.attempt(test_halves, chat_server)
    c.attempt(test_choices_mixed, chat_server)
    for s in (server, chat_server):
        c.check(s.wait_until_idle().is_idle(), "at the end nothing runs and no KV is held")
        c.equal(s.stop(), 0, "exit code after SIGTERM")
    slow = Server(make_slow_model(), "--max-sequences", 1, "--ping-interval", 0.2)
    c.attempt(test_pings, slow)
    slow.stop()
    c.close()


if __name__ == "__main__":
    main()
