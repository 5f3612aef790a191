#!/usr/bin/env python3
"""Load on a running server: N streams at once for S seconds, whose clients leave at random moments.

    load_streams.py --streams 256 --seconds 120 http://127.0.0.1:8000
    load_streams.py --start --streams 64 --seconds 10 [MODEL]       (starts and ends a server of its own)

Every stream that ends is followed by another. A share of the clients (--leave) goes away: before the answer begins or
after some events, by FIN or by RST. At the end everybody leaves, and the server must be idle: nothing waits or runs, KV
use is 0. The server's resident memory is sampled every second; the medians of the two halves of the run are compared.
The exit code is 1 when a stream failed, something was left behind, or memory of the halves differs by more than 2 %
(runs of two minutes and more).
"""
import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.parse

from http_streams import Loop, Samples, Stream, histogram_quantile, quantile, request_bytes

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PROGRAM = os.environ.get("CAROUSEL", os.path.join(ROOT, "build", "carousel"))


def parse_args():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("target", nargs="?", help="URL of a server, or with --start a model directory")
    p.add_argument("--start", action="store_true", help="start a server on a free port; its options follow --")
    p.add_argument("--pid", type=int, help="of the server, for its memory (with --start it is known)")
    p.add_argument("--key", help="API key")
    p.add_argument("--streams", type=int, default=64)
    p.add_argument("--seconds", type=float, default=10)
    p.add_argument("--leave", type=float, default=0.3, help="share of clients that go away (default 0.3)")
    p.add_argument("--max-tokens", default="20-200", metavar="A-B")
    p.add_argument("--prompt", default="l>j f>l j>u u>f;j>>")
    p.add_argument("--seed", type=int, default=int(time.time()))
    p.add_argument("--json", metavar="FILE", help="write the numbers there, too")
    arguments, options = sys.argv[1:], []
    if "--" in arguments:
        at = arguments.index("--")
        arguments, options = arguments[:at], arguments[at + 1:]
    a = p.parse_args(arguments)
    if not a.start and not a.target:
        p.error("give the server's URL, or --start")
    a.options = options
    a.low, _, a.high = a.max_tokens.partition("-")
    a.low, a.high = int(a.low), int(a.high or a.low)
    return a


def start_server(a):
    """(process, url, pid)"""
    place = tempfile.mkdtemp()
    endpoint, log = os.path.join(place, "endpoint.json"), os.path.join(place, "log")
    command = [PROGRAM, "serve", *([a.target] if a.target else []), "--port", "0", "--endpoint-file", endpoint, *a.options]
    with open(log, "wb") as out:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    late = time.monotonic() + 60
    while time.monotonic() < late and process.poll() is None:
        try:
            with open(endpoint, encoding="utf-8") as f:
                found = json.load(f)
            if found["state"] == "ready":
                return process, f"http://127.0.0.1:{found['port']}", found["pid"]
        except FileNotFoundError:
            pass
        time.sleep(0.05)
    process.kill()
    with open(log, encoding="utf-8", errors="replace") as f:
        sys.exit(f"{' '.join(command)}: no server: {f.read()[-500:]}")


def rss_bytes(pid):
    with open(f"/proc/{pid}/statm", encoding="ascii") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGESIZE")


class Load:
    def __init__(self, a, url):
        self.a, self.rng = a, random.Random(a.seed)
        parts = urllib.parse.urlsplit(url)
        self.host = f"{parts.hostname}:{parts.port}"
        self.loop = Loop(parts.hostname, parts.port, self.on_end)
        self.is_over = False
        self.n_started = self.n_done = self.n_left = 0
        self.failures = {}

    def next(self, connection=None):
        rng, a = self.rng, self.a
        tokens = rng.randint(a.low, a.high)
        leave = None
        if rng.random() < a.leave:
            leave = 0 if rng.random() < 0.2 else rng.randint(1, tokens)
        body = {"prompt": a.prompt, "max_tokens": tokens, "temperature": 1, "seed": rng.randrange(1 << 31),
                "ignore_eos": True, "stream": True, "stream_options": {"include_usage": True}}
        self.n_started += 1
        self.loop.start(Stream(request_bytes(self.host, "/v1/completions", body, a.key), leave, rng.random() < 0.5),
                        connection)

    def on_end(self, stream):
        if stream.failure:
            self.failures[stream.failure] = self.failures.get(stream.failure, 0) + 1
        elif stream.is_done:
            self.n_done += 1
        else:
            self.n_left += 1
        connection = stream.socket if stream.is_done else None
        if self.is_over or (connection is not None and self.rng.random() < 0.3):
            if connection is not None:
                connection.close()
            connection = None
        if not self.is_over:
            self.next(connection)

    def run(self, sample):
        for _ in range(self.a.streams):
            self.next()
        began = time.monotonic()
        next_sample = began + 1
        while time.monotonic() < began + self.a.seconds:
            self.loop.turn(0.2)
            if time.monotonic() >= next_sample:
                next_sample += 1
                sample()
        self.is_over = True
        n_open = len(self.loop.streams)
        self.loop.close()
        return time.monotonic() - began, n_open


def milliseconds(values):
    return {f"p{int(100 * q)}": round(1e3 * quantile(values, q), 3) if values else None for q in (0.5, 0.9, 0.99)}


def wait_until_idle(url, key):
    late = time.monotonic() + 15
    while True:
        samples = Samples(url, key)
        if samples.is_idle() or time.monotonic() > late:
            return samples
        time.sleep(0.2)


def measure(a, url, pid):
    before, memory = Samples(url, a.key), []
    load = Load(a, url)
    cpu = time.process_time()
    seconds, n_open = load.run(lambda: memory.append(rss_bytes(pid)) if pid else None)
    cpu = (time.process_time() - cpu) / seconds
    during = Samples(url, a.key)
    after = wait_until_idle(url, a.key)
    half = len(memory) // 2
    rss = [statistics.median(m) if m else None for m in (memory[:half], memory[half:])]
    socket_ms = histogram_quantile(before, during, "carousel_token_to_socket_seconds", 0.99)
    return {
        "streams": a.streams, "seconds": round(seconds, 1), "seed": a.seed, "started": load.n_started,
        "done": load.n_done, "left": load.n_left + n_open, "failed": sum(load.failures.values()),
        "failures": dict(sorted(load.failures.items(), key=lambda x: -x[1])[:10]),
        "tokens_per_s": round((during.sum("carousel_generation_tokens_total")
                               - before.sum("carousel_generation_tokens_total")) / seconds, 1),
        "ttft_ms": milliseconds(load.loop.ttft), "itl_ms": milliseconds(load.loop.itl),
        "token_to_socket_p99_ms": round(1e3 * socket_ms[0], 3) if socket_ms[0] is not None else None,
        "token_to_socket_p99_at_most_ms": 1e3 * socket_ms[1] if socket_ms[1] is not None else None,
        "client_cpu": round(cpu, 2),
        "rss_mib": [round(m / 2**20, 2) if m else None for m in rss],
        "rss_change": round(rss[1] / rss[0] - 1, 4) if rss[0] else None,
        "kv_usage_after": after.max("carousel_kv_cache_usage_ratio"),
        "running_after": after.sum("carousel_num_requests_running"),
        "waiting_after": after.sum("carousel_num_requests_waiting"), "is_idle": after.is_idle(),
    }


def report(r):
    print(f"{r['streams']} streams for {r['seconds']} s: {r['started']} started, {r['done']} done, {r['left']} left, "
          f"{r['failed']} failed; {r['tokens_per_s']} tokens/s (seed {r['seed']})")
    for why, n in r["failures"].items():
        print(f"  failed {n} times: {why}")
    for name, what in (("ttft_ms", "first event"), ("itl_ms", "between events")):
        print(f"  {what} ms: " + "  ".join(f"{k} {v}" for k, v in r[name].items()))
    print(f"  token to socket, p99: {r['token_to_socket_p99_ms']} ms (at most {r['token_to_socket_p99_at_most_ms']} ms)")
    if r["rss_change"] is not None:
        print(f"  resident memory, medians of the halves: {r['rss_mib'][0]} and {r['rss_mib'][1]} MiB "
              f"({100 * r['rss_change']:+.2f} %)")
    print(f"  afterwards: {r['running_after']:.0f} running, {r['waiting_after']:.0f} waiting, KV use {r['kv_usage_after']}; "
          f"the client used {100 * r['client_cpu']:.0f} % of a core")


def main():
    a = parse_args()
    process, url, pid = start_server(a) if a.start else (None, a.target.rstrip("/"), a.pid)
    try:
        r = measure(a, url, pid)
    finally:
        if process is not None:
            process.send_signal(signal.SIGTERM)
            code = process.wait(60)
    if process is not None:
        r["server_exit_code"] = code
    report(r)
    if a.json:
        with open(a.json, "w", encoding="utf-8") as f:
            json.dump(r, f, indent=1)
    is_flat = r["rss_change"] is None or a.seconds < 120 or abs(r["rss_change"]) <= 0.02
    sys.exit(0 if r["failed"] == 0 and r["is_idle"] and is_flat and r.get("server_exit_code", 0) == 0 else 1)


if __name__ == "__main__":
    main()
