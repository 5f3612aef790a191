#!/usr/bin/env python3
"""carousel batch from end to end: every line answered once, over both transports, also after a kill.

Runs the demo model. The answers must be those of `carousel generate`.
"""
import fcntl
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from e2e_lib import DEMO, PROGRAM, WORK, Checks, Failure, clean_environment, run, run_json, run_ok

PLACE = WORK / "batch"
PROMPTS = [json.loads(line) for line in (DEMO / "prompts.jsonl").read_text().splitlines()]


def write_lines(name, lines):
    path = PLACE / name
    path.write_text("".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines))
    return path


def read_answers(path):
    """custom_id -> list of its output lines; a piece after the last newline is left out."""
    answers = {}
    text = path.read_text() if path.exists() else ""
    for line in text[: text.rfind("\n") + 1].splitlines():
        record = json.loads(line)
        answers.setdefault(record["custom_id"], []).append(record)
    return answers


def only(answers, custom_id):
    found = answers.get(custom_id, [])
    if len(found) != 1:
        raise Failure(f"{custom_id}: {len(found)} lines in the output, expected one")
    return found[0]


def code_of(answers, custom_id):
    error = only(answers, custom_id)["error"]
    return error["code"] if error else None


def output(name):
    path = PLACE / name
    path.unlink(missing_ok=True)
    return path


def content(answers):
    """What must not depend on the transport or on how often a batch was interrupted."""
    found = {}
    for custom_id, records in answers.items():
        body = records[0]["response"]["body"]
        found[custom_id] = (
            [c["text"] for c in body["choices"]], body["usage"], body["loop_stats"]["exit_loops"])
    return found


def test_demo_prompts(c):
    source = write_lines("demo.jsonl", PROMPTS[:80])
    results = {}
    for name, extra in (("inproc", []), ("mpi", ["--workers", "2"])):
        out = output(f"demo_{name}.jsonl")
        summary = run_json("batch", "-i", source, "-o", out, "-n", "8", "-q", "0.5", "--stats", *extra)
        answers = read_answers(out)
        c.equal(sorted(answers), sorted(f"line-{i}" for i in range(1, 81)), f"{name}: ids")
        c.check(all(len(a) == 1 for a in answers.values()), f"{name}: an id came twice")
        c.equal((summary["requests"], summary["errors"], summary["skipped"]), (80, 0, 0), name)
        c.equal(sum(summary["exit_histogram"]), summary["completion_tokens"], f"{name}: histogram")
        c.equal(len(summary["workers"]), 2 if extra else 1, f"{name}: workers")
        c.check(all(w["rows"] > 0 for w in summary["workers"]), f"{name}: a worker did nothing")
        results[name] = content(answers)
        before = out.read_bytes()
        again = run_json("batch", "-i", source, "-o", out, "-n", "8", "-q", "0.5", *extra)
        c.equal((again["skipped"], again["completion_tokens"]), (80, 0), f"{name}: second run")
        c.check(out.read_bytes() == before, f"{name}: the second run changed the output")
    c.equal(results["inproc"], results["mpi"], "answers over inproc and mpi")


def test_equals_generate(c):
    out = output("same.jsonl")
    body = {"max_tokens": 6, "ignore_eos": True, "temperature": 20.0, "top_k": 8, "seed": 11,
            "loops": {"mode": "exact", "exit_threshold": 0.3, "min": 2}, "return_token_ids": True}
    options = ["--max-tokens", "6", "--ignore-eos", "--temperature", "20.0", "--top-k", "8",
               "--exit", "exact", "--exit-threshold", "0.3", "--min-loops", "2"]
    prompts = [p["prompt"] for p in PROMPTS[100:103]]
    lines = [{"custom_id": f"p{i}", "method": "POST", "url": "/v1/completions",
              "body": {"prompt": p, **body}} for i, p in enumerate(prompts)]
    lines.append({"custom_id": "n2", "prompt": prompts[0], "n": 2, **body})
    lines.append({"custom_id": "many", "prompt": prompts[:2], "n": 2, **body})
    run_ok("batch", "-i", write_lines("same_in.jsonl", lines), "-o", out)
    answers = read_answers(out)

    def alone(prompt, seed):
        g = run_json("generate", prompt, *options, "--seed", seed)
        return g["text"], g["tokens"], g["exit_loops"], g["finish_reason"], g["prompt_ids"]

    def choices(custom_id):
        body = only(answers, custom_id)["response"]["body"]
        single = len(body["choices"]) == 1
        return [(x["text"], x["token_ids"],
                 (body if single else x)["loop_stats"]["exit_loops"],
                 x["finish_reason"], x["prompt_token_ids"]) for x in body["choices"]]

    for i, prompt in enumerate(prompts):
        c.equal(choices(f"p{i}"), [alone(prompt, 11)], f"p{i} and generate")
    both = [alone(prompts[0], 11), alone(prompts[0], 12)]
    c.check(both[0][1] != both[1][1], "two seeds drew the same tokens: the test sees nothing")
    c.equal(choices("n2"), both, "n = 2 and generate with seeds 11, 12")
    c.equal(choices("many"), both + [alone(prompts[1], 11), alone(prompts[1], 12)], "two prompts, n = 2")
    usage = only(answers, "many")["response"]["body"]["usage"]
    c.equal(usage["completion_tokens"], 24, "tokens of four choices")


def test_fields(c):
    prompt = PROMPTS[0]["prompt"]
    lines = [
        {"custom_id": "echo", "prompt": prompt, "echo": True, "max_tokens": 2},
        {"custom_id": "bias", "prompt": prompt, "logit_bias": {"5": 100}, "max_tokens": 3},
        {"custom_id": "stop", "prompt": prompt, "logit_bias": {"5": 100}, "max_tokens": 9,
         "stop": "cc"},
        {"custom_id": "kept", "prompt": prompt, "logit_bias": {"5": 100}, "max_tokens": 9,
         "stop": ["x", "cc"], "include_stop_str_in_output": True},
        {"custom_id": "ids", "prompt": prompt, "logit_bias": {"5": 100}, "max_tokens": 9,
         "stop_token_ids": [5]},
        {"custom_id": "top", "prompt": prompt, "max_tokens": 2, "logprobs": 3, "ignore_eos": True},
        {"custom_id": "one", "prompt": prompt, "max_tokens": 1, "logprobs": 0},
        {"custom_id": "full", "prompt": prompt, "max_tokens": 2, "loops": {"mode": "full"}},
        {"custom_id": "capped", "prompt": prompt, "max_tokens": 2, "loops": {"mode": "full", "max": 2}},
    ]
    out = output("fields.jsonl")
    run_ok("batch", "-i", write_lines("fields_in.jsonl", lines), "-o", out, "-q", "0.5")
    answers = read_answers(out)
    first = {i: only(answers, i)["response"]["body"]["choices"][0] for i in answers}
    loops = {i: only(answers, i)["response"]["body"]["loop_stats"]["exit_loops"] for i in answers}
    c.check(first["echo"]["text"].startswith(prompt) and first["echo"]["text"] != prompt, "echo")
    c.equal(first["bias"]["text"], "ccc", "logit_bias 100")
    c.equal((first["bias"]["finish_reason"], first["stop"]["finish_reason"]), ("length", "stop"), "reasons")
    c.equal((first["stop"]["text"], first["kept"]["text"]), ("", "cc"), "stop string left out, kept")
    c.equal(only(answers, "ids")["response"]["body"]["usage"]["completion_tokens"], 1, "stop id")
    logprobs = first["top"]["logprobs"]
    c.equal([len(x) for x in logprobs["top_logprobs"]], [3, 3], "three alternatives a token")
    c.equal(logprobs["text_offset"], [0, 1], "offsets")
    c.check(all(t[w] == max(t.values()) == v for t, w, v in zip(
        logprobs["top_logprobs"], logprobs["tokens"], logprobs["token_logprobs"])), "greedy takes the best")
    c.check(first["one"]["logprobs"]["token_logprobs"][0] < 0, "logprobs 0 still has the token's own")
    c.equal(first["one"]["logprobs"]["top_logprobs"], None, "logprobs 0 has no alternatives")
    stats = only(answers, "top")["response"]["body"]["loop_stats"]
    ran = [sum(e >= t for e in stats["exit_loops"]) for t in range(1, len(stats["per_loop"]) + 1)]
    c.equal([x["tokens"] for x in stats["per_loop"]], ran, "per_loop counts the tokens that ran each loop")
    c.check(all(x["compute_ms"] > 0 for x in stats["per_loop"] if x["tokens"]), "loops that ran took time")
    c.equal((set(loops["full"]), set(loops["capped"])), ({4}, {2}), "loops full, and capped at 2")


def test_bad_lines(c):
    lines = [
        "{bad json",
        {"custom_id": "ok", "prompt": "a=2;a?", "max_tokens": 2},
        "",
        {"custom_id": "hot", "prompt": "a=2;a?", "temperature": "hot"},
        {"custom_id": "ok", "prompt": "a=3;a?"},
        {"custom_id": "far", "prompt": "a=2;a?", "max_tokens": 3000},
        {"custom_id": "id", "prompt": [1, 99]},
        {"custom_id": "chat", "method": "POST", "url": "/v1/chat/completions",
         "body": {"messages": [{"role": "user", "content": "hi"}]}},
        {"custom_id": "deep", "prompt": "a=2;a?", "loops": {"max": 5}},
        {"prompt": "a=2;a?", "max_tokens": 2},
    ]
    source, out = write_lines("bad_in.jsonl", lines), output("bad.jsonl")
    summary = run_json("batch", "-i", source, "-o", out)
    c.equal((summary["requests"], summary["errors"], summary["answered"]), (9, 7, 2), "summary")
    spoken = run_ok("batch", "-i", source, "-o", output("bad_spoken.jsonl")).out
    c.check(re.match(r"lines +9: 2 answered, 7 failed, 0 done before, in ", spoken), f"summary: {spoken!r}")
    answers = read_answers(out)
    c.equal(sorted(r["error"]["code"] for r in answers["ok"] if r["error"]), ["duplicate_custom_id"], "duplicate")
    c.equal(len(answers["ok"]), 2, "answer and duplicate")
    for custom_id, code in (("line-1", "invalid_json"), ("hot", "invalid_request"),
                            ("far", "context_length_exceeded"), ("id", "invalid_request"),
                            ("chat", "invalid_request"), ("deep", "invalid_request"), ("line-10", None)):
        c.equal(code_of(answers, custom_id), code, custom_id)
    c.equal(only(answers, "hot")["error"]["message"],
            'temperature: expected a number from 0 to 100, found "hot"', "message")
    c.check("chat" in only(answers, "chat")["error"]["message"], "the chat error says why")
    before = out.read_bytes()
    run_ok("batch", "-i", source, "-o", out)
    c.check(out.read_bytes() == before, "bad lines were answered again")


def test_changed_input(c):
    """An answer is taken over only for the line and the options it was made for."""
    lines = [{"prompt": p["prompt"], "max_tokens": 2} for p in PROMPTS[:4]]
    named = [{"custom_id": f"id-{i}", **line} for i, line in enumerate(lines)]
    source, out = write_lines("changed.jsonl", lines), output("changed.jsonl.out")
    run_ok("batch", "-i", source, "-o", out)
    before = out.read_bytes()
    c.check(all(re.fullmatch("[0-9a-f]{16}", a[0]["input_hash"]) for a in read_answers(out).values()), "hashes")

    def refuses(what, number, custom_id, *options):
        result = run("batch", "-i", source, "-o", out, *options)
        c.equal(result.code, 1, f"{what}: {result}")
        errors = [line for line in result.err.splitlines() if line.startswith("carousel")]
        c.check(len(errors) == 1 and f"line {number}: " in errors[0] and f'"{custom_id}"' in errors[0]
                and "choose another output file" in errors[0], f"{what}: {result.err}")
        c.check("the same command" not in result.err, f"{what}: no advice that does not help: {result.err}")
        c.check(out.read_bytes() == before, f"{what}: the output was changed")

    for options in (["-q", "0.3"], ["--loops", "2"], ["--temperature", "0.5"], ["--seed", "1"], ["--exit", "full"],
                    ["--stop", "x"], ["--kv-dtype", "bf16"], ["--min-loops", "2"]):
        refuses(f"other options {options}", 1, "line-1", *options)
    same = run_json("batch", "-i", source, "-o", out, "--workers", "2", "--prefill", "lazy", "--temperature", "0",
                    "--max-sequences", "3", "--block-size", "8")
    c.equal((same["skipped"], same["answered"]), (4, 0), "options that change no answer")
    write_lines("changed.jsonl", lines[:1] + [{"prompt": PROMPTS[9]["prompt"]}] + lines[1:])
    refuses("a line put in", 2, "line-2")
    write_lines("changed.jsonl", lines + [{"prompt": PROMPTS[9]["prompt"], "max_tokens": 2}])
    c.equal(run_json("batch", "-i", source, "-o", out)["answered"], 1, "a line added at the end")

    # With ids of their own lines may move.
    out = output("changed_named.jsonl")
    write_lines("changed.jsonl", named)
    run_ok("batch", "-i", source, "-o", out)
    before = out.read_bytes()
    write_lines("changed.jsonl", named[::-1])
    c.equal(run_json("batch", "-i", source, "-o", out)["skipped"], 4, "the same lines in another order")
    write_lines("changed.jsonl", named[:2] + [{**named[2], "max_tokens": 3}])
    refuses("an edited line", 3, "id-2")

    # Output lines of before there were hashes.
    records = [json.loads(line) for line in before.decode().splitlines()]
    out.write_text("".join(json.dumps({k: v for k, v in r.items() if k != "input_hash"}) + "\n" for r in records))
    c.equal(run_json("batch", "-i", source, "-o", out)["skipped"], 3, "answers without a hash")


def make_chat_model():
    """The demo model with its two least used tokens made into ChatML's."""
    place = PLACE / "chat_model"
    shutil.copytree(DEMO, place)
    tokenizer = json.loads((place / "tokenizer.json").read_text())
    for old, new in ((",", "<|im_start|>"), (".", "<|im_end|>")):
        number = tokenizer["model"]["vocab"].pop(old)
        tokenizer["model"]["vocab"][new] = number
        tokenizer["added_tokens"].append({**tokenizer["added_tokens"][0], "id": number, "content": new})
    (place / "tokenizer.json").write_text(json.dumps(tokenizer))
    return place


def test_chat(c):
    model, out = make_chat_model(), output("chat.jsonl")
    text = "a=2;a?<|im_end|>"  # the user cannot end the turn
    options = {"max_tokens": 5, "ignore_eos": True, "return_token_ids": True}
    parts = [{"type": "text", "text": text[:4]}, {"type": "text", "text": text[4:]}]

    def line(custom_id, messages, **more):
        return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions",
                "body": {"messages": messages, **options, **more}}

    lines = [
        line("plain", [{"role": "user", "content": text}]),
        line("parts", [{"role": "user", "content": parts}]),
        line("system", [{"role": "system", "content": "be brief"}, {"role": "user", "content": text}]),
        line("think", [{"role": "user", "content": text}], chat_template_kwargs={"enable_thinking": True}),
        line("top", [{"role": "user", "content": text}], logprobs=True, top_logprobs=2, max_completion_tokens=3),
    ]
    run_ok("batch", model, "-i", write_lines("chat_in.jsonl", lines), "-o", out)
    answers = read_answers(out)
    bodies = {i: only(answers, i)["response"]["body"] for i in answers}
    first = {i: b["choices"][0] for i, b in bodies.items()}
    alone = run_json("generate", model, text, "--chat", "--max-tokens", "5", "--ignore-eos")
    thinking = run_json("generate", model, text, "--chat", "--thinking", "--max-tokens", "5", "--ignore-eos")
    c.equal(bodies["plain"]["object"], "chat.completion", "object")
    c.equal(first["plain"]["message"], {"role": "assistant", "content": alone["text"]}, "message")
    for custom_id, other in (("plain", alone), ("parts", alone), ("think", thinking)):
        c.equal(first[custom_id]["prompt_token_ids"], other["prompt_ids"], f"{custom_id}: prompt")
        c.equal(first[custom_id]["token_ids"], other["tokens"], f"{custom_id}: tokens")
    c.check(alone["prompt_ids"] != thinking["prompt_ids"], "thinking opens the answer otherwise")
    c.check(first["system"]["prompt_token_ids"][-len(alone["prompt_ids"]):] == alone["prompt_ids"]
            and len(first["system"]["prompt_token_ids"]) > len(alone["prompt_ids"]), "a system message comes first")
    end = json.loads((model / "tokenizer.json").read_text())["model"]["vocab"]["<|im_end|>"]
    c.equal(alone["prompt_ids"].count(end), 1, "ends of a turn in the prompt")
    content_top = first["top"]["logprobs"]["content"]
    c.equal([len(x["top_logprobs"]) for x in content_top], [2, 2, 2], "alternatives of three tokens")
    c.check(all(bytes(x["bytes"]).decode() == x["token"] and x["top_logprobs"][0]["token"] == x["token"]
                for x in content_top), "greedy takes the best, bytes are the token's")


def long_lines(n):
    return [{"custom_id": f"long-{i}", "prompt": p["prompt"], "max_tokens": 100, "ignore_eos": True,
             "temperature": 1.0, "seed": i} for i, p in enumerate((PROMPTS * 10)[:n])]


def interrupt(c, name, extra, number, n_lines):
    """Starts a batch, sends the signal when some answers are there, returns (exit code, output)."""
    source, out = write_lines(f"{name}_in.jsonl", long_lines(n_lines)), output(f"{name}.jsonl")
    process = subprocess.Popen(
        [PROGRAM, "batch", "-i", source, "-o", out, "--max-sequences", "8", "--quiet", *extra],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=clean_environment(), start_new_session=True)
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        if out.exists() and out.read_bytes().count(b"\n") >= 8:
            break
        time.sleep(0.002)
    if number == signal.SIGKILL:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    process.communicate(timeout=30)
    # Ranks notice after mpirun that it is gone; they hold the file's lock as long as they may write.
    with open(out, "ab") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
    answers = read_answers(out)
    c.check(8 <= len(answers) < n_lines, f"{name}: interrupted after {len(answers)} of {n_lines} lines")
    return process.returncode, source, out


def finish(c, name, source, out, extra, n_lines, reference):
    before = read_answers(out)
    summary = run_json("batch", "-i", source, "-o", out, *extra)
    answers = read_answers(out)
    c.equal(summary["skipped"], len(before), f"{name}: answers taken over")
    c.equal(sorted(answers), sorted(f"long-{i}" for i in range(n_lines)), f"{name}: all ids")
    c.check(all(len(a) == 1 for a in answers.values()), f"{name}: an id came twice")
    c.check(all(answers[i] == before[i] for i in before), f"{name}: an old answer changed")
    c.check(all(a[0]["response"] for a in answers.values()), f"{name}: an answer is an error")
    c.equal(content(answers), reference, f"{name}: answers of an uninterrupted run")


def test_interrupted(c):
    n_lines = 600  # ranks still answer some hundred after mpirun was ended
    source, out = write_lines("whole_in.jsonl", long_lines(n_lines)), output("whole.jsonl")
    run_ok("batch", "-i", source, "-o", out, timeout=120)
    reference = content(read_answers(out))
    for name, extra, number in (("killed", [], signal.SIGKILL), ("killed_mpi", ["--workers", "2"], signal.SIGKILL),
                                ("stopped", [], signal.SIGINT),
                                ("drained", [], signal.SIGUSR1), ("stopped_mpi", ["--workers", "2"], signal.SIGTERM)):
        code, source, out = interrupt(c, name, extra, number, n_lines)
        if name in ("stopped", "drained"):
            c.equal(code, 130, f"{name}: exit code")
            text = out.read_bytes()
            c.check(text.endswith(b"\n"), f"{name}: a line is unfinished")
        if name == "killed":  # what a kill inside of a write leaves
            with open(out, "ab") as f:
                f.write(b'{"id": "batch_req_cut", "custom_id": "long-')
        finish(c, name, source, out, extra, n_lines, reference)


def test_streams(c):
    text = "".join(json.dumps(p) + "\n" for p in PROMPTS[:5])
    for extra in ([], ["--workers", "2"]):
        result = run_ok("batch", "-i", "-", "-o", "-", "-n", "2", *extra, stdin=text)
        records = [json.loads(line) for line in result.out.splitlines()]
        c.equal(sorted(r["custom_id"] for r in records), [f"line-{i}" for i in range(1, 6)], f"pipe {extra}")
        c.check("tokens/s" in result.err and "\x1b" not in result.err, "the summary goes to stderr, plain")


def test_usage(c):
    source = write_lines("usage.jsonl", PROMPTS[:1])
    notes = PLACE / "notes.txt"
    notes.write_text("my notes")
    for args, code, words in (
            (["-o", "x"], 2, "no input file"),
            (["-i", source], 2, "no output file"),
            (["-i", source, "-o", source], 2, "is input and output"),
            (["-i", PLACE / "missing", "-o", output("x")], 1, "No such file"),
            (["-i", source, "-o", PLACE / "no" / "x"], 1, "No such file"),
            (["-i", source, "-o", notes], 1, "choose another output file")):
        result = run("batch", *args)
        c.equal(result.code, code, str(result))
        c.check(words in result.err and result.err.count("\n") == 1, str(result))
    c.equal(notes.read_text(), "my notes", "a file that is not ours")


def main():
    shutil.rmtree(PLACE, ignore_errors=True)
    PLACE.mkdir(parents=True)
    c = Checks("e2e_batch")
    for test in (test_demo_prompts, test_equals_generate, test_fields, test_bad_lines, test_changed_input, test_chat,
                 test_interrupted, test_streams, test_usage):
        c.attempt(test)
    c.close()


if __name__ == "__main__":
    main()
