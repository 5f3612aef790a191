#!/usr/bin/env python3
"""Traces from end to end: what a run did is in its file, over both transports, for every command; a running server
writes its last seconds when it is told to; clocks of another time namespace are measured within their error.
"""
import collections
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from e2e_lib import DEMO, PROGRAM, WORK, Checks, Failure, clean_environment, run, run_command, run_ok
from http_lib import Server, event_finish, make_slow_model, wait_for
from trace_file import Trace

PLACE = WORK / "trace"
AS_ROOT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
N_WORKERS = 3
AHEAD_S = 5000
PROMPTS = [json.loads(line)["prompt"] for line in (DEMO / "prompts.jsonl").read_text().splitlines()][:8]
BATCH = ["--max-tokens", "16", "--ignore-eos", "--exit", "exact", "-q", "0.5"]


def place(name):
    path = PLACE / name
    path.unlink(missing_ok=True)
    return path


def write_prompts():
    PLACE.mkdir(parents=True, exist_ok=True)
    path = PLACE / "in.jsonl"
    path.write_text("".join(json.dumps({"prompt": p}) + "\n" for p in PROMPTS))
    return path


# ---- one run, one file --------------------------------------------------------------------------------


def check_lines(c, trace, what):
    lines = trace.text.splitlines()
    c.equal(lines[0], '{"traceEvents":[', f"{what}: first line")
    c.check(lines[-1].startswith('],"displayTimeUnit":"ms","otherData":{'), f"{what}: last line {lines[-1][:80]}")
    for line in lines[1:-1]:
        json.loads(line.rstrip(","))
    c.equal(len(lines), len(trace.events) + 2, f"{what}: one event a line")


def check_ranks(c, trace, what):
    names = trace.processes()
    c.equal(sorted(names), list(range(N_WORKERS + 1)), f"{what}: processes")
    c.equal(names[0], "coordinator", f"{what}: rank 0")
    for rank in range(1, N_WORKERS + 1):
        c.check(names[rank].startswith(f"worker {rank} ("), f"{what}: rank {rank} is {names[rank]}")
        c.equal(trace.tracks(rank), ["recv", "compute", "send", "idle"], f"{what}: tracks of rank {rank}")
    c.equal(trace.tracks(0), ["requests", "tokens"], f"{what}: tracks of rank 0")
    c.equal([r["lost"] for r in trace.ranks], [0] * (N_WORKERS + 1), f"{what}: records lost")
    c.check(all(r["clock_shared"] and r["clock_error_ns"] == 0 for r in trace.ranks), f"{what}: one clock")


def check_frames(c, trace, what, is_mpi):
    """Every frame's parts follow one another and fill it; who sent it is there, and so is what it sent on."""
    frames = trace.frames()
    if not c.check(frames, f"{what}: frames are not nested"):
        return
    n_hops = collections.Counter()
    for f in frames:
        a, parts = f["args"], f["parts"]
        who = f"{what}: rank {f['pid']} sequence {a['seq']} loop {a['loop']} position {a['pos']}"
        in_order = [parts[name] for name in ("receive", "wait", "compute") if name in parts]
        edges = [f["ts"], *[t for part in in_order for t in part], f["end"]]
        c.check("compute" in parts and None not in edges and edges == sorted(edges), f"{who}: parts {parts}")
        c.check(edges[0] == edges[1] and edges[-1] == edges[-2]
                and all(edges[i] == edges[i + 1] for i in range(2, len(edges) - 2, 2)), f"{who}: a gap in {edges}")
        if a["from"] != f["pid"]:
            n_hops[f["pid"]] += 1
            c.check(0 <= a.get("hop_ns", 0) < 1e9, f"{who}: a hop of {a.get('hop_ns')} ns")
            if a["loop"] > 1:  # a token's id goes to loop 1 from wherever it was made
                c.equal(f["pid"], a["from"] % N_WORKERS + 1, f"{who}: comes from {a['from']}, not its ring neighbour")
    for rank in range(1, N_WORKERS + 1):
        c.check(n_hops[rank] > 0, f"{what}: nothing came to rank {rank}")
        for track in ("receive", "send"):
            c.check([e for e in trace.of(track) if e["pid"] == rank], f"{what}: rank {rank} has no {track}")
    if is_mpi:
        hops = sorted(f["args"].get("hop_ns", 0) for f in frames if f["args"]["from"] not in (0, f["pid"]))
        c.check(hops[len(hops) // 2] > 0, f"{what}: the median hop between processes takes no time")


def check_arrows(c, trace, what):
    """From the batch of loop 1 over each deeper one, worker after worker of the ring, to the token's arrival."""
    arrows, n = trace.arrows(), 0
    for sequence, tokens in trace.tokens().items():
        for position, loop, rank in tokens:
            who = f"{what}: token {position} of sequence {sequence}"
            way = arrows.get(hex(sequence << 32 | position), [])
            c.equal("".join(p for p, _, _ in way), "s" + "t" * (loop - 1) + "f", f"{who}: arrow")
            ranks = [pid for _, pid, _ in way]
            if not c.check(len(ranks) == loop + 1 and ranks[-1] == 0, f"{who}: goes over {ranks}"):
                continue
            c.equal(ranks[-2], rank, f"{who}: made by")
            c.check(all(ranks[i + 1] == ranks[i] % N_WORKERS + 1 for i in range(loop - 1)), f"{who}: over {ranks}")
            times = [ts for _, _, ts in way]
            c.check(times == sorted(times), f"{who}: goes back in time: {times}")
            n += 1
    c.equal(len(arrows), n, f"{what}: arrows and tokens")


def check_counts(c, trace, answers, what):
    """Tokens, exits and requests are those of the run's own output."""
    exits = sorted(tuple(loop for _, loop, _ in t) for t in trace.tokens().values())
    c.equal(exits, sorted(tuple(a["loop_stats"]["exit_loops"]) for a in answers), f"{what}: exit loops of all tokens")
    c.check(len({loop for t in exits for loop in t}) > 1, f"{what}: all tokens exit at one loop: {exits}")
    for name in ("queue", "admission", "sequence"):
        c.equal(len(trace.of(name)), len(answers), f"{what}: {name} spans")
    c.equal(sorted(e["args"]["rows"] for e in trace.of("queue")), sorted(a["usage"]["prompt_tokens"] for a in answers),
            f"{what}: rows of the prompts")
    c.equal([e["args"]["tokens"] for e in trace.of("sequence")], [16] * len(answers), f"{what}: tokens of sequences")
    rows = [f["args"] for f in trace.frames()]
    n_parked, n_revived = (sum(a.get(k, 0) for a in rows) for k in ("parked", "revived"))
    c.check(n_parked > 0 and 0 < n_revived <= n_parked, f"{what}: {n_parked} rows parked, {n_revived} revived")
    by_loop = collections.Counter()
    for a in rows:
        by_loop[a["loop"]] += a["rows"]
    of_batches = [sum(e["args"]["by_loop"][t] for e in trace.of("batch")) for t in range(4)]
    c.equal(of_batches, [by_loop[t + 1] for t in range(4)], f"{what}: rows by loop of batches and of frames")
    c.equal(of_batches[0], sum(a["usage"]["prompt_tokens"] + 15 for a in answers), f"{what}: rows of loop 1")
    for name in ("load", "pool"):
        c.check(trace.of(name, "C"), f"{what}: no counter {name}")
    c.equal(trace.of("load", "C")[-1]["args"]["running"], 0, f"{what}: sequences at the end")
    c.check(max(e["args"]["kv_used"] for e in trace.of("pool", "C")) > 0, f"{what}: no KV block is ever used")
    c.check(max(e["args"]["parked"] for e in trace.of("pool", "C")) > 0, f"{what}: no row is ever parked")


def records_a_batch(c, transport):
    what = f"batch over {transport}"
    file, out = place(f"{transport}.json"), place(f"{transport}.out.jsonl")
    done = run_ok("batch", "-i", write_prompts(), "-o", out, *BATCH, "--workers", N_WORKERS, "--transport", transport,
                  "--trace", file)
    said = re.findall(r"^carousel: trace (\S+): (\d+) records of (\d+) ranks$", done.err, re.M)
    trace = Trace(file)
    c.equal(said, [(str(file), str(sum(r["records"] for r in trace.ranks)), str(N_WORKERS + 1))], f"{what}: {done.err}")
    answers = [json.loads(line)["response"]["body"] for line in out.read_text().splitlines()]
    c.equal(len(answers), len(PROMPTS), f"{what}: answers")
    check_lines(c, trace, what)
    check_ranks(c, trace, what)
    check_counts(c, trace, answers, what)
    check_frames(c, trace, what, transport == "mpi")
    check_arrows(c, trace, what)
    c.check(not list(PLACE.glob("*.tmp")), f"{what}: a temporary file is left")


def records_every_command(c):
    for name, *arguments in (("generate", "a>b b>c;a>", "-n", "3"), ("lens", "a>b b>c;a>"),
                             ("eval", "--task", "hop", "-n", "2"),
                             ("bench", "engine", "--requests", "3", "--output-tokens", "4")):
        file = place(f"{name}.json")
        run_ok(name, *arguments, "--trace", file)
        trace = Trace(file)
        c.equal(sorted(trace.processes()), [0, 1], f"{name}: processes")
        c.check(trace.of("token") and trace.of("batch"), f"{name}: no token, no batch")


# ---- what cannot be, and what is cut -------------------------------------------------------------------


def refuses_before_the_work(c):
    out = place("refused.jsonl")
    command = ["batch", "-i", write_prompts(), "-o", out]
    for workers in ([], ["--workers", 2]):
        for options, words in ((["--trace", PLACE / "none" / "x.json"], "cannot create"),
                               (["--trace", PLACE], "is no regular file"),
                               (["--trace", PLACE / "x.json", "--trace-buffer", 0], "--trace-buffer 0")):
            done = run(*command, *workers, *options)
            what = f"{workers} {options}"
            c.equal(done.code, 1, f"{what}: exit code")
            c.check(words in done.err and done.err.count("\n") == 1, f"{what}: {done.err}")
            c.check(not out.exists(), f"{what}: work was begun")
    done = run("serve", "--port", 0, "--trace", PLACE / "none" / "x.json")
    c.check(done.code == 1 and "cannot create" in done.err, f"serve: {done}")


def keeps_the_newest(c):
    """A buffer that is too small: the last records are there, and how many are not is said, with what would do."""
    file = place("small.json")
    done = run_ok("batch", "-i", write_prompts(), "-o", place("small.jsonl"), *BATCH, "--trace", file,
                  "--trace-buffer", "4K")
    trace = Trace(file)
    c.equal([r["records"] for r in trace.ranks], [64, 64], "small: records kept")
    lost = sum(r["lost"] for r in trace.ranks)
    c.check(lost > 64 and f"; {lost} older ones were overwritten: --trace-buffer 1M keeps all" in done.err,
            f"small: {lost} lost; {done.err}")
    last = max(t[-1][0] for t in trace.tokens().values())
    c.check(last >= 16, f"small: the last token kept is {last}")
    run_ok("batch", "-i", write_prompts(), "-o", place("none.jsonl"), *BATCH, "--trace-buffer", 0)


def keeps_an_interrupted_run(c):
    file = place("cut.json")
    command = [PROGRAM, "batch", make_slow_model(), "-i", write_prompts(), "-o", place("cut.jsonl"), "--ignore-eos",
               "--max-tokens", 5000, "--trace", file]
    process = subprocess.Popen([str(a) for a in command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                               env=clean_environment(), start_new_session=True)
    time.sleep(1.5)
    process.send_signal(signal.SIGINT)
    err = process.communicate(timeout=30)[1]
    c.equal(process.returncode, 130, f"cut: exit code; {err}")
    trace = Trace(file)
    c.equal(len(trace.of("sequence")), len(PROMPTS), "cut: sequences that never ended")
    c.check(len(trace.of("token")) > 0, "cut: tokens")


def keeps_what_rank_0_has_of_a_failed_run(c):
    file = place("failed.json")
    for workers in ([], ["--workers", 2]):
        done = run("batch", "-i", write_prompts(), "-o", "/dev/full", *BATCH, *workers, "--trace", file)
        n = 2 if workers else 1
        trace = Trace(file)
        c.equal(done.code, 1, f"failed: exit code; {done.err}")
        c.check("No space left" in done.err, f"failed: {done.err}")
        c.check(f"of 1 rank; the run failed: those of {n} worker" in done.err, f"failed: {done.err}")
        c.equal([r["missing"] for r in trace.ranks], [False] + [True] * n, "failed: whose records are there")
        c.equal(len(trace.of("queue")), len(PROMPTS), "failed: requests")
        report = run_ok("trace", "report", file).out
        c.check(f"missing: the records of {n} of {n} workers" in report, f"failed: {report}")
        file.unlink()
    done = run("generate", "--ids", "99999", "--trace", file)
    c.check(done.code == 1 and not file.exists(), f"failed: a trace of nothing; {done.err}")


def says_why_requests_wait(c):
    """While the head of the queue has no room, a worker without rows starves for that reason."""
    for options, name in ((["--max-sequences", 1], "blocked: sequences"), (["--kv-memory", "256K"], "blocked: kv")):
        file = place("blocked.json")
        run_ok("batch", "-i", write_prompts(), "-o", place("blocked.jsonl"), *BATCH, *options, "--trace", file)
        trace = Trace(file)
        spans = [(e["ts"], e["ts"] + e["args"]["ns"] / 1e3) for e in trace.of("blocked", "b")]
        c.equal({e["name"] for e in trace.of("blocked")}, {name}, f"{options}: blocked by")
        idle = [e for e in trace.of("idle") if e["name"] == "kv"]
        c.check(idle, f"{options}: the worker never starved meanwhile")
        for e in idle:
            c.check(any(a - 1e-3 <= e["ts"] and e["ts"] + e["dur"] <= b + 1e-3 for a, b in spans),
                    f"{options}: idle for KV at {e['ts']} for {e['dur']} us, blocked {spans}")


# ---- clocks -------------------------------------------------------------------------------------------


def measures_other_clocks(c):
    """Ranks 2 and 3 live in a time namespace whose CLOCK_MONOTONIC is ahead by a known time."""
    other = ["unshare", "--time", "--monotonic", AHEAD_S, "--fork"]
    if not shutil.which("unshare") or run_command([*other, "true"]).code != 0:
        print("e2e_trace: no time namespace can be made here: clocks are not tested", flush=True)
        return
    file, out = place("clocks.json"), place("clocks.jsonl")
    ours = [PROGRAM, "batch", "-i", write_prompts(), "-o", out, *BATCH, "--trace", file]
    done = run_command(["mpirun", "--quiet", "--oversubscribe", "-n", 2, *ours, ":", "-n", 2, *other, *ours],
                       env=AS_ROOT)
    if not c.equal(done.code, 0, f"clocks: {done}"):
        return
    trace = Trace(file)
    c.equal([r["clock_shared"] for r in trace.ranks], [True, True, False, False], "clocks: shared")
    for rank, true_ns in enumerate((0, 0, AHEAD_S * 10**9, AHEAD_S * 10**9)):
        r = trace.ranks[rank]
        off_ns = r["clock_offset_ns"] - true_ns
        c.check(abs(off_ns) <= r["clock_error_ns"], f"clocks: rank {rank} is {off_ns} ns off, {r}")
        print(f"e2e_trace: rank {rank}: measured less true {off_ns} ns, stored error {r['clock_error_ns']} ns")
    check_frames(c, trace, "clocks", False)
    check_arrows_exist = sum(len(way) > 2 for way in trace.arrows().values())
    c.check(check_arrows_exist > 0, "clocks: no arrow over the clocks")
    # What lies in the far clock's time would be 5000 s away.
    c.check(max(e["ts"] for e in trace.events if "ts" in e) < 60e6, "clocks: an event more than a minute after the first")


# ---- a running server ----------------------------------------------------------------------------------


class ServerUnderMpirun(Server):
    @staticmethod
    def program():
        return ["mpirun", "--quiet", "--oversubscribe", "-n", "3", PROGRAM, "serve"]


def traces_of(server):
    return re.findall(r" trace path=(\S+) ranks=3 ", server.log_text())


def writes_the_last_seconds(c, how):
    """Under load, twice; every stream goes on to its end, and the whole is written at the server's end."""
    file = place(f"serve{how.replace('--', '-')}.json")
    for old in PLACE.glob(f"{file.stem}.*"):
        old.unlink()
    kind, options = (ServerUnderMpirun, []) if how == "mpirun" else (Server, ["--workers", 2])
    server = kind(make_slow_model(), *options, "--trace", file, env=AS_ROOT)
    finished = []

    def stream(i):
        events = server.stream("/v1/completions", {"prompt": "xyz"[i % 3], "max_tokens": 150, "ignore_eos": True})
        finished.append(event_finish(events))

    threads = [threading.Thread(target=stream, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    wait_for(lambda: server.metrics().sum("num_requests_running") == 4
             and server.metrics().sum("generation_tokens_total") >= 4)
    for n in (1, 2):
        server.process.send_signal(signal.SIGUSR2)
        c.check(wait_for(lambda: len(traces_of(server)) == n, 20), f"{how}: trace {n}: {server.log_tail()}")
        time.sleep(0.2)
    n_running = server.metrics().sum("num_requests_running")
    c.equal(n_running, 4, f"{how}: streams that go on meanwhile")
    for t in threads:
        t.join()
    c.equal(finished, ["length"] * 4, f"{how}: ends of the streams")
    server.process.send_signal(signal.SIGUSR1 if how == "mpirun" else signal.SIGTERM)
    c.equal(server.process.wait(30), 0, f"{how}: exit code; {server.log_tail()}")
    paths = [str(file.with_suffix(s)) for s in (".1.json", ".2.json", ".json")]
    c.equal(traces_of(server), paths, f"{how}: files")
    n_tokens = []
    for path in paths:
        trace = Trace(path)
        c.equal(sorted(trace.processes()), [0, 1, 2], f"{path}: processes")
        c.equal(len(trace.of("sequence")), 4, f"{path}: sequences")
        n_tokens.append(len(trace.of("token")))
    c.check(0 < n_tokens[0] < n_tokens[1] < n_tokens[2] == 600, f"{how}: tokens in the files: {n_tokens}")
    c.check(trace.of("draining"), f"{how}: no word of the drain in the last file")


def names_a_file_by_itself(c):
    """One process, no --trace: in the current directory."""
    server = Server(DEMO)
    server.process.send_signal(signal.SIGUSR2)
    c.check(wait_for(lambda: " trace path=" in server.log_text()), f"alone: {server.log_tail()}")
    path = pathlib.Path(re.search(r" trace path=(\S+) ", server.log_text())[1])
    c.equal(path, pathlib.Path.cwd() / f"carousel-trace-{server.process.pid}-1.json", "alone: path")
    c.equal(sorted(Trace(path).processes()), [0, 1], "alone: processes")
    path.unlink()
    c.equal(server.stop(), 0, "alone: exit code")
    off = Server(DEMO, "--trace-buffer", 0)
    off.process.send_signal(signal.SIGUSR2)
    c.check(wait_for(lambda: "trace_failed" in off.log_text()), f"off: {off.log_tail()}")
    c.check("--trace-buffer" in off.log_text(), f"off: {off.log_tail()}")
    c.equal(off.stop(), 0, "off: exit code")


def main():
    c = Checks("e2e_trace")
    PLACE.mkdir(parents=True, exist_ok=True)
    for transport in ("mpi", "inproc"):
        c.attempt(records_a_batch, transport)
    c.attempt(records_every_command)
    c.attempt(refuses_before_the_work)
    c.attempt(keeps_the_newest)
    c.attempt(keeps_an_interrupted_run)
    c.attempt(keeps_what_rank_0_has_of_a_failed_run)
    c.attempt(says_why_requests_wait)
    c.attempt(measures_other_clocks)
    for how in ("--workers", "mpirun"):
        c.attempt(writes_the_last_seconds, how)
    c.attempt(names_a_file_by_itself)
    c.close()


if __name__ == "__main__":
    main()
