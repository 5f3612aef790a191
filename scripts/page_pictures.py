#!/usr/bin/env python3
"""Makes docs/live.png and docs/trace_report.png from real runs of the bundled model, four workers on this host.

    make build/carousel && /usr/bin/python3 scripts/page_pictures.py [live] [trace]

The live page after eight clients have streamed for half a minute; the page of a trace of 48 requests in a batch, zoomed
to the way of its slowest token. Needs what `scripts/setup.sh tests` installs.
"""
import json
import pathlib
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from browser_lib import Browser, area, freeze  # noqa: E402
from e2e_lib import DEMO, WORK, run_ok  # noqa: E402
from e2e_pages import Streams  # noqa: E402
from http_lib import Server  # noqa: E402

SECONDS = 35


def live(browser, path):
    server = Server(DEMO, "--workers", 4)
    streams = Streams(server, 8)
    time.sleep(SECONDS)
    page = browser.open(server.url + "/", 1280, 900)
    time.sleep(2)
    freeze(page)
    page.picture(path, True)
    streams.stop()
    server.stop()
    print(f"{path}: {len(streams.exits)} tokens")


def trace(browser, path):
    place = WORK / "pictures"
    place.mkdir(parents=True, exist_ok=True)
    source, out, file, html = (place / name for name in ("in.jsonl", "out.jsonl", "run.json", "run.html"))
    prompts = [json.loads(line)["prompt"] for line in (DEMO / "prompts.jsonl").read_text().splitlines()]
    source.write_text("".join(json.dumps({"prompt": p}) + "\n" for p in prompts[:48]))
    out.unlink(missing_ok=True)
    run_ok("batch", DEMO, "-i", source, "-o", out, "--workers", 4, "-q", 0.5, "--ignore-eos", "--max-tokens", 24, "--quiet",
           "--trace", file)
    print(run_ok("trace", "report", file, "--html", html).out.splitlines()[1])
    page = browser.open(html.as_uri(), 1280, 900)
    page.run("choose(paths.find(p => p.sequence === D.slow.tokens[0].sequence), D.slow.tokens[0])")
    bottom = area(page, "#numbers")[1]
    page.resize(1280, int(bottom))
    page.picture(path)


def main():
    wanted = sys.argv[1:] or ["live", "trace"]
    with Browser() as browser:
        if "live" in wanted:
            live(browser, ROOT / "docs" / "live.png")
        if "trace" in wanted:
            trace(browser, ROOT / "docs" / "trace_report.png")


if __name__ == "__main__":
    main()
