#!/usr/bin/python3
"""What people see: the live page of a server, looked at in a headless Chromium.

The page is read twice, as a document (nodes, texts, heights) and as pixels of a picture; what it shows is compared with what
the clients were told. States that a real server shows only for a moment come from a scripted one that serves the same
page. Pictures are left in build/e2e/pages.
"""
import http.server
import json
import sys
import threading
import time

import browser_lib
from browser_lib import LOOPS, Browser, area, count_colour, cut, freeze, read_pixels
from e2e_lib import DEMO, ROOT, WORK, Checks, Failure
from http_lib import Server

PICTURES = WORK / "pages"
LIVE_PAGE = ROOT / "coordinator" / "live_page.html"


def text(page, name):
    return page.run(f"document.getElementById('{name}').textContent")


class Streams:
    """Clients that stream answers one after the other and keep the exit loops they are told."""

    PROMPTS = [json.loads(line)["prompt"] for line in (DEMO / "prompts.jsonl").read_text().splitlines()]

    def __init__(self, server, n):
        self.server, self.is_over, self.exits, self.problems = server, False, [], []
        self.threads = [threading.Thread(target=self.run, args=(i,)) for i in range(n)]
        for thread in self.threads:
            thread.start()

    def run(self, number):
        n = 0
        while not self.is_over:
            try:
                events = self.server.stream("/v1/completions", {
                    "prompt": self.PROMPTS[(7 * number + n) % len(self.PROMPTS)], "max_tokens": 40, "ignore_eos": True,
                    "loops": {"exit_threshold": [0.1, 0.5, 1][n % 3], "return_exit_loops": True}})
                told = [e["loop_stats"]["exit_loops"] for e in events if e.get("loop_stats")]
                self.exits += [loop for loops in told for loop in loops]
            except (Failure, OSError, KeyError) as e:
                self.problems.append(str(e))
                return
            n += 1
            time.sleep(0.05)

    def stop(self):
        self.is_over = True
        for thread in self.threads:
            thread.join()


def check_exit_bars(c, page, pixels, told, n_loops):
    """Heights in the document, and coloured areas in the picture, follow what the clients were told."""
    counts = [told.count(t) for t in range(1, n_loops + 1)]
    bars = page.run("[...document.querySelectorAll('#exits rect.total')].map(r => "
                    "[Number(r.dataset.count), r.getBoundingClientRect().height, r.getBBox().height])")
    c.equal([b[0] for b in bars], counts, "the bars' counts are the tokens the clients were told of, by exit loop")
    most = max(range(n_loops), key=lambda i: counts[i])
    for i, (n, _, height) in enumerate(bars):
        wanted = bars[most][2] * counts[i] / counts[most]
        c.check(abs(height - wanted) < 0.01 * bars[most][2],
                f"loop {i + 1}: the bar is {height:.1f} high, {n} tokens of {counts[most]} make it {wanted:.1f}")
    for i in range(n_loops):
        box = area(page, f"#exits rect.window[data-loop='{i + 1}']")
        size = (box[2] - box[0]) * (box[3] - box[1])
        painted = count_colour(cut(pixels, box), LOOPS[i])
        if size > 200:
            c.check(0.85 * size <= painted <= size * 1.05, f"loop {i + 1}: {painted} pixels of its colour in a bar of {size:.0f}")


def test_live_page(c, browser):
    server = Server(DEMO, "--workers", 2)
    page, dark = browser.open(server.url + "/"), browser.open(server.url + "/", is_dark=True)
    c.check(page.wait("document.querySelectorAll('#ring .worker').length === 2"), "a ring of two workers has two nodes")
    c.equal(page.run("document.querySelectorAll('#workers tr').length"), 2, "rows of the table of workers")
    c.equal([text(page, "state"), text(page, "model")], ["ready", "demo"], "state and model")
    c.equal([text(page, "ttft"), text(page, "rate-note")], ["–", "0 since the start"], "texts before the first token")
    streams = Streams(server, 6)
    c.check(page.wait("Number(document.getElementById('rate').textContent.replace(/,/g, '')) > 0"), "tokens a second > 0 while streaming")
    time.sleep(2)
    for p, name in ((page, "live"), (dark, "live_dark")):
        freeze(p)
        p.picture(PICTURES / f"{name}.png", True)
    for p, name in ((page, "live"), (dark, "live_dark")):
        pixels = read_pixels(PICTURES / f"{name}.png")
        for rank in (1, 2):
            node = cut(pixels, area(p, f"#ring .worker[data-rank='{rank}'] circle"))
            seen = [count_colour(node, colour) for colour in LOOPS[:4]]
            c.check(min(seen) > 0, f"{name}: worker {rank} has all four loops' colours in its node: {seen} pixels")
            row = cut(pixels, area(p, f"#workers tr:nth-child({rank}) .time"))
            c.check(count_colour(row, LOOPS[0]) > 20, f"{name}: worker {rank}'s row has loop 1's colour")
        history = cut(pixels, area(p, "#history"))
        c.check(min(count_colour(history, LOOPS[i]) for i in (0, 3)) > 20, f"{name}: the history has the colours of loops 1 and 4")
        shares = p.run("[...document.querySelectorAll('#workers .time')].map(t => [...t.children].map(i => parseFloat(i.style.width)))")
        c.check(all(1 < sum(s) <= 100.5 for s in shares), f"{name}: shares of the workers' time: {shares}")
        background = pixels[4, 4].mean()
        c.check(background > 200 if name == "live" else background < 60, f"{name}: the background is {background}")
    streams.stop()
    c.equal(streams.problems, [], "problems of the streams")
    dark.close()
    late = browser.open(server.url + "/")  # one that comes when all is over has the past, too
    time.sleep(1.2)
    freeze(late)
    late.picture(PICTURES / "live_late.png", True)
    c.check(late.run("[...document.querySelectorAll('#history path')].some(p => p.getAttribute('d').length > 0)"), "a page opened later shows the last seconds")
    check_exit_bars(c, late, read_pixels(PICTURES / "live_late.png"), streams.exits, 4)
    told = server.ask("GET", "/live").json()
    c.equal(told["tokens_total"], len(streams.exits), "tokens of /live and of the clients")
    c.check(0 < told["ttft"]["p50_s"] <= told["ttft"]["p99_s"] < 5 and told["tpot"]["n"] > 0, f"latencies: {told['ttft']}, {told['tpot']}")
    c.equal(page.complaints + dark.complaints + late.complaints, [], "complaints of the browser")
    c.equal(server.ask("HEAD", "/").header("Content-Type"), "text/html; charset=utf-8", "type of /")
    c.equal(server.ask("POST", "/", {}).status, 405, "POST /")
    c.equal(server.stop(), 0, "exit code")
    page.close()
    late.close()


# ---- a scripted server ------------------------------------------------------------------------------


class Script(http.server.ThreadingHTTPServer):
    """Serves the page, and as /live whatever a test puts into .live: an object, a status, or None for no answer."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, port=0):
        self.live, self.keys = None, []
        script = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                script.keys.append(self.headers.get("Authorization"))
                is_page, live = self.path == "/", script.live
                status = live if isinstance(live, int) and not is_page else 200
                body = LIVE_PAGE.read_bytes() if is_page else json.dumps(live).encode()
                self.send_response(status)
                self.send_header("Content-Type", "text/html; charset=utf-8" if is_page else "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        super().__init__(("127.0.0.1", port), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server_port}/"

    def end(self):
        self.shutdown()
        self.server_close()


def numbers(n_workers, ring_size, n_loops, text="x", **changes):
    """What /live says of a cluster in which worker w is busy for a share that depends on w."""
    rows = [10 * (t + 1) for t in range(n_loops)]
    workers = [{"rank": w + 1, "host": f"{text}{w // 8}", "elapsed_s": 1, "busy_s": 0.2 + 0.6 * (w % 8) / 8, "starved_s": 0.1,
                "waiting_s": 0.05, "batches": 20, "rows": sum(rows), "rows_by_loop": rows, "kv_blocks_used": 40 * (w % 20),
                "kv_blocks": 1000, "parked_rows": w, "sequences": 3, "sent_bytes": 1000} for w in range(n_workers)]
    total = [100 * (t + 1) for t in range(n_loops)]
    return {"version": "0", "model": text, "state": "ready", "message": None, "started_at": 0, "connections": 1, "waiting": 2,
            "running": 3, "uptime_s": 100000, "n_loops": n_loops, "ring_size": ring_size, "tokens_total": sum(total),
            "exits_total": total, "history": [[t + 1 for t in range(n_loops)]] * 120, "window_s": 30, "exits_window": total,
            "ttft": {"n": 2, "p50_s": 0.02, "p99_s": 3}, "tpot": {"n": 2, "p50_s": 0.0001, "p99_s": 0.01},
            "sequences": {"queued": 2, "opening": 0, "running": 3, "closing": 0}, "kv_usage": 0.5, "workers_age_s": 0.5,
            "workers": workers, **changes}


def test_shapes(c, browser):
    """Any cluster: nodes do not overlap or leave the picture, and nothing makes the page wider than its window."""
    script = Script()
    for n, ring, loops, width in ((1, 1, 4, 1320), (3, 3, 2, 700), (8, 8, 8, 1320), (64, 8, 4, 1320), (64, 64, 4, 400), (12, 4, 1, 1000)):
        script.live = numbers(n, ring, loops)
        page = browser.open(script.url, width=width)
        what = f"{n} workers in rings of {ring}, {loops} loops, {width} pixels"
        if c.check(page.wait(f"document.querySelectorAll('#ring .worker').length === {n}"), f"{what}: nodes"):
            circles = page.run("[...document.querySelectorAll('#ring .worker circle:first-of-type')].map(x => "
                               "(b => [b.x + b.width / 2, b.y + b.height / 2, Number(x.getAttribute('r')) + Number(x.getAttribute('stroke-width')) / 2])(x.getBBox()))")
            near = [(i, j) for i, (x, y, r) in enumerate(circles) for j, (u, v, s) in enumerate(circles[:i])
                    if (x - u) ** 2 + (y - v) ** 2 < (r + s) ** 2]
            c.equal(near, [], f"{what}: nodes that overlap")
            c.check(all(r <= x <= 640 - r and r <= y <= 480 - r for x, y, r in circles), f"{what}: a node is out of the picture")
            c.check(page.run("[...document.querySelectorAll('#ring text')].every(t => (b => b.x >= 0 && b.y >= 0 && b.x + b.width <= 640 && b.y + b.height <= 480)(t.getBBox()))"), f"{what}: a text leaves the ring's picture")
            c.check(page.run("document.documentElement.scrollWidth <= innerWidth"), f"{what}: the page is wider than the window")
            c.equal(page.run("document.querySelectorAll('#legend [data-loop]').length"), loops, f"{what}: loops in the legend")
        c.equal(page.complaints, [], f"{what}: complaints")
        page.close()
    script.end()


def test_states(c, browser):
    """Loading, hostile text, draining, lost, locked, gone, back."""
    script = Script()
    script.live = numbers(0, 0, 0, model=None, state="loading", workers_age_s=None, history=[[], []], kv_usage=0,
                          ttft={"n": 0}, tpot={"n": 0}, tokens_total=0)
    page = browser.open(script.url)
    c.check(page.wait("document.getElementById('state').textContent === 'loading'"), "loading is said")
    c.equal(page.complaints, [], "complaints while loading")
    evil = "<img src=x onerror='window.hacked=1'>\"&</script>"
    script.live = numbers(2, 2, 4, evil, state="lost", message=evil)
    c.check(page.wait("document.getElementById('state').textContent === 'lost'"), "lost is said")
    c.equal(text(page, "model"), evil, "a model's name is text")
    c.check(evil in text(page, "notice"), "the reason of the loss is shown as text")
    c.equal(page.run("[document.images.length, window.hacked === undefined]"), [0, True], "text that became markup")
    script.live = 401
    c.check(page.wait("!document.getElementById('key').hidden"), "the key is asked for")
    page.run("document.getElementById('key-text').value = 'secret'; document.querySelector('#key button').click()")
    script.live = numbers(2, 2, 4)
    c.check(page.wait("document.getElementById('state').textContent === 'ready'"), "numbers come with the key")
    c.check("Bearer secret" in script.keys, f"the key is sent: {set(script.keys)}")
    port = script.server_port
    script.end()
    c.check(page.wait("document.getElementById('state').textContent === 'no answer'"), "the page says that the server is gone")
    c.check("does not answer" in text(page, "notice"), f"the notice: {text(page, 'notice')}")
    script = Script(port)
    script.live = numbers(3, 3, 4)
    c.check(page.wait("document.querySelectorAll('#ring .worker').length === 3 && document.getElementById('notice').hidden"),
            "the page recovers, with the ring of the new server")
    odd = [x for x in page.complaints if not x.startswith("Failed to load resource")]
    c.equal(odd, [], "complaints beside the failed requests")
    page.close()
    script.end()


def main():
    c = Checks("e2e_pages")
    if browser_lib.why_not():
        print(f"e2e_pages: skipped: {browser_lib.why_not()}")
        sys.exit(0)
    PICTURES.mkdir(parents=True, exist_ok=True)
    with Browser() as browser:
        c.attempt(test_live_page, browser)
        c.attempt(test_shapes, browser)
        c.attempt(test_states, browser)
    c.close()


if __name__ == "__main__":
    main()
