"""What the tests of the server share: a running `carousel serve`, the wire byte by byte, /metrics as numbers.

Nothing here interprets more of HTTP than a test asks for: answers are split where the protocol says and kept as bytes,
so that framing itself can be checked. Servers listen on a free port of 127.0.0.1 and are ended with the test.
"""
import atexit
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import time

from e2e_lib import DEMO, PROGRAM, WORK, Failure, clean_environment, make_checkpoint, stop_group

PLACE = WORK / "http"
START_SECONDS = 60


def wait_for(condition, timeout=10):
    late = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > late:
            return False
        time.sleep(0.02)
    return True


class Server:
    """carousel serve MODEL OPTIONS..., ready; its log is kept in PLACE."""

    count = 0

    def __init__(self, model=DEMO, *options, scheme="http", wait_until="ready", env=None, key=None):
        PLACE.mkdir(parents=True, exist_ok=True)
        Server.count += 1
        self.scheme, self.model, self.key = scheme, model, key
        self.endpoint_file = PLACE / f"endpoint-{os.getpid()}-{Server.count}.json"
        self.log_path = PLACE / f"server-{os.getpid()}-{Server.count}.log"
        self.endpoint_file.unlink(missing_ok=True)
        self.command = [*self.program(), str(model), "--port", "0", "--endpoint-file", str(self.endpoint_file),
                        *[str(o) for o in options]]
        environment = clean_environment()
        environment.update(env or {})
        self.log = open(self.log_path, "wb")
        self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log,
                                        env=environment, start_new_session=True)
        atexit.register(self.kill)
        self.endpoint = self.wait_for(wait_until)
        self.host, self.port = "127.0.0.1", self.endpoint["port"]
        self.url = f"{scheme}://{self.host}:{self.port}"

    @staticmethod
    def program():
        return [PROGRAM, "serve"]

    def wait_for(self, state):
        late = time.monotonic() + START_SECONDS
        while time.monotonic() < late:
            try:
                endpoint = json.loads(self.endpoint_file.read_text())
                if endpoint["state"] == state:
                    return endpoint
            except FileNotFoundError:
                pass
            if self.process.poll() is not None:
                raise Failure(f"{' '.join(self.command)}: ended with {self.process.returncode}: {self.log_tail()}")
            time.sleep(0.02)
        self.kill()
        raise Failure(f"{' '.join(self.command)}: not {state} within {START_SECONDS} s: {self.log_tail()}")

    def log_text(self):
        return self.log_path.read_text(errors="replace")

    def log_tail(self):
        return self.log_text().strip()[-600:]

    def is_alive(self):
        return self.process.poll() is None

    def stop(self, timeout=40):
        """SIGTERM, then the exit code."""
        if self.is_alive():
            self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise Failure(f"{' '.join(self.command)}: does not end after SIGTERM: {self.log_tail()}") from None
        self.log.close()
        return code

    def kill(self):
        if self.is_alive():
            stop_group(self.process)

    # ---- asking ----------------------------------------------------------------------------------

    def wire(self, **options):
        return Wire(self.host, self.port, **options)

    def ask(self, method, path, body=None, headers=None, **options):
        """One exchange on a connection of its own; body: bytes, or anything JSON can say."""
        key = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        with self.wire(**options) as w:
            w.request(method, path, body, {**key, **(headers or {})})
            return w.read_answer(method)

    def post(self, path, body, headers=None, **options):
        return self.ask("POST", path, body, headers, **options)

    def post_ok(self, path, body, headers=None, **options):
        answer = self.post(path, body, headers, **options)
        if answer.status != 200:
            raise Failure(f"POST {path} {json.dumps(body)[:300]}: {answer}")
        return answer.json()

    def stream(self, path, body, headers=None, **options):
        """The events of a stream, as parsed JSON; checks that it is framed and ends as it must."""
        answer = self.post(path, {**body, "stream": True}, headers, **options)
        if answer.status != 200:
            raise Failure(f"POST {path} {json.dumps(body)[:300]}: {answer}")
        events, _ = split_events(answer.body)
        if not events or events[-1] != b"[DONE]":
            raise Failure(f"POST {path} {json.dumps(body)[:300]}: the stream ends with {events[-1:]}")
        return [json.loads(e) for e in events[:-1]]

    def metrics(self):
        answer = self.ask("GET", "/metrics")
        if answer.status != 200:
            raise Failure(f"/metrics: {answer}")
        return Metrics(answer.body.decode())

    def wait_until_idle(self, timeout=15):
        """Until nothing waits, runs or holds KV; returns the last metrics. The KV figure is a second old."""
        late = time.monotonic() + timeout
        while True:
            m = self.metrics()
            if m.is_idle() or time.monotonic() > late:
                return m
            time.sleep(0.1)


class Metrics:
    LINE = re.compile(r"^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (\S+)$")
    LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"')

    def __init__(self, text):
        self.text, self.samples = text, []
        for line in text.splitlines():
            if line and not line.startswith("#"):
                found = self.LINE.match(line)
                if not found:
                    raise Failure(f"/metrics has a line that is no sample: {line!r}")
                self.samples.append((found[1], dict(self.LABEL.findall(found[2] or "")), float(found[3])))

    def sum(self, name, **labels):
        """Of all samples of that name with these labels, carousel_ left out; None: there are none."""
        found = [v for n, l, v in self.samples
                 if n == "carousel_" + name and all(l.get(k) == w for k, w in labels.items())]
        return sum(found) if found else None

    def max(self, name, **labels):
        found = [v for n, l, v in self.samples
                 if n == "carousel_" + name and all(l.get(k) == w for k, w in labels.items())]
        return max(found) if found else None

    def is_idle(self):
        return (self.sum("num_requests_running") == 0 and self.sum("num_requests_waiting") == 0
                and self.max("kv_cache_usage_ratio") == 0)

    def quantile(self, name, q):
        """Upper edge of the bucket in which the quantile of a histogram lies; None: it is empty."""
        buckets = {}
        for n, l, v in self.samples:
            if n == f"carousel_{name}_bucket":
                edge = float(l["le"])
                buckets[edge] = buckets.get(edge, 0) + v
        total = max(buckets.values(), default=0)
        for edge in sorted(buckets):
            if total and buckets[edge] >= q * total:
                return edge
        return None


class Answer:
    def __init__(self, version, status, reason, headers, body, was_chunked):
        self.version, self.status, self.reason = version, status, reason
        self.headers, self.body, self.was_chunked = headers, body, was_chunked

    def header(self, name):
        """Its value; several of one name are a failure."""
        found = [v for k, v in self.headers if k.lower() == name.lower()]
        if len(found) > 1:
            raise Failure(f"header {name} came {len(found)} times: {found}")
        return found[0] if found else None

    def json(self):
        try:
            return json.loads(self.body)
        except ValueError:
            raise Failure(f"not JSON: {self}") from None

    def error(self):
        try:
            return json.loads(self.body)["error"]
        except (ValueError, KeyError, TypeError):
            raise Failure(f"no error object: {self}") from None

    def __str__(self):
        return f"{self.status} {self.reason}: {self.body[:400]!r}"


class Wire:
    """A connection, byte by byte."""

    def __init__(self, host, port, timeout=30, tls=None, receive_buffer=None):
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(timeout)
        self.socket.connect((host, port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls:
            self.socket = tls.wrap_socket(self.socket, server_hostname="localhost")
        self.buffer = b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.socket.close()

    def send(self, data):
        self.socket.sendall(data)

    def request(self, method, path, body=None, headers=None, version="1.1"):
        self.send(request_bytes(method, path, body, headers, version))

    def fill(self):
        """One more piece; False at the end."""
        try:
            piece = self.socket.recv(65536)
        except (ConnectionResetError, ssl.SSLEOFError):
            piece = b""
        except socket.timeout:
            raise Failure(f"no answer in time; so far {self.buffer[:200]!r}") from None
        self.buffer += piece
        return bool(piece)

    def read_until(self, mark):
        while mark not in self.buffer:
            if not self.fill():
                raise Failure(f"the connection ended before {mark!r}: {self.buffer[:300]!r}")
        head, self.buffer = self.buffer.split(mark, 1)
        return head

    def read_bytes(self, n):
        while len(self.buffer) < n:
            if not self.fill():
                raise Failure(f"the connection ended {n - len(self.buffer)} bytes early")
        data, self.buffer = self.buffer[:n], self.buffer[n:]
        return data

    def read_to_end(self):
        while self.fill():
            pass
        data, self.buffer = self.buffer, b""
        return data

    def is_closed(self, timeout=5):
        """Whether the other side ends the connection within that time, sending nothing more."""
        self.socket.settimeout(timeout)
        try:
            return self.buffer == b"" and self.socket.recv(1) == b""
        except (ConnectionResetError, ssl.SSLEOFError):
            return True
        except socket.timeout:
            return False

    def read_head(self):
        """(version, status, reason, headers)"""
        lines = self.read_until(b"\r\n\r\n").decode("latin-1").split("\r\n")
        found = re.fullmatch(r"(HTTP/1\.[01]) ([0-9]{3}) ?(.*)", lines[0])
        if not found:
            raise Failure(f"no status line: {lines[0]!r}")
        headers = []
        for line in lines[1:]:
            name, colon, value = line.partition(":")
            if not colon or name != name.strip():
                raise Failure(f"no header line: {line!r}")
            headers.append((name, value.strip()))
        return found[1], int(found[2]), found[3], headers

    def read_chunk(self):
        """The next chunk of a chunked body; b"" is the end."""
        size = int(self.read_until(b"\r\n"), 16)
        data = self.read_bytes(size)
        if self.read_bytes(2) != b"\r\n":
            raise Failure("a chunk does not end with an empty line")
        return data

    def read_answer(self, method="GET"):
        version, status, reason, headers = self.read_head()
        fields = {k.lower(): v for k, v in headers}
        was_chunked = fields.get("transfer-encoding", "").lower() == "chunked"
        if status in (204, 304) or 100 <= status < 200 or method == "HEAD":
            body = b""
        elif was_chunked:
            body = b""
            while True:
                chunk = self.read_chunk()
                if not chunk:
                    break
                body += chunk
        elif "content-length" in fields:
            body = self.read_bytes(int(fields["content-length"]))
        else:
            body = self.read_to_end()
        return Answer(version, status, reason, headers, body, was_chunked)


def request_bytes(method, path, body=None, headers=None, version="1.1"):
    if body is not None and not isinstance(body, bytes):
        body = json.dumps(body).encode()
    lines = [f"{method} {path} HTTP/{version}"]
    given = {"Host": "127.0.0.1", **(headers or {})}
    if body is not None:
        given.setdefault("Content-Type", "application/json")
        given.setdefault("Content-Length", str(len(body)))
    # A None takes a header out that would be there.
    lines += [f"{k}: {v}" for k, v in given.items() if v is not None]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + (body or b"")


def split_events(body):
    """(payloads of `data:`, comments) of a whole text/event-stream; anything else in it is a failure."""
    if body and not body.endswith(b"\n\n"):
        raise Failure(f"the stream does not end with an empty line: {body[-100:]!r}")
    events, comments = [], []
    for piece in body.split(b"\n\n")[:-1]:
        if piece.startswith(b"data: ") and b"\n" not in piece and b"\r" not in piece:
            events.append(piece[6:])
        elif piece.startswith(b": ") and b"\n" not in piece:
            comments.append(piece[2:])
        else:
            raise Failure(f"neither an event nor a comment: {piece[:200]!r}")
    return events, comments


def event_texts(events, choice=0):
    """The text of one choice, put together from a stream."""
    text = ""
    for event in events:
        for c in event["choices"]:
            if c["index"] == choice:
                text += c["text"] if "text" in c else c["delta"].get("content") or ""
    return text


def event_ids(events, choice=0):
    return [i for e in events for c in e["choices"] if c["index"] == choice for i in c.get("token_ids") or []]


def event_finish(events, choice=0):
    found = [c["finish_reason"] for e in events for c in e["choices"]
             if c["index"] == choice and c.get("finish_reason") is not None]
    if len(found) != 1:
        raise Failure(f"choice {choice} has {len(found)} finish reasons: {found}; the stream ends with {str(events[-2:])[:600]}")
    return found[0]


# ---- a model that can chat --------------------------------------------------------------------------


def byte_letters():
    """Byte -> the letter that stands for it in a byte-level vocabulary."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters, n = {b: chr(b) for b in plain}, 0
    for b in range(256):
        if b not in letters:
            letters[b] = chr(256 + n)
            n += 1
    return letters


def make_chat_model(name="chat", positions=512, *shape):
    """A random model with one token for each byte, some merges, and ChatML's special tokens.

    Nothing it says makes sense, and much of it is halves of UTF-8 characters: that is what it is for.
    """
    letters = byte_letters()
    vocab = {letters[b]: b for b in range(256)}
    merges = []
    for left, right in (("t", "h"), ("th", "e"), ("Ġ", "the"), ("i", "n"), ("a", "n"), ("an", "d"), ("e", "r"),
                        (letters[0xC3], letters[0xA4]), (letters[0xE2], letters[0x82])):
        merges.append(f"{left} {right}")
        vocab[left + right] = len(vocab)
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]
    n_vocab = len(vocab) + len(special)
    directory = make_checkpoint(name, "--vocab", n_vocab, "--max-positions", positions, "--loops", 4, "--eos-id",
                                len(vocab), "--bos-id", -1, "--seed", 11, *shape)
    added = [{"id": len(vocab) + i, "content": s, "single_word": False, "lstrip": False, "rstrip": False,
              "normalized": False, "special": i < 3} for i, s in enumerate(special)]
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": None, "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True,
                                            "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "vocab": vocab,
                  "merges": merges},
    }
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    return directory


def make_slow_model():
    """One whose tokens take 10 ms and more, with room for 8192: requests that are still there when a test looks."""
    return make_chat_model("slow", 8192, "--layers", 4, "--d-model", 256, "--ffn", 768, "--heads", 8, "--kv-heads", 8,
                           "--head-dim", 32)


# ---- TLS --------------------------------------------------------------------------------------------


def make_certificate():
    """A self-signed certificate for localhost and its key: (cert, key)."""
    cert, key = PLACE / "cert.pem", PLACE / "key.pem"
    PLACE.mkdir(parents=True, exist_ok=True)
    if not shutil.which("openssl"):
        raise Failure("the openssl program is missing; scripts/setup.sh installs it")
    done = subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", cert,
                           "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"],
                          capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failure(f"openssl: {done.stderr[-300:]}")
    return cert, key
