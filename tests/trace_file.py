"""A trace file as a test reads it: events by kind, frames with their parts, and what every token's way was."""
import json
import pathlib


class Trace:
    def __init__(self, path):
        self.path = pathlib.Path(path)
        self.text = self.path.read_text()
        whole = json.loads(self.text)
        self.events, self.other = whole["traceEvents"], whole["otherData"]
        self.ranks = self.other["ranks"]

    def of(self, category, phases="XbiC"):
        return [e for e in self.events if e.get("cat") == category and e["ph"] in phases]

    def processes(self):
        """pid -> name"""
        return {e["pid"]: e["args"]["name"] for e in self.events if e["ph"] == "M" and e["name"] == "process_name"}

    def tracks(self, pid):
        return [e["args"]["name"] for e in self.events
                if e["ph"] == "M" and e["name"] == "thread_name" and e["pid"] == pid]

    def tokens(self):
        """sequence -> its tokens as (position, exit loop, who made it), by position"""
        found = {}
        for e in self.of("token"):
            a = e["args"]
            found.setdefault(a["seq"], []).append((a["pos"], a["loop"], a["from"]))
        return {s: sorted(t) for s, t in found.items()}

    def frames(self):
        """Every stay of rows on a worker: {pid, ts, args, parts: {name: (begin, end)}}; None for one that is not
        nested as it must be."""
        open_frames, found = {}, []
        for e in self.events:
            if e.get("cat") != "frame":
                continue
            key = (e["pid"], e["id"])
            is_part = e["name"] in ("receive", "wait", "compute")
            if e["ph"] == "b" and not is_part:
                if key in open_frames:
                    return None
                open_frames[key] = {"pid": e["pid"], "ts": e["ts"], "args": e["args"], "parts": {}}
            elif key not in open_frames:
                return None
            elif e["ph"] == "b":
                open_frames[key]["parts"][e["name"]] = [e["ts"], None]
            elif is_part:
                open_frames[key]["parts"][e["name"]][1] = e["ts"]
            else:
                frame = open_frames.pop(key)
                frame["end"] = e["ts"]
                found.append(frame)
        return found if not open_frames else None

    def arrows(self):
        """id -> [(phase, pid, ts)] in the file's order"""
        found = {}
        for e in self.events:
            if e.get("cat") == "flow":
                found.setdefault(e["id"], []).append((e["ph"], e["pid"], e["ts"]))
        return found
