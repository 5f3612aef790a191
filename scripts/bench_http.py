#!/usr/bin/env python3
"""What HTTP costs: tokens/s of `carousel serve` beside `carousel bench engine`, the same work, in turn.

    bench_http.py [MODEL] [--runs 5] [--requests 256] [--concurrency 32] [-p 32] [-o 32-96] [--threads 1] [-q Q]
    bench_http.py --random 60m          a random checkpoint below build/models, whose tokens cost more than the demo's

R requests of P random prompt ids and A to B tokens each, C in flight, streamed, on one worker in the server's process. With
one length for all they would end together, and both sides would measure how their successors come in. One
compute thread by default: on a machine with two cores the client, which is a process of its own, would otherwise take
its time from the worker. Reported are the medians of the runs, the ratio of each pair, and the share of a core that the
client used.
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

from http_streams import Loop, Samples, Stream, histogram_quantile, quantile, request_bytes

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PROGRAM = os.environ.get("CAROUSEL", os.path.join(ROOT, "build", "carousel"))
SHAPES = {
    "6m": ["--layers", "4", "--d-model", "256", "--ffn", "704", "--heads", "4", "--kv-heads", "4", "--head-dim", "64",
           "--vocab", "4096"],
    "60m": ["--layers", "8", "--d-model", "768", "--ffn", "2048", "--heads", "12", "--kv-heads", "12", "--head-dim", "64",
            "--vocab", "4096"],
}


def parse_args():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model", nargs="?", default=os.path.join(ROOT, "model", "demo"))
    p.add_argument("--random", choices=sorted(SHAPES))
    p.add_argument("--runs", type=int, default=5)
    p.add_argument("--requests", type=int, default=256)
    p.add_argument("--concurrency", type=int, default=32)
    p.add_argument("-p", "--prompt-tokens", type=int, default=32)
    p.add_argument("-o", "--output-tokens", default="32-96", metavar="A-B", help="drawn for each request (default 32-96)")
    p.add_argument("-q", "--exit-threshold", type=float, help="exit exact at Q; without it all loops")
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--whole", action="store_true", help="answers in one piece instead of streams")
    a = p.parse_args()
    low, _, high = a.output_tokens.partition("-")
    a.low, a.high = int(low), int(high or low)
    return a


def random_model(size):
    path = os.path.join(ROOT, "build", "models", f"random-{size}")
    if not os.path.exists(os.path.join(path, "config.json")):
        os.makedirs(path, exist_ok=True)
        subprocess.run(["/usr/bin/python3", os.path.join(ROOT, "scripts", "make_checkpoint.py"), *SHAPES[size], "--loops", "4",
                        "--max-positions", "512", "--dtype", "bf16", path], check=True, stdout=subprocess.DEVNULL)
    return path


def exit_options(a):
    return ["--exit", "full"] if a.exit_threshold is None else ["--exit", "exact", "-q", str(a.exit_threshold)]


def run_engine(a):
    command = [PROGRAM, "bench", "engine", a.model, "-r", str(a.requests), "--warmup", str(a.concurrency), "-c",
               str(a.concurrency), "-p", str(a.prompt_tokens), "-o", str(a.output_tokens), "--threads", str(a.threads),
               "--json", *exit_options(a)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
    return json.loads(done.stdout)


class Run:
    """R requests, C in flight, each on the connection of the one before."""

    def __init__(self, a, port, vocab, n_requests):
        self.a, self.vocab, self.left = a, vocab, n_requests
        self.rng = random.Random(1)
        self.loop = Loop("127.0.0.1", port, self.on_end)
        self.n_tokens = 0
        # Made before the clock starts.
        self.requests = [self.request() for _ in range(n_requests)]

    def request(self):
        ids = [self.rng.randrange(self.vocab) for _ in range(self.a.prompt_tokens)]
        n_tokens = self.rng.randint(self.a.low, self.a.high)
        self.n_tokens += n_tokens
        return request_bytes("127.0.0.1", "/v1/completions", {
            "prompt": ids, "max_tokens": n_tokens, "temperature": 0, "ignore_eos": True, "stream": True})

    def next(self, connection=None):
        if self.requests:
            self.loop.start(Stream(self.requests.pop()), connection)

    def on_end(self, stream):
        if stream.failure:
            sys.exit(f"a stream failed: {stream.failure}")
        self.left -= 1
        self.next(stream.socket)

    def go(self):
        """(tokens/s, share of a core that this client used)"""
        began, cpu = time.monotonic(), time.process_time()
        for _ in range(min(self.a.concurrency, len(self.requests))):
            self.next()
        while self.left:
            self.loop.turn(1)
        seconds = time.monotonic() - began
        return self.n_tokens / seconds, (time.process_time() - cpu) / seconds


class WholeRun(Run):
    """The same with answers in one piece."""

    def request(self):
        head, _, body = super().request().partition(b"\r\n\r\n")
        body = json.dumps({**json.loads(body), "stream": False}).encode()
        lines = [line for line in head.split(b"\r\n") if not line.startswith(b"Content-Length")]
        return b"\r\n".join([*lines, b"Content-Length: %d" % len(body)]) + b"\r\n\r\n" + body

    def next(self, connection=None):
        if self.requests:
            self.loop.start(Stream(self.requests.pop(), is_whole=True), connection)


def run_http(a):
    with tempfile.TemporaryDirectory() as place:
        endpoint = os.path.join(place, "endpoint.json")
        with open(os.path.join(place, "log"), "wb") as log:
            process = subprocess.Popen([PROGRAM, "serve", a.model, "--port", "0", "--endpoint-file", endpoint, "--threads",
                                        str(a.threads), *exit_options(a)], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            state = {}
            while state.get("state") != "ready":
                if process.poll() is not None:
                    with open(os.path.join(place, "log"), encoding="utf-8") as log:
                        sys.exit(f"the server ended: {log.read()[-500:]}")
                try:
                    with open(endpoint, encoding="utf-8") as f:
                        state = json.load(f)
                except FileNotFoundError:
                    pass
                time.sleep(0.05)
            with open(os.path.join(a.model, "config.json"), encoding="utf-8") as f:
                vocab = json.load(f)["vocab_size"]
            url, kind = f"http://127.0.0.1:{state['port']}", WholeRun if a.whole else Run
            kind(a, state["port"], vocab, a.concurrency).go()
            time.sleep(1.2)
            before = Samples(url)
            run = kind(a, state["port"], vocab, a.requests)
            tokens_per_s, cpu = run.go()
            after = Samples(url)
            expected = after.sum("carousel_generation_tokens_total") - before.sum("carousel_generation_tokens_total")
            if expected != run.n_tokens:
                sys.exit(f"the server generated {expected:.0f} tokens, the clients asked for {run.n_tokens}")
            # The engine's own figures are a second old at most.
            time.sleep(1.2)
            after = Samples(url)
            batches = after.sum("carousel_batches_total") - before.sum("carousel_batches_total")
            rows = after.sum("carousel_rows_total") - before.sum("carousel_rows_total")
            to_socket = histogram_quantile(before, after, "carousel_token_to_socket_seconds", 0.99)[0]
            return {"tokens_per_s": tokens_per_s, "client_cpu": cpu, "rows_per_batch": rows / batches, "itl_ms": 1e3 * (quantile(run.loop.itl, 0.5) or 0),
                    "to_socket_ms": 1e3 * to_socket if to_socket is not None else float("nan")}
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def main():
    a = parse_args()
    if a.random:
        a.model = random_model(a.random)
    engine, http = [], []
    for i in range(a.runs):
        # Which of the two comes first changes, so that neither always meets the warmer machine.
        for kind in ("engine", "http") if i % 2 == 0 else ("http", "engine"):
            (engine if kind == "engine" else http).append(run_engine(a) if kind == "engine" else run_http(a))
    ratios = [h["tokens_per_s"] / e["tokens_per_s"] for h, e in zip(http, engine)]

    def median(key, runs=None):
        return statistics.median(r[key] for r in runs or http)

    print(f"{os.path.relpath(a.model, ROOT)}: {a.requests} requests of {a.prompt_tokens} + {a.output_tokens} tokens, "
          f"{a.concurrency} in flight, {a.threads} compute thread(s), "
          f"{'all loops' if a.exit_threshold is None else f'q = {a.exit_threshold}'}, "
          f"{'whole answers' if a.whole else 'streams'}, {a.runs} pairs")
    print(f"  bench engine {median('tokens_per_s', engine):.1f} tokens/s, HTTP {median('tokens_per_s'):.1f} tokens/s; "
          f"ratio median {statistics.median(ratios):.3f} (min {min(ratios):.3f}, max {max(ratios):.3f}), "
          f"best of each {max(h['tokens_per_s'] for h in http) / max(e['tokens_per_s'] for e in engine):.3f}; "
          f"rows a batch {median('rows_per_batch', engine):.2f} and {median('rows_per_batch'):.2f}")
    print(f"  the client used {100 * median('client_cpu'):.0f} % of a core; token to socket, p99: "
          f"{median('to_socket_ms'):.3f} ms; between events, p50: {median('itl_ms'):.2f} ms")


if __name__ == "__main__":
    main()
