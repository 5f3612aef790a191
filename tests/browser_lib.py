"""A headless Chromium that tests talk to: pages opened, scripts evaluated, pictures taken, complaints kept.

It speaks the DevTools protocol over two pipes (JSON, each message ended by a NUL), so neither a port nor a package is
needed. What a page writes to its console as an error, exceptions nobody caught and requests that failed are collected
in Page.complaints: a test says which of them it expected.
"""
import base64
import json
import os
import pathlib
import select
import shutil
import subprocess
import tempfile
import time

from e2e_lib import Failure, stop_group


# The loops' colours, as both pages have them.
LOOPS = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#d8c900", "#8259b0"]


def why_not():
    """What is missing for looking at pages, or None."""
    try:
        import matplotlib.image  # noqa: F401
    except ImportError:
        return "no matplotlib to read pictures with; scripts/setup.sh tests installs it"
    return None if find() else "no program chromium; scripts/setup.sh tests installs it"


def find():
    """The program, or None."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Browser:
    def __init__(self):
        self.profile = tempfile.mkdtemp(prefix="carousel-browser-")
        to_read, self.to = os.pipe()
        self.of, to_write = os.pipe()
        # Descriptors 3 and 4 are what --remote-debugging-pipe reads and writes; /dev/shm is small in containers.
        command = [find(), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
                   "--no-first-run", "--disable-extensions", "--disable-background-networking", "--disable-sync",
                   "--force-device-scale-factor=1", "--remote-debugging-pipe", f"--user-data-dir={self.profile}"]
        self.process = subprocess.Popen(
            # By way of numbers that are neither 3 nor 4.
            ["bash", "-c", f'exec 18<&{to_read} 19>&{to_write} 3<&18 4>&19 18<&- 19>&-; exec "$@"', "bash", *command],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            pass_fds=(to_read, to_write), start_new_session=True, env={**os.environ, "HOME": self.profile})
        os.close(to_read)
        os.close(to_write)
        self.buffer, self.last_id, self.pages = b"", 0, {}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        try:
            self.call("Browser.close", timeout=5)
            self.process.wait(timeout=5)
        except (Failure, OSError, subprocess.TimeoutExpired):
            pass
        stop_group(self.process)
        os.close(self.to)
        os.close(self.of)
        shutil.rmtree(self.profile, ignore_errors=True)

    def read_message(self, until):
        """The next message, or None when the time is over."""
        while b"\0" not in self.buffer:
            left = until - time.monotonic()
            if left <= 0 or not select.select([self.of], [], [], left)[0]:
                return None
            piece = os.read(self.of, 1 << 20)
            if not piece:
                raise Failure(f"the browser has ended with {self.process.poll()}")
            self.buffer += piece
        message, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(message)

    def take_events(self, message):
        page = self.pages.get(message.get("sessionId"))
        if page and "method" in message:
            page.take_event(message["method"], message["params"])

    def call(self, method, params=None, session=None, timeout=20):
        self.last_id += 1
        request = {"id": self.last_id, "method": method, "params": params or {}}
        if session:
            request["sessionId"] = session
        data = json.dumps(request).encode() + b"\0"
        while data:
            data = data[os.write(self.to, data):]
        until = time.monotonic() + timeout
        while True:
            message = self.read_message(until)
            if message is None:
                raise Failure(f"the browser does not answer {method} within {timeout} s")
            if message.get("id") == request["id"]:
                if "error" in message:
                    raise Failure(f"{method}: {message['error']}")
                return message["result"]
            self.take_events(message)

    def open(self, url, width=1320, height=1000, is_dark=False, has_scripts=True):
        return Page(self, url, width, height, is_dark, has_scripts)


class Page:
    def __init__(self, browser, url, width, height, is_dark, has_scripts):
        self.browser, self.complaints = browser, []
        target = browser.call("Target.createTarget", {"url": "about:blank"})["targetId"]
        self.target = target
        self.session = browser.call("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        browser.pages[self.session] = self
        for method in ("Runtime.enable", "Log.enable", "Page.enable"):
            self.call(method)
        self.resize(width, height)
        self.call("Emulation.setEmulatedMedia",
                  {"features": [{"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}]})
        if not has_scripts:
            self.call("Emulation.setScriptExecutionDisabled", {"value": True})
        self.call("Page.navigate", {"url": url})
        self.wait("document.readyState === 'complete'")

    def call(self, method, params=None, timeout=20):
        return self.browser.call(method, params, self.session, timeout)

    def take_event(self, method, params):
        if method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.complaints.append(" ".join(str(a.get("value", a.get("description"))) for a in params["args"]))
        elif method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.complaints.append(details.get("exception", {}).get("description") or details["text"])
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.complaints.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")

    def resize(self, width, height):
        self.call("Emulation.setDeviceMetricsOverride",
                  {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False})

    def run(self, expression, timeout=20):
        """The value of a JavaScript expression; a promise is waited for."""
        done = self.call("Runtime.evaluate", {"expression": expression, "returnByValue": True, "awaitPromise": True},
                         timeout)
        if "exceptionDetails" in done:
            details = done["exceptionDetails"]
            raise Failure(f"{expression}: {details.get('exception', {}).get('description') or details['text']}")
        return done["result"].get("value")

    def wait(self, expression, timeout=10):
        """Until the expression is true; False: it has not become so."""
        until = time.monotonic() + timeout
        while not self.run(expression):
            if time.monotonic() > until:
                return False
            time.sleep(0.05)
        return True

    def picture(self, path, is_whole=False):
        """A PNG of the window, or of the whole page."""
        what = {"format": "png", "captureBeyondViewport": is_whole}
        if is_whole:
            size = self.call("Page.getLayoutMetrics")["cssContentSize"]
            what["clip"] = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        data = base64.b64decode(self.call("Page.captureScreenshot", what)["data"])
        pathlib.Path(path).write_bytes(data)
        return path

    def mouse(self, kind, x, y, **more):
        """mousePressed, mouseMoved, mouseReleased, mouseWheel, at a place of the window."""
        self.call("Input.dispatchMouseEvent", {"type": kind, "x": x, "y": y, **more})

    def close(self):
        self.browser.call("Target.closeTarget", {"targetId": self.target})
        self.browser.pages.pop(self.session, None)


def read_pixels(path):
    """A PNG as an array [height, width, 3] of 0 .. 255."""
    import matplotlib.image
    import numpy
    return (matplotlib.image.imread(path)[:, :, :3] * 255 + 0.5).astype(numpy.int32)


def count_colour(pixels, colour, tolerance=12):
    """How many pixels have a colour given as "#rrggbb", but for rounding and blending at edges."""
    import numpy
    wanted = numpy.array([int(colour[i:i + 2], 16) for i in (1, 3, 5)])
    return int((abs(pixels - wanted).max(axis=2) <= tolerance).sum())


def area(page, selector):
    """Left, top, right, bottom of an element in a picture of the whole page."""
    return page.run(f"(r => [r.left + scrollX, r.top + scrollY, r.right + scrollX, r.bottom + scrollY])"
                    f"(document.querySelector({json.dumps(selector)}).getBoundingClientRect())")


def cut(pixels, box):
    left, top, right, bottom = (int(round(x)) for x in box)
    return pixels[max(0, top):bottom, max(0, left):right]


def freeze(page):
    """A page that asks its server again and again draws what it has and asks no more, so that document and picture are of
    one moment."""
    page.run("window.setTimeout = () => 0")
    time.sleep(1.3)
