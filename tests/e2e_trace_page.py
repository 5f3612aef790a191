#!/usr/bin/python3
"""The page of `carousel trace report --html`, looked at in a headless Chromium: what it drew is what the trace's file and
`--json` say.

Two traces: a real run over MPI, whose batches are all on the page, and a simulated one that is too long for that.
"""
import json
import math
import sys

import browser_lib
from browser_lib import LOOPS, Browser, area, count_colour, cut, read_pixels
from e2e_lib import DEMO, WORK, Checks, run, run_ok

PLACE = WORK / "trace_page"
PROMPTS = [json.loads(line)["prompt"] for line in (DEMO / "prompts.jsonl").read_text().splitlines()]


def read_batches(path):
    """The batches of a trace; the other events are most of a long one, and cost their time."""
    with open(path, encoding="utf-8") as f:
        return [json.loads(line.rstrip(",\n")) for line in f if '"cat":"batch"' in line]


def lane_areas(batches, rank, begin, end, n_loops, shape, has_edges):
    """How many of a lane's pixel columns are for rows of each loop, by the file, and by how many that may differ because a band
    ends at a whole pixel; microseconds. Long batches are told apart by an edge of one column."""
    height, width = shape
    scale, areas, thin = width / (end - begin), [0] * n_loops, [0] * n_loops
    for e in batches:
        if e["pid"] == rank and e["ts"] < end and e["ts"] + e["dur"] > begin:
            columns = (min(e["ts"] + e["dur"], end) - max(e["ts"], begin)) * scale
            if has_edges and e["dur"] * scale > 10 and e["ts"] >= begin:
                columns -= 1
            for t, n in enumerate(e["args"]["by_loop"]):
                share = n / e["args"]["rows"]
                areas[t] += columns * share
                thin[t] += columns * min(share, 1 / height)
    return zip(areas, thin)


def check_lanes(c, page, pixels, batches, n_loops, what):
    """Coloured areas of every lane, against the file."""
    lanes, box = json.loads(page.run("canvas.dataset.lanes")), area(page, "#timeline")
    begin, end = (float(x) / 10 for x in page.run("canvas.dataset.view").split())
    for lane, rank in enumerate(page.run("L.ranks")):
        top = box[1] + lanes["top"] + lane * lanes["height"]
        left = box[0] + lanes["left"]
        picture = cut(pixels, (left, top, left + lanes["width"], top + lanes["height"] - lanes["gap"]))
        size, is_single = picture.shape[0] * picture.shape[1], page.run("isSingle()")
        areas = lane_areas(batches, rank, begin, end, n_loops, picture.shape[:2], is_single)
        for t, (columns, thin) in enumerate(areas):
            painted, wanted = count_colour(picture, LOOPS[t], 3), columns * picture.shape[0]
            c.check(abs(painted - wanted) < 0.06 * wanted + 0.004 * size + thin * picture.shape[0],
                    f"{what}: worker {rank}, loop {t + 1}: {painted} pixels of its colour, {wanted:.0f} by the file")


def check_charts(c, page, report, pixels):
    exits = [loop["exits"] for loop in report["by_loop"]]
    bars = page.run("[...document.querySelectorAll('#exits rect')].map(r => [Number(r.dataset.count), r.getBBox().height])")
    c.equal([b[0] for b in bars], exits, "counts of the exit histogram")
    c.check(all(abs(b[1] / max(x[1] for x in bars) - n / max(exits)) < 0.01 for b, n in zip(bars, exits)), f"heights of the exit histogram: {bars}")
    for i in range(len(exits)):
        box = area(page, f"#exits rect[data-loop='{i + 1}']")
        size = (box[2] - box[0]) * (box[3] - box[1])
        if size > 900:
            c.check(abs(count_colour(cut(pixels, box), LOOPS[i]) - size) < 0.1 * size, f"loop {i + 1}: the bar has its colour")
    # The dots are the medians, on one logarithmic axis.
    dots = [(loop[part]["p50_s"], page.run(f"document.querySelector('#latency g[data-part={part}][data-loop=\"{t + 1}\"] circle').cy.baseVal.value"))
            for t, loop in enumerate(report["by_loop"]) for part in ("hop", "wait", "compute") if loop[part]["p50_s"] > 2e-7]
    low, high = min(dots), max(dots)
    slope = (high[1] - low[1]) / math.log10(high[0] / low[0])
    c.check(slope < 0, "larger is higher")
    for p50, y in dots:
        c.check(abs(low[1] + slope * math.log10(p50 / low[0]) - y) < 1, f"a median of {p50} s is drawn at {y}")
    c.check(page.run("document.querySelectorAll('#latency path.violin').length") >= 2 * len(exits), "violins")


def check_workers(c, page, report):
    shares = page.run("[...document.querySelectorAll('#workers .bar')].map(b => [...b.querySelectorAll('i.loop')].reduce((s, i) => s + i.getBoundingClientRect().width, 0) / b.getBoundingClientRect().width)")
    for found, worker in zip(shares, report["workers"]):
        c.check(abs(found - worker["busy_s"] / worker["elapsed_s"]) < 0.01, f"worker {worker['rank']}: its bar is busy for {found:.3f}")
    c.equal(len(shares), report["n_workers"], "bars of workers")
    totals = [t["total_s"] for t in report["slowest"]["listed"]]
    widths = page.run("[...document.querySelectorAll('#slow .bar')].map(b => [...b.children].reduce((s, i) => s + i.getBoundingClientRect().width, 0) / b.getBoundingClientRect().width)")
    c.equal(len(widths), len(totals), "bars of slow tokens")
    c.check(all(abs(w - t / max(totals)) < 0.01 for w, t in zip(widths, totals)), f"the slow tokens' bars: {widths} for {totals}")


def check_moves(c, page, batches, n_loops):
    """Wheel, dragging, buttons, the way of a sequence."""
    def view():
        return [float(x) for x in page.run("canvas.dataset.view").split()]
    page.run("scrollTo(0, 0)")
    box, whole = area(page, "#timeline"), view()
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    for _ in range(3):
        page.mouse("mouseWheel", x, y, deltaX=0, deltaY=-200)
    page.wait("Number(canvas.dataset.view.split(' ')[0]) > 0")
    near = view()
    c.check(near[1] - near[0] < 0.5 * (whole[1] - whole[0]), f"the wheel zooms in: {whole} became {near}")
    page.mouse("mousePressed", x, y, button="left", clickCount=1)
    page.mouse("mouseMoved", x - 100, y, button="left", buttons=1)
    page.mouse("mouseReleased", x - 100, y, button="left", clickCount=1)
    moved = view()
    c.check(moved[0] > near[0] and abs((moved[1] - moved[0]) - (near[1] - near[0])) < 2, f"dragging to the left moves on: {near} became {moved}")
    page.mouse("mouseMoved", x, y)
    c.check(page.run("document.getElementById('what').textContent").startswith("worker "), "what is under the pointer is told")
    page.picture(PLACE / "near.png", True)
    check_lanes(c, page, read_pixels(PLACE / "near.png"), batches, n_loops, "a part of the run")
    page.run("document.getElementById('all').click()")
    c.equal(view(), whole, "all of it again")
    # One long batch fills the window: its lane is loops by rows, from the bottom up.
    batch = max(batches, key=lambda e: (sum(n > 0 for n in e["args"]["by_loop"]), e["dur"]))
    page.run(f"look({batch['ts'] * 10 + batch['dur'] * 3}, {batch['ts'] * 10 + batch['dur'] * 7})")
    page.picture(PLACE / "batch.png", True)
    lanes, box = json.loads(page.run("canvas.dataset.lanes")), area(page, "#timeline")
    pixels, height = read_pixels(PLACE / "batch.png"), lanes["height"] - lanes["gap"]
    top = round(box[1] + lanes["top"] + (batch["pid"] - 1) * lanes["height"])
    column = round(box[0] + lanes["left"] + 0.53 * lanes["width"])
    seen = [count_colour(pixels[top:top + height, column:column + 1], colour, 3) for colour in LOOPS[:n_loops]]
    wanted = [n / batch["args"]["rows"] * height for n in batch["args"]["by_loop"]]
    c.check(all(abs(a - b) <= 1.5 for a, b in zip(seen, wanted)), f"a batch of {batch['args']['by_loop']} rows has {seen} pixels of each loop, not {wanted}")


def check_path(c, page, report):
    slow = report["slowest"]["listed"][0]
    page.run("document.querySelector('#slow button').click()")
    text = page.run("document.getElementById('path').selectedOptions[0].textContent")
    c.check(text.startswith(f"sequence {slow['sequence']} "), f"the slowest token's sequence is chosen: {text}")
    begin, end = (float(x) * 1e-7 for x in page.run("canvas.dataset.view").split())
    c.check(begin <= slow["at_s"] and end >= slow["at_s"] + slow["total_s"] - 1e-3 and end - begin < 2 * slow["total_s"] + 1e-3,
            f"the window {begin} to {end} s is around the token, {slow['at_s']} s and {slow['total_s']} s long")
    page.picture(PLACE / "path.png", True)
    ink = count_colour(cut(read_pixels(PLACE / "path.png"), area(page, "#timeline")), "#1b1f24")
    c.check(ink > 100, f"the way is drawn: {ink} pixels of ink")
    page.run("s = document.getElementById('path'); s.value = ''; s.dispatchEvent(new Event('change'))")
    page.picture(PLACE / "path.png", True)
    less = count_colour(cut(read_pixels(PLACE / "path.png"), area(page, "#timeline")), "#1b1f24")
    c.check(less < ink / 4, f"and taken away: {less} of {ink} pixels are left")


def test_real_run(c, browser):
    source, out, trace, html = (PLACE / name for name in ("in.jsonl", "out.jsonl", "run.json", "run.html"))
    source.write_text("".join(json.dumps({"prompt": p}) + "\n" for p in PROMPTS[:60]))
    out.unlink(missing_ok=True)
    run_ok("batch", DEMO, "-i", source, "-o", out, "--workers", 2, "-q", 0.3, "--ignore-eos", "--max-tokens", 16, "--trace", trace, "--quiet")
    report = json.loads(run_ok("trace", "report", trace, "--json", "--html", html).out)
    kept = trace.read_bytes()
    same = run("trace", "report", trace, "--html", PLACE / ".." / PLACE.name / "run.json")
    c.check(same.code == 1 and "is the trace itself" in same.err and trace.read_bytes() == kept, f"a page in the trace's place: {same}")
    nowhere = run("trace", "report", trace, "--html", PLACE / "no" / "run.html")
    c.check(nowhere.code == 1 and "no/run.html" in nowhere.err, f"a page that cannot be written: {nowhere}")
    c.check(html.stat().st_size < 1e6, f"{html.stat().st_size} bytes")
    text = html.read_text()
    c.check("@" not in text[:text.index("<body>")].replace("@media", "") and "http://" not in text.replace("http://www.w3.org/2000/svg", "") and "https://" not in text,
            "the page names no other place")
    page, batches = browser.open(html.as_uri(), 1400, 1000), read_batches(trace)
    page.picture(PLACE / "run.png", True)
    pixels = read_pixels(PLACE / "run.png")
    check_lanes(c, page, pixels, batches, 4, "the whole run")
    check_charts(c, page, report, pixels)
    check_workers(c, page, report)
    check_moves(c, page, batches, 4)
    check_path(c, page, report)
    dark = browser.open(html.as_uri(), 1400, 1000, is_dark=True)
    dark.picture(PLACE / "run_dark.png", True)
    pixels = read_pixels(PLACE / "run_dark.png")
    c.check(pixels[4, 4].mean() < 60, "dark")
    check_lanes(c, dark, pixels, batches, 4, "the whole run, dark")
    c.check(dark.run("document.documentElement.scrollWidth <= innerWidth"), "wider than the window")
    plain = browser.open(html.as_uri(), 1400, 1000, has_scripts=False)
    c.equal(plain.run("[...document.querySelectorAll('.picture')].map(p => p.offsetHeight)"), [0] * 4, "without scripts there are no pictures")
    shown = plain.run("document.getElementById('numbers').innerText")
    exits = [str(loop["exits"]) for loop in report["by_loop"]]
    c.check(all(e in shown for e in exits) and str(report["tokens"]) in shown and "worker" in shown, f"but the numbers: {shown[:200]}")
    c.equal(page.complaints + dark.complaints + plain.complaints, [], "complaints")
    for p in (page, dark, plain):
        p.close()


def test_long_run(c, browser):
    """More batches than a page may have: shares of bins, and single ones in a window."""
    trace, html = PLACE / "long.json", PLACE / "long.html"
    run_ok("simulate", "-w", 4, "-r", 10, "-c", 4, "-o", 2000, "--force-exits", ".1,.3,.3,.3", "--trace", trace)
    run_ok("trace", "report", trace, "--html", html)
    c.check(html.stat().st_size < 4e6, f"{html.stat().st_size} bytes")
    page, batches = browser.open(html.as_uri(), 1400, 1000), read_batches(trace)
    trace.unlink()  # 90 MB
    c.check(page.run("!!L.bins && !document.getElementById('middle').hidden"), "the page has bins")
    page.picture(PLACE / "long.png", True)
    check_lanes(c, page, read_pixels(PLACE / "long.png"), batches, 4, "all of a long run")
    page.run("document.getElementById('middle').click()")
    c.check(page.run("isSingle()"), "single batches are a click away")
    page.run("look(from + .5 * (to - from), from + .51 * (to - from))")
    page.picture(PLACE / "long_near.png", True)
    check_lanes(c, page, read_pixels(PLACE / "long_near.png"), batches, 4, "a part of a long run")
    c.equal(page.complaints, [], "complaints")
    page.close()


def main():
    c = Checks("e2e_trace_page")
    if browser_lib.why_not():
        print(f"e2e_trace_page: skipped: {browser_lib.why_not()}")
        sys.exit(0)
    PLACE.mkdir(parents=True, exist_ok=True)
    with Browser() as browser:
        c.attempt(test_real_run, browser)
        c.attempt(test_long_run, browser)
    c.close()


if __name__ == "__main__":
    main()
