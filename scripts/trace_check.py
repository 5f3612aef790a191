#!/usr/bin/env python3
"""Reads a trace file on its own and works the report out a second time; nothing is shared with the C code.

    scripts/trace_check.py FILE                   what Perfetto needs of the file: spans, slices, arrows
    scripts/trace_check.py FILE REPORT.json       that, and whether `carousel trace report --json FILE` says the same

Prints what differs and, last, `N values, M differ`; exit code 1 when anything does.
"""
import collections
import json
import math
import sys

import numpy

NEAR = 1e-9  # seconds: times in the file are whole nanoseconds


class Differences:
    def __init__(self):
        self.n, self.n_bad = 0, 0

    def check(self, holds, message):
        self.n += 1
        if not holds:
            self.n_bad += 1
            if self.n_bad <= 20:
                print(message)
        return holds

    def equal(self, ours, theirs, name):
        if isinstance(ours, float) or isinstance(theirs, float):
            same = theirs is not None and abs(ours - theirs) <= NEAR + 1e-9 * abs(ours)
        else:
            same = ours == theirs
        self.check(same, f"{name}: {ours} here, {theirs} in the report")


# ---- what Perfetto needs ------------------------------------------------------------------------------


def check_slices(d, events):
    """Slices of a thread lie in each other or apart. Returns them by thread, sorted."""
    threads = collections.defaultdict(list)
    for i, e in enumerate(events):
        if e["ph"] == "X":
            threads[e["pid"], e["tid"]].append((round(e["ts"] * 1000), i, round((e["ts"] + e["dur"]) * 1000), e))
    for thread, slices in threads.items():
        slices.sort(key=lambda s: s[:2])
        open_ends = []
        for begin, _, end, e in slices:
            while open_ends and open_ends[-1] <= begin:
                open_ends.pop()
            d.check(not open_ends or end <= open_ends[-1], f"thread {thread}: {e['name']} at {e['ts']} us crosses an end")
            open_ends.append(end)
    return threads


def check_spans(d, events):
    """Spans of one id nest, and every begin has its end."""
    tracks = collections.defaultdict(list)
    for i, e in enumerate(events):
        if e["ph"] in "be":
            tracks[e["cat"], e["id"]].append((round(e["ts"] * 1000), i, e))
    for track, spans in tracks.items():
        spans.sort(key=lambda s: s[:2])
        names = []
        for _, _, e in spans:
            if e["ph"] == "b":
                names.append(e["name"])
            elif d.check(names and names[-1] == e["name"], f"track {track}: {e['name']} ends at {e['ts']} us, in {names}"):
                names.pop()
        d.check(not names, f"track {track}: {names} never end")


def check_arrows(d, events, threads):
    """s, then t, then f, in time; each lies in a slice of its thread, the last one on a token's instant."""
    instants = {(e["pid"], e["tid"], e["ts"]) for e in events if e["ph"] == "i"}
    batches = {t: (numpy.array([s[0] for s in slices if s[3]["cat"] == "batch"]),
                   numpy.array([s[2] for s in slices if s[3]["cat"] == "batch"])) for t, slices in threads.items()}
    arrows = collections.defaultdict(list)
    for e in events:
        if e["ph"] in "stf":
            arrows[e["id"]].append(e)
    for name, way in arrows.items():
        phases = "".join(e["ph"] for e in way)
        d.check(phases == "s" + "t" * (len(way) - 2) + "f", f"arrow {name}: {phases}")
        d.check(all(a["ts"] < b["ts"] for a, b in zip(way, way[1:])), f"arrow {name} goes back in time")
        for e in way[:-1]:
            begins, ends = batches.get((e["pid"], e["tid"]), (numpy.empty(0), numpy.empty(0)))
            at = round(e["ts"] * 1000)
            i = int(numpy.searchsorted(begins, at, side="right")) - 1
            d.check(i >= 0 and at <= ends[i], f"arrow {name}: no batch of rank {e['pid']} at {e['ts']} us")
        last = way[-1]
        d.check((last["pid"], last["tid"], last["ts"]) in instants, f"arrow {name} ends at no token")


# ---- the report, a second time ------------------------------------------------------------------------


def quantiles(values):
    v = numpy.sort(numpy.array(values, dtype=float))
    if len(v) == 0:
        return {"n": 0, "mean_s": 0.0, "p50_s": 0.0, "p90_s": 0.0, "p99_s": 0.0, "max_s": 0.0}
    rank = lambda p: float(v[max(math.ceil(len(v) * p / 100), 1) - 1])
    return {"n": len(v), "mean_s": float(v.mean()), "p50_s": rank(50), "p90_s": rank(90), "p99_s": rank(99),
            "max_s": float(v[-1])}


def union(spans):
    """How long at least one of the spans, in nanoseconds, was under way."""
    total, until = 0, -1
    for begin, end in sorted(spans):
        total += max(0, end - max(begin, until))
        until = max(until, end)
    return total


def ns(us):
    return round(us * 1000)


def read_frames(events):
    frames = []
    for e in events:
        if e.get("cat") == "frame" and e["ph"] == "b" and "args" in e:
            a = e["args"]
            frames.append({"pid": e["pid"], "seq": a["seq"], "loop": a["loop"], "pos": a["pos"] + a["rows"],
                           "live": "live" in a, "exit": "exit" in a, "hop": a.get("hop_ns", 0) * 1e-9,
                           "wait": a.get("wait_ns", 0) * 1e-9, "compute": a["ns"] * 1e-9, "at": a["at_ns"],
                           "ns": a["ns"], "parked": a.get("parked", 0), "revived": a.get("revived", 0)})
    return frames


def loops_of(events, frames, n_loops):
    heads = {}
    for e in events:
        if e.get("cat") == "batch":
            heads.setdefault((e["pid"], ns(e["ts"])), e["args"].get("head_ns", 0) * 1e-9)
    tokens = collections.Counter(e["args"]["loop"] for e in events if e.get("cat") == "token")
    table = []
    for loop in range(1, n_loops + 1):
        live = [f for f in frames if f["live"] and f["loop"] == loop]
        exits = [heads[f["pid"], f["at"]] for f in live if f["exit"] and (f["pid"], f["at"]) in heads]
        table.append({"loop": loop, "exits": tokens[loop], **{k: quantiles([f[k] for f in live])
                                                              for k in ("hop", "wait", "compute")},
                      "head": quantiles(exits)})
    return table


def worker_of(events, frames, rank, n_loops):
    spans = {k: [(ns(e["ts"]), ns(e["ts"]) + ns(e["dur"])) for e in events if e.get("cat") == k]
             for k in ("batch", "idle", "receive", "send")}
    seconds = lambda pairs: sum(b - a for a, b in pairs) * 1e-9
    batches = [e["args"] for e in events if e.get("cat") == "batch"]
    edges = [t for pairs in spans.values() for pair in pairs for t in pair]
    edges += [t for f in frames for t in (f["at"], f["at"] + f["ns"])]
    edges += [ns(e["ts"]) for e in events if e.get("cat") == "pool"]
    work = union(spans["batch"] + spans["idle"])
    everything = union(sum(spans.values(), []))
    elapsed = max(edges) - min(edges) if edges else 0
    idle = {name: sum(ns(e["dur"]) for e in events if e.get("cat") == "idle" and e["name"] == name) * 1e-9
            for name in ("starved", "peer", "kv", "draining")}
    by_loop = [sum(a["by_loop"][i] if i < len(a["by_loop"]) else 0 for a in batches) for i in range(n_loops)]
    return {"rank": rank, "elapsed_s": elapsed * 1e-9, "busy_s": seconds(spans["batch"]), "idle_s": idle,
            "driver_s": (everything - work) * 1e-9, "rest_s": (elapsed - everything) * 1e-9,
            "receive_s": seconds(spans["receive"]), "send_s": seconds(spans["send"]), "batches": len(batches),
            "rows": sum(a["rows"] for a in batches), "rows_by_loop": by_loop,
            "parked": sum(f["parked"] for f in frames), "revived": sum(f["revived"] for f in frames)}


def requests_of(events, arrivals):
    """Queue, admission, time to first token, gaps between tokens."""
    spans = {k: [e for e in events if e.get("cat") == k and e["ph"] == "b"] for k in ("queue", "admission", "sequence")}
    queued = {e["args"]["seq"]: (ns(e["ts"]), e["args"]["rows"]) for e in spans["queue"]}
    ttft, tpot = [], []
    for (sequence, position), token in arrivals.items():
        before = arrivals.get((sequence, position - 1))
        if before:
            tpot.append(max(0, token["at"] - before["at"]) * 1e-9)
        elif sequence in queued and queued[sequence][1] == position and queued[sequence][0] <= token["at"]:
            ttft.append((token["at"] - queued[sequence][0]) * 1e-9)
    waiting = sum(1 for e in spans["queue"] if e["args"]["seq"] == 0)
    return {"requests": len({e["args"]["seq"] for k in spans for e in spans[k]} - {0}) + waiting,
            "queue": quantiles([e["args"]["ns"] * 1e-9 for e in spans["queue"]]),
            "admission": quantiles([e["args"]["ns"] * 1e-9 for e in spans["admission"]]),
            "ttft": quantiles(ttft), "tpot": quantiles(tpot)}


def slowest_of(frames, arrivals, n_loops):
    ways = collections.defaultdict(dict)
    for f in sorted((f for f in frames if f["live"]), key=lambda f: f["at"]):
        ways[f["seq"], f["pos"]][f["loop"]] = f
    found, n_incomplete = [], 0
    for key, token in arrivals.items():
        way = [ways[key].get(loop) for loop in range(1, token["loop"] + 1)]
        if None in way:
            n_incomplete += 1
            continue
        # Between two batches of the token lie its hop and its wait; the rows' own wait is that of the oldest of them.
        steps = [{k: way[0][k] for k in ("hop", "wait", "compute")}]
        for before, f in zip(way, way[1:]):
            between = max(0, f["at"] - before["at"] - before["ns"]) * 1e-9
            hop = min(f["hop"], between)
            steps.append({"hop": hop, "wait": between - hop, "compute": f["compute"]})
        deliver = max(0, token["at"] - way[-1]["at"] - way[-1]["ns"]) * 1e-9
        parts = [sum(s[k] for s in steps) for k in ("hop", "wait", "compute")]
        found.append((sum(parts) + deliver, key, steps, parts, deliver))
    found.sort(key=lambda w: (-w[0], w[1]))
    slow = found[: -(-len(found) // 100)]
    mean = lambda values: float(sum(values) / len(slow)) if slow else 0.0
    by_loop = [mean([sum(w[2][i].values()) if i < len(w[2]) else 0.0 for w in slow]) for i in range(n_loops)]
    summary = {"tokens": len(slow), "total_s": mean([w[0] for w in slow]), "hop_s": mean([w[3][0] for w in slow]),
               "wait_s": mean([w[3][1] for w in slow]), "compute_s": mean([w[3][2] for w in slow]),
               "deliver_s": mean([w[4] for w in slow]), "by_loop_s": by_loop}
    return summary, n_incomplete, slow[:16]


def compare(d, ours, theirs, name):
    if isinstance(ours, dict):
        for key, value in ours.items():
            compare(d, value, theirs.get(key) if isinstance(theirs, dict) else None, f"{name}.{key}")
    elif isinstance(ours, list):
        if d.check(isinstance(theirs, list) and len(ours) == len(theirs), f"{name}: {len(ours)} here, {theirs} there"):
            for i, value in enumerate(ours):
                compare(d, value, theirs[i], f"{name}[{i}]")
    else:
        d.equal(ours, theirs, name)


def end_of(e):
    if e["ph"] == "X":
        return ns(e["ts"]) + ns(e["dur"])
    if e["ph"] == "b" and "args" in e:
        return (e["args"]["at_ns"] if e["cat"] == "frame" else ns(e["ts"])) + e["args"]["ns"]
    return ns(e["ts"])


def begin_of(e):
    return e["args"]["at_ns"] if e["ph"] == "b" and e["cat"] == "frame" else ns(e["ts"])


def check_report(d, trace, report):
    events, other = trace["traceEvents"], trace["otherData"]
    n_loops = other["loops"]
    by_rank = collections.defaultdict(list)
    records = [e for e in events if e["ph"] in "XbiC" and e["cat"] != "view" and (e["ph"] != "b" or "args" in e)]
    for e in records:
        by_rank[e["pid"]].append(e)
    frames = read_frames(records)
    arrivals = {(e["args"]["seq"], e["args"]["pos"]): {"at": ns(e["ts"]), "loop": e["args"]["loop"]}
                for e in records if e["cat"] == "token"}
    slow, n_incomplete, listed = slowest_of(frames, arrivals, n_loops)
    elapsed = (max(map(end_of, records)) - min(map(begin_of, records))) * 1e-9 if records else 0.0
    frames_of = collections.defaultdict(list)
    for f in frames:
        frames_of[f["pid"]].append(f)
    ours = {"loops": n_loops, "n_workers": len(other["ranks"]) - 1, "elapsed_s": elapsed, "tokens": len(arrivals),
            "tokens_per_s": len(arrivals) / elapsed if elapsed else 0.0, "incomplete_tokens": n_incomplete,
            "lost_records": sum(r["lost"] for r in other["ranks"]),
            "clock_error_s": max(r["clock_error_ns"] for r in other["ranks"]) * 1e-9,
            **requests_of(by_rank[0], arrivals), "by_loop": loops_of(records, frames, n_loops),
            "workers": [worker_of(by_rank[r], frames_of[r], r, n_loops) for r in range(1, len(other["ranks"]))],
            "slowest": slow}
    compare(d, ours, report, "report")
    theirs = report["slowest"]["listed"]
    d.check(len(theirs) == len(listed), f"{len(listed)} slow tokens here, {len(theirs)} in the report")
    for way, said in zip(listed, theirs):
        d.equal(way[0], said["total_s"], f"slow token {said['sequence']}.{said['position']}")
        steps = [s for s in said["steps"] if s["loop"] > 0]
        parts = sum(s["hop_s"] + s["wait_s"] + s["compute_s"] for s in said["steps"])
        d.equal(float(parts), said["total_s"], f"the steps of {said['sequence']}.{said['position']}")
        d.check([s["loop"] for s in steps] == list(range(1, len(steps) + 1)), f"steps {steps}")


def main():
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    with open(sys.argv[1]) as f:
        trace = json.load(f)
    d = Differences()
    events = [e for e in trace["traceEvents"] if e["ph"] != "M"]
    threads = check_slices(d, events)
    check_spans(d, events)
    check_arrows(d, events, threads)
    if len(sys.argv) == 3:
        with open(sys.argv[2]) as f:
            check_report(d, trace, json.load(f))
    print(f"{d.n} values, {d.n_bad} differ")
    sys.exit(d.n_bad > 0)


if __name__ == "__main__":
    main()
