#!/usr/bin/python3
"""The same request gives the same answer through HTTP, as a stream, through `carousel batch` and `carousel generate`.

HTTP and batch must agree on whole choices and usage, a stream's pieces must add up to them, and generate must agree on
tokens, text and the reason of the end. Log-probabilities, of prompts as well, are compared with the float64 reference.
"""
import json

import numpy as np

from e2e_lib import DEMO, Checks, Failure, reference, run_json, run_ok
from http_lib import PLACE, Server, event_finish, event_ids, event_texts, make_chat_model

PROMPTS = [json.loads(line)["prompt"] for line in (DEMO / "prompts.jsonl").read_text().splitlines()]
HOP, CHAIN = PROMPTS[3], PROMPTS[5]
GREEDY = {"temperature": 0, "max_tokens": 12}
EXACT = {"loops": {"mode": "exact", "exit_threshold": 0.5}}
# Relative to the largest logit; what e2e_golden allows a logit, twice because a log-probability is a difference.
TOLERANCE = 4e-5

# (what, fields of a completion, options of generate with the same meaning or None)
DEMO_CASES = [
    ("greedy", {"prompt": HOP, **GREEDY}, ["-n", 12]),
    ("greedy, no end", {"prompt": HOP, **GREEDY, "ignore_eos": True}, ["-n", 12, "--ignore-eos"]),
    ("exact exits", {"prompt": CHAIN, **GREEDY, **EXACT, "ignore_eos": True},
     ["-n", 12, "--ignore-eos", "-q", 0.5]),
    ("full depth", {"prompt": CHAIN, **GREEDY, "loops": {"mode": "full"}}, ["-n", 12, "--exit", "full"]),
    ("min loops", {"prompt": HOP, **GREEDY, "ignore_eos": True,
                   "loops": {"mode": "exact", "exit_threshold": 0.1, "min": 3}},
     ["-n", 12, "--ignore-eos", "-q", 0.1, "--min-loops", 3]),
    ("one loop", {"prompt": HOP, **GREEDY, "ignore_eos": True, "loops": {"max": 1}}, None),
    ("min tokens", {"prompt": HOP, **GREEDY, "min_tokens": 7}, ["-n", 12, "--min-tokens", 7]),
    ("sampled", {"prompt": HOP, "max_tokens": 40, "temperature": 1.3, "seed": 7, "ignore_eos": True},
     ["-n", 40, "--temperature", 1.3, "--seed", 7, "--ignore-eos"]),
    ("sampled, cut", {"prompt": HOP, "max_tokens": 40, "temperature": 2, "seed": 8, "ignore_eos": True, "top_k": 9,
                      "top_p": 0.9, "min_p": 0.02, **EXACT},
     ["-n", 40, "--temperature", 2, "--seed", 8, "--ignore-eos", "--top-k", 9, "--top-p", 0.9, "--min-p", 0.02,
      "-q", 0.5]),
    ("penalties", {"prompt": HOP, "max_tokens": 40, "temperature": 1.1, "seed": 9, "ignore_eos": True,
                   "presence_penalty": 1.5, "frequency_penalty": -0.5, "repetition_penalty": 1.2},
     ["-n", 40, "--temperature", 1.1, "--seed", 9, "--ignore-eos", "--presence-penalty", 1.5, "--frequency-penalty",
      -0.5, "--repetition-penalty", 1.2]),
    ("bias", {"prompt": HOP, **GREEDY, "ignore_eos": True, "logit_bias": {"20": 100, "5": -100}}, None),
    ("stop ids", {"prompt": HOP, "max_tokens": 60, "temperature": 3, "seed": 4, "stop_token_ids": [20, 30]}, None),
    ("three choices", {"prompt": HOP, "max_tokens": 20, "temperature": 2, "seed": 5, "n": 3, "ignore_eos": True}, None),
    ("prompts", {"prompt": PROMPTS[:4], **GREEDY, "n": 2}, None),
    ("ids", {"prompt": [0, 9, 41, 12, 3], **GREEDY, "ignore_eos": True}, None),
    ("lists of ids", {"prompt": [[0, 9, 41], [0, 12, 3, 44, 2]], **GREEDY, "echo": True, "ignore_eos": True}, None),
    ("echo", {"prompt": HOP, **GREEDY, "echo": True}, None),
    ("log-probabilities", {"prompt": HOP, **GREEDY, "logprobs": 4, "ignore_eos": True}, None),
    ("log-probabilities, none beside", {"prompt": HOP, **GREEDY, "logprobs": 0}, None),
    ("log-probabilities of the prompt", {"prompt": HOP, **GREEDY, "logprobs": 2, "echo": True, **EXACT}, None),
    ("the prompt alone", {"prompt": HOP, "max_tokens": 0, "temperature": 0, "logprobs": 1, "echo": True}, None),
]
CHAT_CASES = [
    ("text", {"prompt": "then hellö €", "max_tokens": 60, "temperature": 1, "seed": 1, "ignore_eos": True},
     ["-n", 60, "--temperature", 1, "--seed", 1, "--ignore-eos"]),
    ("greedy text", {"prompt": "the land", "max_tokens": 60, "temperature": 0, "ignore_eos": True, **EXACT},
     ["-n", 60, "--ignore-eos", "-q", 0.5]),
    ("special tokens stay", {"prompt": "x", "max_tokens": 90, "temperature": 2, "seed": 3, "ignore_eos": True,
                             "skip_special_tokens": False}, None),
]


def batch_answers(model, cases, name):
    """Bodies of the answers, by the name of the case."""
    PLACE.mkdir(parents=True, exist_ok=True)
    source, sink = PLACE / f"same-{name}.jsonl", PLACE / f"same-{name}.out.jsonl"
    sink.unlink(missing_ok=True)
    with source.open("w") as f:
        for what, body in cases:
            url = "/v1/chat/completions" if "messages" in body else "/v1/completions"
            f.write(json.dumps({"custom_id": what, "method": "POST", "url": url, "body": body}) + "\n")
    run_ok("batch", model, "-i", source, "-o", sink)
    answers = {}
    for line in sink.read_text().splitlines():
        record = json.loads(line)
        if record["error"]:
            raise Failure(f"batch, {record['custom_id']}: {record['error']}")
        answers[record["custom_id"]] = record["response"]["body"]
    return answers


def bare(choice):
    """Without what only one of the two tells."""
    return {k: v for k, v in choice.items() if k != "loop_stats"}


def text_of(choice):
    return choice["text"] if "text" in choice else choice["message"]["content"]


def merged(events, i, choice):
    """What the stream says of choice i, in the shape of `choice`."""
    found = {"index": i, "text": event_texts(events, i), "finish_reason": event_finish(events, i),
             "token_ids": event_ids(events, i)}
    pieces = [c["logprobs"] for e in events for c in e["choices"] if c["index"] == i and c.get("logprobs")]
    shape = choice.get("logprobs")
    if shape:
        found["logprobs"] = {}
        for key in shape:
            parts = [p[key] for p in pieces if p.get(key) is not None]
            found["logprobs"][key] = sum(parts, []) if parts else None
    else:
        found["logprobs"] = None
    return found


def compare_stream(c, where, events, whole):
    for i, choice in enumerate(whole["choices"]):
        expected = {"index": i, "text": text_of(choice), "finish_reason": choice["finish_reason"],
                    "token_ids": choice["token_ids"], "logprobs": choice.get("logprobs")}
        c.equal(merged(events, i, choice), expected, f"{where}, choice {i}: stream")
        last = [x for e in events for x in [e] if any(y["index"] == i and y.get("finish_reason")
                                                      for y in e["choices"])][0]
        n_loops = [l["tokens"] for l in last["loop_stats"]["per_loop"]]
        c.check(n_loops[0] == len(choice["token_ids"]) and n_loops == sorted(n_loops, reverse=True),
                f"{where}, choice {i}: loop_stats of the stream say {n_loops} for {len(choice['token_ids'])} tokens")
    c.equal(events[-1]["choices"], [], f"{where}: choices of the chunk with usage")
    c.equal(events[-1]["usage"], whole["usage"], f"{where}: usage of the stream")


def compare_case(c, server, model, batch, what, body, options):
    path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
    body = {**body, "return_token_ids": True}
    whole = server.post_ok(path, {**body, "loops": {**body.get("loops", {}), "return_exit_loops": True}})
    events = server.stream(path, {**body, "stream_options": {"include_usage": True}})
    compare_stream(c, what, events, whole)
    c.equal([bare(x) for x in whole["choices"]], [bare(x) for x in batch[what]["choices"]], f"{what}: batch's choices")
    c.equal(whole["usage"], batch[what]["usage"], f"{what}: batch's usage")
    ours, theirs = whole["loop_stats"], batch[what]["loop_stats"]
    c.equal(ours["exit_loops"], theirs["exit_loops"], f"{what}: batch's exit loops")
    c.check(abs(ours["mean_exit_loop"] - theirs["mean_exit_loop"]) < 1e-6, f"{what}: batch's mean exit loop")
    if options is None:
        return
    found = run_json("generate", model, body["prompt"], *options)
    choice = whole["choices"][0]
    c.equal(choice["token_ids"], found["tokens"], f"{what}: generate's tokens")
    c.equal(text_of(choice), found["text"], f"{what}: generate's text")
    c.equal(choice["finish_reason"], found["finish_reason"], f"{what}: generate's finish_reason")
    c.equal(whole["loop_stats"]["exit_loops"], found["exit_loops"], f"{what}: generate's exit loops")
    c.equal(choice["prompt_token_ids"], found["prompt_ids"], f"{what}: generate's prompt ids")


def with_ids(cases):
    return [(what, {**body, "return_token_ids": True}) for what, body, _ in cases]


def test_same(c, server, model, cases, name):
    batch = batch_answers(model, with_ids(cases), name)
    for what, body, options in cases:
        c.attempt(lambda k, *a: compare_case(k, server, model, batch, *a), what, body, options)


def stop_cases(server):
    """Stop strings taken out of what comes without them, so that some lie across tokens and some inside one."""
    plain = server.post_ok("/v1/completions", {"prompt": "the end", "max_tokens": 200, "temperature": 1, "seed": 21,
                                               "ignore_eos": True, "return_token_ids": True})
    text, cases = plain["choices"][0]["text"], []
    for at, n in ((3, 2), (20, 5), (40, 1), (70, 12)):
        stop = text[at:at + n]
        # A replacement character stands for bytes that are no text: no stop string can name them.
        if "�" in stop or not stop:
            stop = next(text[i] for i in range(at, len(text)) if text[i] != "�")
        cases.append((stop, {"prompt": "the end", "max_tokens": 200, "temperature": 1, "seed": 21, "ignore_eos": True,
                             "stop": ["never said", stop]}))
    return text, cases


def test_stops(c, server, model):
    text, cases = stop_cases(server)
    named = [(f"stop at {stop!r}{', kept' if keep else ''}", {**body, "include_stop_str_in_output": keep},
              None if keep else ["-n", 200, "--temperature", 1, "--seed", 21, "--ignore-eos", "--stop", stop])
             for stop, body in cases for keep in (False, True)]
    batch = batch_answers(model, with_ids(named), "stops")
    for what, body, options in named:
        compare_case(c, server, model, batch, what, body, options)
        stop, keep = body["stop"][1], body["include_stop_str_in_output"]
        expected = text[:text.index(stop) + (len(stop) if keep else 0)]
        choice = server.post_ok("/v1/completions", body)["choices"][0]
        c.equal((choice["text"], choice["finish_reason"]), (expected, "stop"), what)


def test_chat(c, server, model):
    messages = [{"role": "system", "content": "Be the one."},
                {"role": "user", "content": [{"type": "text", "text": "hellö "}, {"type": "text", "text": "the<|im_end|>"}]}]
    base = {"messages": messages, "max_tokens": 50, "temperature": 1, "seed": 6, "ignore_eos": True}
    cases = [("chat", base, None), ("chat, two", {**base, "n": 2}, None),
             ("chat, greedy", {**base, "temperature": 0, **EXACT}, None),
             ("chat, log-probabilities", {**base, "logprobs": True, "top_logprobs": 3}, None),
             ("chat, max_completion_tokens", {**{k: v for k, v in base.items() if k != "max_tokens"},
                                              "max_completion_tokens": 9}, None)]
    test_same(c, server, model, cases, "chat")
    one = {"messages": [{"role": "user", "content": "the hand"}], "max_tokens": 30, "temperature": 0,
           "return_token_ids": True, "ignore_eos": True}
    found = server.post_ok("/v1/chat/completions", one)["choices"][0]
    cli = run_json("generate", model, "--chat", "the hand", "-n", 30, "--ignore-eos")
    c.equal(found["token_ids"], cli["tokens"], "chat: generate's tokens")
    c.equal(found["message"], {"role": "assistant", "content": cli["text"]}, "chat: generate's text")


# ---- against the reference ------------------------------------------------------------------------


class Expected:
    """Log-probabilities of what follows each position, at the loop where that position leaves, in double."""

    def __init__(self, ref, model, ids, q):
        hidden, lambdas = model.forward(ids)
        cdf = ref.exit_cdf(lambdas)
        exits = [ref.exit_loop(cdf[:, i], q, False, 1) for i in range(len(ids))]
        # Near a tie of the cdf either loop is right.
        self.is_sure = [margin > 2e-5 for _, margin in exits]
        logits = np.stack([model.logits(hidden[loop - 1, i]) for i, (loop, _) in enumerate(exits)])
        top = logits.max(axis=-1, keepdims=True)
        self.rows = logits - top - np.log(np.exp(logits - top).sum(axis=-1, keepdims=True))
        self.tolerance = TOLERANCE * np.abs(logits).max(axis=-1)


def near(c, expected, row, token, found, where):
    if not expected.is_sure[row]:
        return
    value = float(expected.rows[row][token])
    c.check(found is not None and abs(found - value) <= expected.tolerance[row],
            f"{where}: log-probability {found}, in double {value}")


def test_reference(c, server, q, echo, max_tokens):
    model = c.reference.Model(DEMO)
    for prompt in PROMPTS[0:40:8]:
        whole = server.post_ok("/v1/completions", {
            "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "logprobs": 3, "echo": echo,
            "ignore_eos": True, "return_token_ids": True, "loops": {"mode": "exact", "exit_threshold": q}})
        choice = whole["choices"][0]
        prompt_ids, ids, lp = choice["prompt_token_ids"], choice["token_ids"], choice["logprobs"]
        where = f"q={q} echo={echo} max_tokens={max_tokens} {prompt[:20]!r}"
        c.equal(len(ids), max_tokens, f"{where}: tokens")
        expected = Expected(c.reference, model, prompt_ids + ids, q)
        shown = (prompt_ids if echo else []) + ids
        c.equal(len(lp["tokens"]), len(shown), f"{where}: tokens with log-probabilities")
        for i, token in enumerate(shown):
            row = i - 1 if echo else len(prompt_ids) + i - 1
            if row < 0:
                c.equal((lp["token_logprobs"][0], lp["top_logprobs"][0]), (None, None), f"{where}: the first token's")
                continue
            near(c, expected, row, token, lp["token_logprobs"][i], f"{where}, token {i}")
            best = np.argsort(-expected.rows[row], kind="stable")[:3]
            values = sorted(lp["top_logprobs"][i].values(), reverse=True)
            for k, alternative in enumerate(best):
                near(c, expected, row, alternative, values[k], f"{where}, token {i}, alternative {k}")
        text = choice["text"]
        c.equal(lp["text_offset"], offsets(c, text, lp["tokens"]), f"{where}: text_offset")


def offsets(c, text, tokens):
    """Every demo token is one character, and only <s> and what skip_special_tokens leaves out is none."""
    found, at = [], 0
    for token in tokens:
        found.append(at)
        at += 0 if token == "<s>" else len(token)
    c.check(at == len(text), f"tokens have {at} characters, the text {len(text)}")
    return found


def test_reference_chat(c, server, model_dir):
    model = c.reference.Model(model_dir)
    whole = server.post_ok("/v1/chat/completions", {
        "messages": [{"role": "user", "content": "in the land"}], "max_tokens": 12, "temperature": 0, "logprobs": True,
        "top_logprobs": 4, "ignore_eos": True, "return_token_ids": True, "loops": {"exit_threshold": 0.6}})
    choice = whole["choices"][0]
    prompt_ids, ids = choice["prompt_token_ids"], choice["token_ids"]
    expected = Expected(c.reference, model, prompt_ids + ids, 0.6)
    content = choice["logprobs"]["content"]
    c.equal(len(content), 12, "chat: entries with log-probabilities")
    for i, entry in enumerate(content):
        row = len(prompt_ids) + i - 1
        near(c, expected, row, ids[i], entry["logprob"], f"chat, token {i}")
        c.equal(len(entry["top_logprobs"]), 4, f"chat, token {i}: alternatives")
        best = np.argsort(-expected.rows[row], kind="stable")[:4]
        for k, alternative in enumerate(best):
            near(c, expected, row, alternative, entry["top_logprobs"][k]["logprob"], f"chat, token {i}, alternative {k}")
    told = b"".join(bytes(e["bytes"]) for e in content)
    c.equal(told.decode(errors="replace"), choice["message"]["content"], "chat: bytes of the tokens")


def test_exits(c, server):
    """Exit loops and tokens are the reference's."""
    model = c.reference.Model(DEMO)
    for q in (0.1, 0.5, 0.9):
        for prompt in PROMPTS[1:41:10]:
            whole = server.post_ok("/v1/completions", {
                "prompt": prompt, "max_tokens": 5, "temperature": 0, "ignore_eos": True, "return_token_ids": True,
                "loops": {"mode": "exact", "exit_threshold": q, "return_exit_loops": True}})
            choice = whole["choices"][0]
            expected = c.reference.generate(model, choice["prompt_token_ids"], 5, q, False, 1, [], True)
            if expected["margin"] < 2e-5 or expected["top2_gap"] < 2e-5:
                continue
            c.equal(choice["token_ids"], expected["tokens"], f"q={q} {prompt[:20]!r}: tokens")
            stats = whole["loop_stats"]
            c.equal(stats["exit_loops"], expected["exit_loops"], f"q={q} {prompt[:20]!r}: exit loops")
            per_loop = [sum(e >= t for e in expected["exit_loops"]) for t in range(1, model.n_loops + 1)]
            c.equal([l["tokens"] for l in stats["per_loop"]], per_loop, f"q={q}: tokens a loop")
            c.check(abs(stats["mean_exit_loop"] - np.mean(expected["exit_loops"])) < 1e-6, f"q={q}: mean exit loop")
            c.check(all(l["compute_ms"] > 0 for l in stats["per_loop"] if l["tokens"]), f"q={q}: compute_ms is 0")


def test_any_cluster(c):
    """Workers over MPI give what one in this process gives."""
    body = {"prompt": PROMPTS[:3], "max_tokens": 30, "temperature": 1.5, "seed": 12, "n": 2, "ignore_eos": True,
            "return_token_ids": True, **EXACT}
    found = []
    for options in ([], ["--workers", 2]):
        server = Server(DEMO, *options)
        found.append([bare(x) for x in server.post_ok("/v1/completions", body)["choices"]])
        c.equal(server.stop(), 0, f"serve {options}: exit code after SIGTERM")
    c.equal(found[1], found[0], "choices of two workers over MPI")


def main():
    c = Checks("e2e_http_same")
    c.reference = reference()
    chat_model = make_chat_model()
    server = Server(DEMO)
    c.attempt(test_same, server, DEMO, DEMO_CASES, "demo")
    for q in (1.0, 0.5):
        for echo, max_tokens in ((True, 0), (True, 6), (False, 6)):
            c.attempt(test_reference, server, q, echo, max_tokens)
    c.attempt(test_exits, server)
    c.equal(server.stop(), 0, "exit code after SIGTERM")
    server = Server(chat_model)
    c.attempt(test_same, server, chat_model, CHAT_CASES, "chat-model")
    c.attempt(test_stops, server, chat_model)
    c.attempt(test_chat, server, chat_model)
    c.attempt(test_reference_chat, server, chat_model)
    c.equal(server.stop(), 0, "exit code after SIGTERM")
    c.attempt(test_any_cluster)
    c.close()


if __name__ == "__main__":
    main()
