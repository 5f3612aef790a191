#!/usr/bin/env python3
"""Makes docs/live.png: the live page of a server whose clients have streamed for half a minute.

    make build/carousel && /usr/bin/python3 scripts/live_picture.py [FILE]

The bundled model, four workers on this host, eight clients with gates between 0.1 and 1. Needs what `scripts/setup.sh tests` installs.
"""
import pathlib
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from browser_lib import Browser  # noqa: E402
from e2e_lib import DEMO  # noqa: E402
from e2e_pages import Streams, freeze  # noqa: E402
from http_lib import Server  # noqa: E402

SECONDS = 35


def main():
    path = sys.argv[1] if len(sys.argv) > 1 else ROOT / "docs" / "live.png"
    server = Server(DEMO, "--workers", 4)
    with Browser() as browser:
        streams = Streams(server, 8)
        time.sleep(SECONDS)
        page = browser.open(server.url + "/", 1280, 900)
        time.sleep(2)
        freeze(page)
        page.picture(path, True)
        streams.stop()
    server.stop()
    print(f"{path}: {len(streams.exits)} tokens")


if __name__ == "__main__":
    main()
