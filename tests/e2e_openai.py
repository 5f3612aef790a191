#!/usr/bin/python3
"""The official `openai` Python package against the server: answers, streams, errors, retries, unknown fields.

The package lives in a virtual environment of its own, build/e2e/venv-openai, made by the first run. Where PyPI cannot
be reached the test says so in one line, `e2e_openai: skipped: ...`, and ends well.
"""
import asyncio
import os
import pathlib
import shutil
import subprocess
import sys
import time

from e2e_lib import DEMO, WORK, Checks, Failure, clean_environment
from http_lib import PLACE, Server, make_chat_model, make_slow_model

PACKAGE = "openai>=3.25,<4"
VENV = WORK / "venv-openai"
KEY = "sk-carousel-test-1"


def skip(why):
    print(f"e2e_openai: skipped: {why}", flush=True)
    sys.exit(0)


def enter_venv():
    """Goes on in the virtual environment's Python; makes it first where it is not there or asks for another version."""
    stamp = VENV / "made_for"
    if not (stamp.exists() and stamp.read_text() == PACKAGE):
        shutil.rmtree(VENV, ignore_errors=True)
        VENV.parent.mkdir(parents=True, exist_ok=True)
        for what, command in (("no virtual environments (Debian: apt-get install python3-venv)",
                               [sys.executable, "-m", "venv", VENV]),
                              (f"{PACKAGE} cannot be installed, is PyPI reachable?",
                               [VENV / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check", "--retries", "1",
                                "--timeout", "20", PACKAGE])):
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
            except subprocess.TimeoutExpired:
                skip(f"{what}: no answer in 240 s")
            if done.returncode:
                lines = (done.stderr or done.stdout).strip().splitlines()
                skip(f"{what}: {lines[-1][:200] if lines else done.returncode}")
        stamp.write_text(PACKAGE)
    os.execv(VENV / "bin" / "python", [VENV / "bin" / "python", __file__, "--in-venv"])


PROMPT = "l>j f>l j>u u>f;j>>"
GREEDY = {"model": "demo", "prompt": PROMPT, "temperature": 0, "max_tokens": 8}
USER = [{"role": "user", "content": "hellö in the land"}]
CHAT = {"model": "chat", "messages": USER, "temperature": 1, "seed": 3, "max_tokens": 40,
        "extra_body": {"ignore_eos": True}}


def raises(c, kind, what, call, **expected):
    """The exception's class and what it says of status, code, param and type."""
    try:
        call()
    except kind as e:
        c.check(type(e) is kind, f"{what}: raised {type(e).__name__}, not {kind.__name__} itself")
        for name, value in expected.items():
            c.equal(getattr(e, name, None), value, f"{what}: {name}")
        return e
    except Exception as e:  # pylint: disable=broad-except
        c.check(False, f"{what}: raised {type(e).__name__} ({e}), expected {kind.__name__}")
        return None
    c.check(False, f"{what}: nothing was raised, expected {kind.__name__}")
    return None


# ---- the demo model: completions ---------------------------------------------------------------------


def test_models(c, client):
    models = client.models.list()
    c.equal([m.object for m in models.data], ["model"] * len(models.data), "models.list: objects")
    c.check("demo" in [m.id for m in models.data], f"models.list: {[m.id for m in models.data]} has no demo")
    c.equal(client.models.retrieve("demo").id, "demo", "models.retrieve")


def test_completion(c, client):
    whole = client.completions.create(**GREEDY)
    c.equal((whole.object, whole.model, whole.choices[0].text, whole.choices[0].finish_reason),
            ("text_completion", "demo", "f", "stop"), "completion")
    usage = whole.usage
    c.equal((usage.prompt_tokens, usage.completion_tokens, usage.total_tokens), (20, 2, 22), "completion: usage")
    c.check(whole.id.startswith("cmpl-") and abs(whole.created - time.time()) < 60, f"completion: {whole.id}, {whole.created}")
    stats = whole.model_extra["loop_stats"]
    c.check(1 <= stats["mean_exit_loop"] <= 4 and len(stats["per_loop"]) == 4, f"loop_stats is kept: {stats}")
    early = client.completions.create(**GREEDY, extra_body={
        "loops": {"mode": "exact", "exit_threshold": 0.5, "return_exit_loops": True}, "no_such_field": [1]})
    c.equal(early.choices[0].text, "f", "extra_body: text")
    c.equal(early.model_extra["loop_stats"]["exit_loops"][0], 2, "extra_body: a problem of two hops leaves at loop 2")


def test_completion_stream(c, client):
    whole = client.completions.create(**{**GREEDY, "max_tokens": 30}, extra_body={"ignore_eos": True})
    with client.completions.create(**{**GREEDY, "max_tokens": 30}, stream=True, extra_body={"ignore_eos": True},
                                   stream_options={"include_usage": True}) as stream:
        chunks = list(stream)
    c.equal("".join(x.choices[0].text for x in chunks if x.choices), whole.choices[0].text, "stream: text")
    c.equal((chunks[-1].choices, chunks[-1].usage), ([], whole.usage), "stream: the chunk with usage")
    c.equal({x.id for x in chunks}, {chunks[0].id}, "stream: one id")
    c.equal([x.choices[0].finish_reason for x in chunks if x.choices][-1], "length", "stream: finish_reason")
    ended = [x for x in chunks if x.choices and x.choices[0].finish_reason]
    c.check("loop_stats" in (ended[0].model_extra or {}), "stream: loop_stats with the finish_reason")
    plain = list(client.completions.create(**GREEDY, stream=True))
    c.check(all(x.choices and not x.usage for x in plain), "stream without stream_options has no usage chunk")


def test_prompts(c, client):
    many = client.completions.create(**{**GREEDY, "prompt": [PROMPT, "c>d a>w b>c w>b d>a;c>"], "n": 2})
    c.equal([(x.index, x.text) for x in many.choices], [(0, "f"), (1, "f"), (2, "d"), (3, "d")], "list of prompts, n = 2")
    ids = client.completions.create(**GREEDY, extra_body={"return_token_ids": True}).choices[0].model_extra[
        "prompt_token_ids"]
    c.equal(client.completions.create(**{**GREEDY, "prompt": ids}).choices[0].text, "f", "token ids as the prompt")
    both = client.completions.create(**{**GREEDY, "prompt": [ids, ids]})
    c.equal([x.text for x in both.choices], ["f", "f"], "lists of token ids")
    echo = client.completions.create(**GREEDY, echo=True)
    c.equal(echo.choices[0].text, PROMPT + "f", "echo")


def test_logprobs(c, client):
    lp = client.completions.create(**GREEDY, logprobs=3).choices[0].logprobs
    c.equal((len(lp.tokens), len(lp.token_logprobs), len(lp.top_logprobs), len(lp.text_offset)), (2, 2, 2, 2), "logprobs")
    c.check(lp.tokens[0] == "f" and -0.1 < lp.token_logprobs[0] <= 0 and len(lp.top_logprobs[0]) == 3, f"logprobs: {lp}")
    lp = client.completions.create(**{**GREEDY, "max_tokens": 0}, echo=True, logprobs=0).choices[0].logprobs
    c.check(lp.token_logprobs[0] is None and len(lp.tokens) == 20 and all(x <= 0 for x in lp.token_logprobs[1:]),
            f"logprobs of the prompt: {lp}")


def test_errors(c, client, openai):
    def ask(**change):
        return lambda: client.completions.create(**{**GREEDY, **change})

    raises(c, openai.BadRequestError, "temperature -1", ask(temperature=-1), status_code=400, param="temperature",
           type="invalid_request_error")
    raises(c, openai.BadRequestError, "a long prompt", ask(max_tokens=1000), status_code=400,
           code="context_length_exceeded")
    raises(c, openai.BadRequestError, "n = 1000", ask(n=1000), status_code=400, param="n")
    raises(c, openai.NotFoundError, "another model", ask(model="gpt-4"), status_code=404, code="model_not_found")
    raises(c, openai.NotFoundError, "another endpoint", lambda: client.embeddings.create(model="demo", input="x"),
           status_code=404, code="not_found")
    raises(c, openai.AuthenticationError, "another key",
           lambda: client.with_options(api_key="sk-no").completions.create(**GREEDY), status_code=401,
           code="invalid_api_key")
    e = raises(c, openai.BadRequestError, "an error in a stream's request", ask(stream=True, temperature=-1),
               status_code=400)
    c.check(e is not None and "temperature" in str(e), f"the message names the field: {e}")


def test_headers(c, client):
    raw = client.completions.with_raw_response.create(**GREEDY, extra_headers={
        "X-Request-Id": "mine-1", "X-Carousel-Loop-Mode": "exact", "X-Carousel-Exit-Threshold": "0.5",
        "X-Carousel-Return-Exit-Loops": "true"})
    c.equal((raw.headers["x-request-id"], raw.request_id), ("mine-1", "mine-1"), "X-Request-Id comes back")
    c.equal(raw.headers["x-carousel-exit-loops"].replace(" ", "").split(",")[0], "2", "exit loops as a header")
    c.equal(raw.parse().choices[0].text, "f", "with_raw_response: text")
    c.equal(raw.retries_taken, 0, "with_raw_response: no retries")


# ---- a model that chats ------------------------------------------------------------------------------


def test_chat(c, client):
    whole = client.chat.completions.create(**CHAT)
    c.equal((whole.object, whole.choices[0].message.role, whole.choices[0].finish_reason, whole.usage.completion_tokens),
            ("chat.completion", "assistant", "length", 40), "chat")
    chunks = list(client.chat.completions.create(**CHAT, stream=True, stream_options={"include_usage": True}))
    c.equal("".join(x.choices[0].delta.content or "" for x in chunks if x.choices), whole.choices[0].message.content,
            "chat: text of the stream")
    first = chunks[0]
    c.equal((first.object, first.choices[0].delta.role, first.choices[0].delta.content),
            ("chat.completion.chunk", "assistant", ""), "chat: the first chunk")
    c.equal(chunks[-1].usage, whole.usage, "chat: usage of the stream")
    lp = client.chat.completions.create(**CHAT, logprobs=True, top_logprobs=2).choices[0].logprobs.content
    c.equal((len(lp), len(lp[0].top_logprobs)), (40, 2), "chat: logprobs")
    two = client.chat.completions.create(**CHAT, n=2)
    c.equal([x.index for x in two.choices], [0, 1], "chat: n = 2")
    c.check(two.choices[0].message.content != two.choices[1].message.content, "chat: two seeds, two answers")
    limit = client.chat.completions.create(**{k: v for k, v in CHAT.items() if k != "max_tokens"},
                                           max_completion_tokens=5)
    c.equal(limit.usage.completion_tokens, 5, "chat: max_completion_tokens")
    with client.chat.completions.stream(**CHAT) as stream:
        for _event in stream:
            pass
        final = stream.current_completion_snapshot
    c.equal(final.choices[0].message.content, whole.choices[0].message.content, "chat: the stream helper adds it up")


async def many_at_once(c, openai, server):
    async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key=KEY, max_retries=0) as client:
        whole = await client.chat.completions.create(**CHAT)
        expected = whole.choices[0].message.content

        async def streamed():
            text = ""
            async for chunk in await client.chat.completions.create(**CHAT, stream=True):
                text += chunk.choices[0].delta.content or "" if chunk.choices else ""
            return text

        async def plain():
            return (await client.chat.completions.create(**CHAT)).choices[0].message.content

        found = await asyncio.gather(*[f() for _ in range(8) for f in (streamed, plain)])
        c.equal(found, [expected] * 16, "16 at once, the same request: the same answers")
        models = [m.id async for m in client.models.list()]
        c.check("chat" in models, f"async models.list: {models}")
        try:
            await client.chat.completions.create(**{**CHAT, "messages": []})
            c.check(False, "async: no messages, and nothing was raised")
        except openai.BadRequestError as e:
            c.equal(e.param, "messages", "async: no messages")


def test_async(c, openai, server):
    asyncio.run(many_at_once(c, openai, server))


# ---- a slow model: retries, timeouts, streams that are left -------------------------------------------

LONG = {"model": "slow", "prompt": "the", "temperature": 0, "max_tokens": 8000, "extra_body": {"ignore_eos": True}}


def test_close(c, client, server):
    stream = client.completions.create(**LONG, stream=True)
    for _, _chunk in zip(range(3), stream):
        pass
    c.equal(server.metrics().sum("num_requests_running"), 1, "a stream that is read: running")
    stream.close()
    c.check(server.wait_until_idle().is_idle(), "a stream that is closed: nothing runs, no KV is held")


def test_timeout(c, client, openai, server):
    began = time.monotonic()
    raises(c, openai.APITimeoutError, "timeout of 0.5 s",
           lambda: client.with_options(timeout=0.5).completions.create(**LONG))
    c.check(time.monotonic() - began < 5, "the timeout took its time")
    c.check(server.wait_until_idle().is_idle(), "after the timeout nothing runs, no KV is held")


def test_retry(c, client, openai, server):
    """One runs, one waits: the next is told to come again, does so by itself, and is answered when they have gone."""
    running = client.completions.create(**LONG, stream=True)
    next(iter(running))
    with server.wire() as waiting:
        waiting.request("POST", "/v1/completions", {**{k: v for k, v in LONG.items() if k != "extra_body"},
                                                    "ignore_eos": True, "stream": True},
                        {"Authorization": f"Bearer {KEY}"})
        late = time.monotonic() + 10
        while server.metrics().sum("num_requests_waiting") != 1 and time.monotonic() < late:
            time.sleep(0.02)
        e = raises(c, openai.RateLimitError, "a full queue", lambda: client.completions.create(**LONG), status_code=429,
                   code="queue_full", type="rate_limit_error")
        after = float(e.response.headers["retry-after"]) if e is not None else 0
        c.check(after >= 1, f"Retry-After says {after}")
        running.close()
        waiting.close()
        patient = client.with_options(max_retries=5)
        # Full for as long as it takes to be refused once.
        blocked = [client.completions.create(**LONG, stream=True)]
        next(iter(blocked[0]))
        with server.wire() as again:
            again.request("POST", "/v1/completions", {"model": "slow", "prompt": "a", "max_tokens": 8000, "ignore_eos": True,
                                                         "stream": True},
                          {"Authorization": f"Bearer {KEY}"})
            while server.metrics().sum("num_requests_waiting") != 1 and time.monotonic() < late + 20:
                time.sleep(0.02)
            before = server.metrics().sum("refused_total", reason="queue_full")

            async def leave_after_refusal():
                while server.metrics().sum("refused_total", reason="queue_full") == before:
                    await asyncio.sleep(0.02)
                again.close()
                await asyncio.to_thread(blocked[0].close)

            async def ask():
                return await asyncio.to_thread(
                    patient.completions.with_raw_response.create, **{**LONG, "max_tokens": 2})

            async def both():
                return (await asyncio.gather(ask(), asyncio.wait_for(leave_after_refusal(), 20)))[0]

            began = time.monotonic()
            raw = asyncio.run(both())
    c.check(raw.retries_taken >= 1, f"retries taken: {raw.retries_taken}")
    c.check(time.monotonic() - began >= after, f"answered {time.monotonic() - began:.2f} s later, Retry-After was {after}")
    c.equal(raw.parse().usage.completion_tokens, 2, "the answer after the retry")


def main():
    if "--in-venv" not in sys.argv:
        enter_venv()
    import openai  # the virtual environment has it, the system's Python need not

    c = Checks("e2e_openai")
    c.note(f"openai {openai.__version__}")
    PLACE.mkdir(parents=True, exist_ok=True)
    keys = PLACE / "openai.keys"
    keys.write_text(f"# a comment\ntester {KEY}\nsk-other\n")
    keys.chmod(0o600)

    def client_of(server):
        return openai.OpenAI(base_url=server.url + "/v1", api_key=KEY, max_retries=0, timeout=60)

    server = Server(DEMO, "--api-key-file", keys, key=KEY)
    with client_of(server) as client:
        for test in (test_models, test_completion, test_completion_stream, test_prompts, test_logprobs, test_headers):
            c.attempt(test, client)
        c.attempt(test_errors, client, openai)
    server.stop()

    server = Server(make_chat_model(), "--api-key-file", keys, key=KEY)
    with client_of(server) as client:
        c.attempt(test_chat, client)
    c.attempt(test_async, openai, server)
    server.stop()

    server = Server(make_slow_model(), "--api-key-file", keys, "--max-sequences", 1, "--max-queue", 1,
                    key=KEY)
    with client_of(server) as client:
        c.attempt(test_close, client, server)
        c.attempt(test_timeout, client, openai, server)
        c.attempt(test_retry, client, openai, server)
    server.stop()
    c.close()


if __name__ == "__main__":
    main()
