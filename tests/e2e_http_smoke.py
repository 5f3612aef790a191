#!/usr/bin/python3
"""Clients that misbehave in every way at once, over HTTP and HTTPS: the server answers the others, and nothing of
them is left: no connection, no row, no KV block, and it ends as it should. Meant for sanitizer builds too
(CAROUSEL=build/san-thread/carousel).
"""
import asyncio
import json
import os
import random
import ssl
import time

from e2e_lib import DEMO, Checks
from http_lib import Server, make_certificate

SECONDS = float(os.environ.get("SMOKE_SECONDS", "3"))
N_CLIENTS = 24
SEED = int(os.environ.get("SMOKE_SEED", "7"))
COMPLETIONS = b"/v1/completions"


def generate(**fields):
    return {"prompt": "12+34=", "max_tokens": 40, "ignore_eos": True, **fields}


def post(body, head=b"", path=COMPLETIONS, version=b"1.1"):
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    return b"POST %s HTTP/%s\r\nHost: x\r\n%sContent-Length: %d\r\n\r\n%s" % (path, version, head, len(body), body)


class Client:
    """One connection; each method is one way to use or misuse it, and returns whether the answer was right."""

    def __init__(self, reader, writer, rng, is_tls):
        self.reader, self.writer, self.rng, self.is_tls = reader, writer, rng, is_tls

    async def read_all(self):
        return await asyncio.wait_for(self.reader.read(-1), 60)

    async def leaves_a_stream(self):
        self.writer.write(post(generate(stream=True, n=self.rng.choice([1, 1, 3]))))
        for _ in range(self.rng.randrange(5)):
            await self.reader.read(300)

    async def leaves_an_answer(self):
        self.writer.write(post(generate()))
        await asyncio.sleep(self.rng.random() * 0.1)

    async def leaves_at_once(self):
        self.writer.write(post(generate(stream=self.rng.random() < 0.5)))

    async def sends_many_ahead(self):
        asked = b"".join(post(generate(max_tokens=3, stream=bool(i % 2))) for i in range(6))
        self.writer.write(asked + b"GET /health HTTP/1.1\r\nConnection: close\r\n\r\n")
        answer = await self.read_all()
        return answer.count(b"HTTP/1.1 200 ") + answer.count(b"HTTP/1.1 429 ") == 7

    async def sends_ahead_and_leaves(self):
        self.writer.write(b"".join(post(generate(stream=bool(i % 2))) for i in range(10)))
        await self.reader.read(200)

    async def floods(self):
        self.writer.write(post(generate(stream=True)) + b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n" * 20000)
        await self.reader.read(1000)

    async def says_garbage(self):
        self.writer.write(self.rng.randbytes(self.rng.randrange(1, 3000)) + b"\r\n\r\n")
        await asyncio.wait([asyncio.ensure_future(self.reader.read(100))], timeout=0.2)

    async def stops_in_the_middle(self):
        whole = post(generate())
        self.writer.write(whole[: self.rng.randrange(len(whole))])
        await asyncio.sleep(0.02)

    async def does_not_read(self):
        self.writer.write(post(generate(stream=True, n=8, max_tokens=200, logprobs=5)))
        await asyncio.sleep(0.2)

    async def sends_a_large_head(self):
        self.writer.write(b"GET /health HTTP/1.1\r\nX: " + b"a" * 100000 + b"\r\n\r\n")
        await asyncio.wait_for(self.reader.read(500), 10)

    async def sends_a_large_body(self):
        self.writer.write(b"POST /tokenize HTTP/1.1\r\nContent-Length: 8000000\r\n\r\n" + b" " * 8000000)
        return b" 413 " in await asyncio.wait_for(self.reader.read(500), 20)

    async def sends_bad_json(self):
        self.writer.write(post(b'{"prompt": [1, 2', b"Connection: close\r\n"))
        return b" 400 " in await self.read_all()

    async def speaks_http_1_0(self):
        head = self.rng.choice([b"", b"Connection: keep-alive\r\n"])
        self.writer.write(post(generate(stream=True, max_tokens=4), head, version=b"1.0"))
        answer = await self.read_all()
        return b"data: [DONE]\n\n" in answer or b" 429 " in answer

    async def sends_chunks(self):
        body = json.dumps(generate(max_tokens=3)).encode()
        self.writer.write(b"POST /v1/completions HTTP/1.1\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
                          b"5\r\n%s\r\n%x\r\n%s\r\n0\r\n\r\n" % (body[:5], len(body) - 5, body[5:]))
        answer = await self.read_all()
        return b" 200 " in answer or b" 429 " in answer

    async def is_good(self):
        self.writer.write(post(generate(stream=True, max_tokens=8), b"Connection: close\r\n"))
        answer = await self.read_all()
        return b"data: [DONE]\n\n" in answer or b" 429 " in answer


WAYS = [name for name in vars(Client) if name[0] != "_" and name != "read_all"]


async def one(server, way, rng, tls):
    reader, writer = await asyncio.open_connection(server.host, server.port, ssl=tls)
    try:
        return await getattr(Client(reader, writer, rng, tls), way)() is not False
    except (ConnectionError, ssl.SSLError, asyncio.IncompleteReadError):
        return way not in ("is_good", "sends_many_ahead", "sends_bad_json", "sends_chunks")
    finally:
        writer.transport.abort()


async def everybody(c, server, tls, seconds):
    counts = dict.fromkeys(WAYS, 0)

    async def client(i):
        rng = random.Random(SEED * 1000 + i)
        late = time.monotonic() + seconds
        while time.monotonic() < late:
            way = rng.choice(WAYS)
            counts[way] += 1
            try:
                is_right = await asyncio.wait_for(one(server, way, rng, tls), 90)
            except (asyncio.TimeoutError, OSError) as e:
                is_right = c.check(False, f"{way}: {type(e).__name__} {e}")
            if not is_right:
                c.check(False, f"{way}: a wrong answer, or none")

    await asyncio.gather(*[client(i) for i in range(N_CLIENTS)])
    c.note(", ".join(f"{n} {way}" for way, n in counts.items()))
    c.check(all(counts.values()), f"every way was taken: {counts}")


class AnyServer(Server):
    """Asked over TLS when there is a context for it."""

    tls = None

    def wire(self, **options):
        return super().wire(tls=self.tls, **options)


def test_chaos(c, *options, tls=None):
    server = AnyServer(DEMO, *options, scheme="https" if tls else "http")
    server.tls = tls
    asyncio.run(everybody(c, server, tls, SECONDS))
    c.check(server.is_alive(), f"the server lives: {server.log_tail()}")
    m = server.wait_until_idle()
    c.check(m.is_idle(), f"nothing waits, runs or holds KV: {m.max('kv_cache_usage_ratio')}")
    c.check(m.sum("cancelled_total", reason="disconnect") > 0, "those who left were seen")
    c.check(m.sum("http_connections") <= 2, f"{m.sum('http_connections')} connections are left")
    c.equal(server.stop(), 0, f"exit code: {server.log_tail()}")
    c.check("Sanitizer" not in server.log_text(), "no sanitizer report")


def main():
    c = Checks("e2e_http_smoke")
    c.note(f"SMOKE_SEED={SEED}")
    c.attempt(test_chaos)
    cert, key = make_certificate()
    tls = ssl.create_default_context(cafile=cert)
    tls.check_hostname = False
    c.attempt(lambda c: test_chaos(c, "--tls-cert", cert, "--tls-key", key, tls=tls))
    c.close()


if __name__ == "__main__":
    main()
