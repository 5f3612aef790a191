"""The /metrics page of a running server: its format by promtool and by a reader of our own, its numbers against what the
clients were told, and the board and the page of docs that name its metrics.
"""
import json
import re
import socket
import time

from e2e_lib import DEMO, ROOT, WORK, Checks, Failure, run_command
from http_lib import Server
from metrics_page import Page, check_reader

BOARD = ROOT / "docs" / "grafana.json"
N_LOOPS = 4
LONG = {"prompt": "a>b;a>", "n": 16, "max_tokens": 240, "ignore_eos": True, "temperature": 0}  # a second and more


class Promtool:
    """promtool, or nothing where there is none; says so once."""

    def __init__(self, checks):
        found = run_command(["scripts/promtool.sh"], timeout=200)
        self.path = found.out.strip() if found.code == 0 else None
        if self.path is None:
            checks.note(f"skipped: the checks by promtool: {found.err.strip()}")

    def check_page(self, checks, text, what):
        if self.path:
            done = run_command([self.path, "check", "metrics"], stdin=text)
            checks.check(done.code == 0 and not (done.out + done.err).strip(),
                         f"promtool on {what}: exit code {done.code}: {(done.out + done.err).strip()[:800]}")

    def check_expressions(self, checks, expressions):
        """Every expression of the board is one that Prometheus reads."""
        if not self.path:
            return
        rules = WORK / "board_rules.yml"
        rules.parent.mkdir(parents=True, exist_ok=True)
        listed = [{"record": f"board:{i}", "expr": e} for i, e in enumerate(expressions)]
        rules.write_text(json.dumps({"groups": [{"name": "board", "rules": listed}]}))  # JSON is YAML, too
        done = run_command([self.path, "check", "rules", rules])
        checks.check(done.code == 0 and f"{len(listed)} rules found" in done.out,
                     f"promtool on the board's expressions: {(done.out + done.err).strip()[:800]}")


def read_page(checks, promtool, server, what):
    answer = server.ask("GET", "/metrics")
    text = answer.body.decode()
    checks.equal(answer.status, 200, f"{what}: status")
    checks.check((answer.header("Content-Type") or "").startswith("text/plain; version=0.0.4"),
                 f"{what}: Content-Type {answer.header('Content-Type')}")
    page = Page(text)
    checks.equal(page.errors, [], f"{what}: format")
    promtool.check_page(checks, text, what)
    return page


def wait_for_page(checks, promtool, server, is_reached, what, timeout=15):
    """The first page that is_reached, or the last one in that time; the engine's part is up to a second old."""
    late = time.monotonic() + timeout
    while True:
        page = Page(server.ask("GET", "/metrics").body.decode())
        if is_reached(page) or time.monotonic() > late:
            return read_page(checks, promtool, server, what)
        time.sleep(0.1)


def is_idle(page):
    """Nothing waits, runs or holds KV, and the workers' counters have caught up."""
    f = page.families
    return (f["carousel_num_requests_running"].value() == 0 and f["carousel_num_requests_waiting"].value() == 0
            and f["carousel_kv_cache_usage_ratio"].value() == 0
            and f["carousel_kv_blocks_used"].total() == 0
            and f["carousel_head_rows_total"].total() >= f["carousel_generation_tokens_total"].value())


def check_fresh_page(checks, promtool, server):
    page = read_page(checks, promtool, server, "the page of a fresh server")
    f = page.families
    checks.equal(f["carousel_server_state"].value(state="ready"), 1, "ready")
    checks.equal(f["carousel_server_state"].total(), 1, "one state")
    checks.equal(f["carousel_worker_up"].total(), 2, "two workers are up")
    hosts = {dict(labels)["host"] for _, labels in f["carousel_worker_up"].samples}
    checks.equal(hosts, {socket.gethostname()}, "the workers' host")
    checks.equal(f["carousel_generation_tokens_total"].value(), 0, "no token yet")
    checks.equal(f["carousel_model_info"].total(loops=str(N_LOOPS)), 1, "the model's loops")
    start = f["process_start_time_seconds"].value()
    checks.check(abs(start - time.time()) < 120, f"process_start_time_seconds {start}, now {time.time()}")


def send_requests(server):
    """Some of each kind; returns what the clients were told: {"prompt", "tokens", "exits", "lengths", "requests"}."""
    told = {"prompt": 0, "tokens": 0, "exits": [0] * N_LOOPS, "lengths": [], "requests": 0}

    def take(usage, loop_stats, n_choices):
        told["prompt"] += usage["prompt_tokens"] * (n_choices if n_choices > 1 else 1)
        told["tokens"] += usage["completion_tokens"]
        told["requests"] += 1
        for loop in loop_stats:
            told["exits"][loop - 1] += 1

    loops = {"mode": "exact", "exit_threshold": 0.5, "return_exit_loops": True}
    for i, prompt in enumerate(["f>w c>x x>d;c>", "g=0 v=g+8;v?", "a>b b>c;a>>"]):
        answer = server.post_ok("/v1/completions", {"prompt": prompt, "max_tokens": 5 + i, "ignore_eos": True,
                                                    "seed": i, "loops": loops})
        take(answer["usage"], answer["loop_stats"]["exit_loops"], 1)
        told["lengths"].append(5 + i)
    answer = server.post_ok("/v1/completions", {"prompt": "a>b;a>", "n": 3, "max_tokens": 4, "ignore_eos": True, "seed": 1,
                                                "loops": loops})
    take(answer["usage"], flat(answer), 3)
    told["lengths"] += [4] * 3
    events = server.stream("/v1/completions", {"prompt": "q>r r>s;q>>", "max_tokens": 40, "ignore_eos": True, "loops": loops,
                                               "stream_options": {"include_usage": True}})
    stats = next(e["loop_stats"] for e in events if "loop_stats" in e)
    take(events[-1]["usage"], stats["exit_loops"], 1)
    told["lengths"].append(40)
    return told


def flat(answer):
    """The exit loops of all choices: one list, or one list a choice."""
    loops = answer["loop_stats"]["exit_loops"]
    return [i for part in loops for i in part] if loops and isinstance(loops[0], list) else loops


def check_numbers(checks, promtool, server):
    told = send_requests(server)
    page = wait_for_page(checks, promtool, server, is_idle, "the page after requests")
    f = page.families
    tokens = told["tokens"]
    checks.equal(sum(told["lengths"]), tokens, "the clients were told what they asked for")
    checks.equal(f["carousel_generation_tokens_total"].value(), tokens, "generation_tokens_total")
    checks.equal(f["carousel_prompt_tokens_total"].value(), told["prompt"], "prompt_tokens_total")
    checks.equal([f["carousel_exit_total"].value(loop=str(t + 1)) for t in range(N_LOOPS)], told["exits"],
                 "exit_total by loop, against the answers' exit_loops")
    checks.check(sum(1 for n in told["exits"] if n) > 1, f"tokens left at more than one loop: {told['exits']}")
    for t in range(N_LOOPS):
        deeper = sum(told["exits"][t:])
        for name in ("loop_compute_seconds", "loop_wait_seconds"):
            checks.equal(f[f"carousel_{name}"].total("_count", loop=str(t + 1)), deeper, f"{name} of loop {t + 1}")
        checks.check(f["carousel_loop_rows_total"].total(loop=str(t + 1)) >= deeper, f"rows of loop {t + 1}")
    ran = sum((t + 1) * n for t, n in enumerate(told["exits"]))
    checks.equal(f["carousel_hop_seconds"].total("_count"), ran, "hops")
    checks.check(f["carousel_loop_compute_seconds"].total("_sum") > 0, "computing took time")

    n_choices = len(told["lengths"])
    checks.equal(f["carousel_request_success_total"].value(finished_reason="length"), n_choices, "ends by length")
    checks.equal(f["carousel_request_failed_total"].total(), 0, "no choice failed")
    for name, n in (("time_to_first_token_seconds", n_choices), ("inter_token_latency_seconds", tokens - n_choices),
                    ("e2e_request_latency_seconds", n_choices), ("request_queue_time_seconds", n_choices),
                    ("request_prompt_tokens", n_choices), ("request_generation_tokens", n_choices)):
        checks.equal(f[f"carousel_{name}"].value("_count"), n, f"{name}: observations")
    checks.equal(f["carousel_request_generation_tokens"].value("_sum"), tokens, "the answers' lengths")
    checks.check(f["carousel_e2e_request_latency_seconds"].value("_sum")
                 >= f["carousel_time_to_first_token_seconds"].value("_sum"), "no answer ends before it begins")
    checks.check(f["carousel_token_to_socket_seconds"].value("_count") > 0, "tokens reached sockets")
    checks.equal(f["carousel_http_requests_total"].value(endpoint="/v1/completions", code="200"), told["requests"],
                 "HTTP answers")
    checks.equal(f["carousel_http_request_seconds"].value("_count", endpoint="/v1/completions"), told["requests"],
                 "HTTP times")
    check_idle(checks, page, "after requests")
    checks.check(f["carousel_rows_total"].total() == f["carousel_loop_rows_total"].total(), "rows are the loops' rows")
    checks.check(0 < f["carousel_batches_total"].total() <= f["carousel_rows_total"].total(), "a batch has rows")
    checks.check(f["carousel_worker_busy_seconds_total"].total() > 0, "the workers were busy")


def check_idle(checks, page, what):
    f = page.families
    for name in ("num_requests_running", "num_requests_waiting", "prompt_tokens_held", "kv_cache_usage_ratio",
                 "http_unsent_bytes", "http_receiving_bytes"):
        checks.equal(f[f"carousel_{name}"].value(), 0, f"{what}: {name}")
    for name in ("kv_blocks_used", "parked_rows", "worker_sequences", "scheduler_sequences"):
        checks.equal(f[f"carousel_{name}"].total(), 0, f"{what}: {name}")


def check_errors(checks, promtool, server):
    """Hostile paths and bodies are counted under names of our own; who leaves is counted and leaves nothing."""
    server.post("/v1/completions", b"{")
    server.ask("GET", '/no"such\\path?x=%0a')
    server.ask("GET", "/v1/completions")
    with server.wire() as wire:
        wire.request("POST", "/v1/completions", {**LONG, "stream": True})
        wire.read_until(b"data: ")
    page = wait_for_page(
        checks, promtool, server,
        lambda p: is_idle(p) and p.families["carousel_cancelled_total"].total(reason="disconnect") > 0,
        "the page after errors")
    f = page.families
    http = f["carousel_http_requests_total"]
    checks.equal(http.value(endpoint="/v1/completions", code="400"), 1, "the bad body")
    checks.equal(http.value(endpoint="other", code="404"), 1, "the unknown path")
    checks.equal(http.total(code="405"), 1, "the wrong method")
    checks.check(f["carousel_cancelled_total"].value(reason="disconnect") >= 1, "who left")
    checks.equal(f["carousel_request_failed_total"].value(finished_reason="cancelled"), LONG["n"],
                 "all its choices were cancelled")
    check_idle(checks, page, "after a disconnect")


def board_expressions(board):
    return [t["expr"] for p in board["panels"] for t in p.get("targets", [])]


def check_board(checks, promtool, server):
    board = json.loads(BOARD.read_text())
    page = Page(server.ask("GET", "/metrics").body.decode())
    known = set(page.families)
    for family in page.families.values():
        if family.type == "histogram":
            known |= {family.name + s for s in ("_bucket", "_sum", "_count")}
            known.discard(family.name)
    queries = board_expressions(board) + [v["definition"] for v in board["templating"]["list"] if "definition" in v]
    used = set()
    for query in queries:
        used |= set(re.findall(r"\b(?:carousel|process)_[a-z0-9_]+", query))
    checks.equal(used - known, set(), "metrics of the board that the page does not have")
    checks.check(len(used) > 25, f"the board uses {len(used)} metrics")
    for name in used:
        family = page.families.get(re.sub(r"_(bucket|sum|count)$", "", name)) or page.families.get(name)
        for query in queries:
            for selector in re.findall(rf"\b{name}\{{([^}}]*)\}}", query):
                asked = set(re.findall(r"([a-z_]+)=", selector)) - {"instance"}
                has = {k for _, labels in family.samples for k, _ in labels}
                checks.check(asked <= has, f"{query}: labels {asked - has} of {name}")
    promtool.check_expressions(checks, [e.replace("$__rate_interval", "5m").replace("$instance", ".*")
                                        for e in board_expressions(board)])
    ids = [p["id"] for p in board["panels"]]
    checks.equal(len(set(ids)), len(ids), "panel ids are unique")
    cells = [(x, y) for p in board["panels"] for g in [p["gridPos"]]
             for x in range(g["x"], g["x"] + g["w"]) for y in range(g["y"], g["y"] + g["h"])]
    checks.equal(len(set(cells)), len(cells), "no panel lies on another")
    checks.check(all(x < 24 for x, _ in cells), "the board is 24 wide")


def check_docs(checks, server):
    """docs/metrics.md has every family of the page, with its type and help, in the page's order."""
    page = Page(server.ask("GET", "/metrics").body.decode())
    rows = re.findall(r"^\| `((?:carousel|process)_[a-z0-9_]+)` \| (\w+) \| [a-z_, ]* \| (.*) \|$",
                      (ROOT / "docs" / "metrics.md").read_text(), re.M)
    checks.equal(rows, [(f.name, f.type, f.help) for f in page.families.values()], "docs/metrics.md")


def main():
    checks = Checks("e2e_metrics")
    check_reader(checks)
    promtool = Promtool(checks)
    try:
        server = Server(DEMO, "--transport", "inproc", "--workers", 2)
        checks.attempt(check_fresh_page, promtool, server)
        checks.attempt(check_numbers, promtool, server)
        checks.attempt(check_errors, promtool, server)
        checks.attempt(check_board, promtool, server)
        checks.attempt(check_docs, server)
        checks.equal(server.stop(), 0, "the server's exit code")
    except Failure as e:
        checks.check(False, str(e))
    checks.close()


if __name__ == "__main__":
    main()
