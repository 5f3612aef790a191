#!/usr/bin/python3
"""A table of bad requests: the exact status and error object of each, and the server answers the next one.

tests/data/http_bad.jsonl has a line for each: what is wrong, the request, the answer. A request is a path with a JSON
value (`body`), or with bytes as text (`text`), or all its bytes (`wire`); {"repeat": [TEXT, N]} stands for a long text in
any of them. `server` names the one that is asked. Requests that are no HTTP are answered by the library's own page
(`title`) and the connection ends. `e2e_http_bad.py --show` prints the table as the server answers.
"""
import json
import re
import sys

from e2e_lib import DEMO, ROOT, Checks, Failure
from http_lib import PLACE, Server, Wire, make_chat_model, request_bytes

TABLE = ROOT / "tests" / "data" / "http_bad.jsonl"
KEY = "sk-bad-1"


def expand(value):
    """{"repeat": [TEXT, N]} anywhere becomes that text."""
    if isinstance(value, dict):
        if set(value) == {"repeat"}:
            return value["repeat"][0] * value["repeat"][1]
        return {k: expand(v) for k, v in value.items()}
    if isinstance(value, list):
        return [expand(v) for v in value]
    return value


def text_bytes(parts):
    """A text, or a list of texts and repeats, whose characters are bytes."""
    parts = parts if isinstance(parts, list) else [parts]
    return "".join(expand(p) for p in parts).encode("latin-1")


def request_of(row):
    if "wire" in row:
        return text_bytes(row["wire"])
    headers = {k: expand(v) for k, v in row.get("headers", {}).items()}
    if "text" in row:
        body = text_bytes(row["text"])
    elif "body" in row:
        body = json.dumps(expand(row["body"])).encode()
    else:
        body = None
    return request_bytes(row.get("method", "POST"), row.get("path", "/v1/completions"), body, headers)


def ask(server, row):
    with Wire(server.host, server.port, timeout=15) as w:
        try:
            w.send(request_of(row))
        except (BrokenPipeError, ConnectionResetError):
            pass  # an answer may come, and the connection go, before the whole request is out
        answer = w.read_answer(row.get("method", "POST"))
        if row.get("is_closed") and not w.is_closed():
            raise Failure(f"{row['what']}: the connection stays open")
        return answer


def answer_of(answer):
    """What the table says of it."""
    found = {"status": answer.status}
    if (answer.header("Content-Type") or "").startswith("text/html"):
        # What is no request of HTTP never reaches the code that knows of JSON.
        found.update(title=re.search(r"<TITLE>(.*)</TITLE>", answer.body.decode())[1], is_closed=True)
        return found
    error = answer.error()
    found.update({k: error.get(k) for k in ("type", "param", "code", "message")})
    if set(error) != {"message", "type", "param", "code"}:
        found["fields"] = sorted(error)
    if answer.header("Allow"):
        found["allow"] = answer.header("Allow")
    return found


EXPECTED = ("status", "type", "param", "code", "message", "allow", "title", "is_closed")


def test_row(c, servers, row):
    server = servers[row.get("server", "demo")]
    answer = ask(server, row)
    c.equal(answer_of(answer), {k: row[k] for k in EXPECTED if k in row}, row["what"])
    if "title" not in row:
        c.check((answer.header("Content-Type") or "").startswith("application/json"), f"{row['what']}: Content-Type")
    health = server.ask("GET", "/health")
    c.equal(health.status, 200, f"{row['what']}: the server afterwards")


def show(servers, rows):
    for row in rows:
        kept = {k: v for k, v in row.items() if k not in EXPECTED}
        try:
            kept.update(answer_of(ask(servers[row.get("server", "demo")], row)))
        except Failure as e:
            kept["failure"] = str(e)
        print(json.dumps(kept))


def main():
    c = Checks("e2e_http_bad")
    rows = [json.loads(line) for line in TABLE.read_text().splitlines()]
    PLACE.mkdir(parents=True, exist_ok=True)
    keys = PLACE / "bad.keys"
    keys.write_text(KEY + "\n")
    keys.chmod(0o600)
    servers = {"demo": Server(DEMO, "--max-body", "1M", "--max-header", "16K"), "chat": Server(make_chat_model()),
               "keys": Server(DEMO, "--api-key-file", keys, "--max-prompt-tokens", 4, key=KEY)}
    if "--show" in sys.argv:
        show(servers, rows)
        return
    for row in rows:
        c.attempt(test_row, servers, row)
    c.check(len(rows) >= 40, f"the table has {len(rows)} rows")
    good = servers["demo"].post_ok("/v1/completions", {"prompt": "l>j f>l j>u u>f;j>>", "temperature": 0, "max_tokens": 8})
    c.equal(good["choices"][0]["text"], "f", "a good request after all that")
    for name, server in servers.items():
        c.check(server.wait_until_idle().is_idle(), f"{name}: nothing runs, no KV is held")
        c.equal(server.stop(), 0, f"{name}: exit code after SIGTERM")
    c.close()


if __name__ == "__main__":
    main()
