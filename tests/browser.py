"""A headless Chromium that tests drive as a person would: real clicks and keys, over its debugging pipe."""

import base64
import itertools
import json
import os
import shutil
import subprocess
import time

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking"]
FLAGS += ["disable-component-update", "disable-sync", "remote-debugging-pipe", "hide-scrollbars"]
KEYS = {"Enter": (13, "\r"), "Escape": (27, ""), "ArrowUp": (38, ""), "ArrowDown": (40, ""), "Tab": (9, "")}


class Browser:
    """One window. ``errors`` are the exceptions that pages threw; ``requests`` what they asked for, files apart."""

    def __init__(self, profile):
        self.errors, self.requests, self._numbers, self._rest = [], [], itertools.count(1), b""
        read, self._to = os.pipe()
        self._from, write = os.pipe()
        options = [f"--{flag}" for flag in ["headless", *FLAGS]] + [f"--user-data-dir={profile}"]
        command = ["bash", "-c", f'exec "$0" "$@" 3<&{read} 4>&{write}', CHROMIUM, *options]
        self._process = subprocess.Popen(command, pass_fds=(read, write), stderr=subprocess.DEVNULL)
        os.close(read)
        os.close(write)
        self._session = None
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network"):
            self.send(f"{domain}.enable")

    def close(self):
        self._session = None
        self.send("Browser.close")
        self._process.wait(30)
        os.close(self._to)
        os.close(self._from)

    def send(self, method, **params):
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params}
        os.write(
            self._to, json.dumps(message | ({"sessionId": self._session} if self._session else {})).encode() + b"\0"
        )
        while True:
            found = self._receive()
            if found.get("id") == number:
                assert "error" not in found, found
                return found["result"]
            if found.get("method") == "Runtime.exceptionThrown":
                self.errors.append(found["params"]["exceptionDetails"])
            if found.get("method") == "Network.requestWillBeSent":
                self.requests.append(found["params"]["request"]["url"])

    def _receive(self):
        while b"\0" not in self._rest:
            more = os.read(self._from, 1 << 20)
            assert more, "the browser went away"
            self._rest += more
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def open(self, path, width=1440, height=900, scheme="light"):
        """Opens a file in a window of a size; below 900 pixels it has a touch screen."""
        small = width < 900
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=small)
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.send("Page.navigate", url="about:blank")
        self.send("Page.navigate", url=path.as_uri())
        self.wait(
            "document.readyState === 'complete' && document.querySelector('#world .node, #world .layer') !== null"
        )

    def run(self, expression):
        found = self.send("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, expression):
        for _ in range(500):
            if self.run(expression):
                return
            time.sleep(0.01)
        raise AssertionError(f"never true: {expression}")

    def middle(self, selector):
        box = f"document.querySelector({json.dumps(selector)}).getBoundingClientRect()"
        return self.run(f"(box => [box.x + box.width / 2, box.y + box.height / 2])({box})")

    def click(self, selector):
        x, y = self.middle(selector)
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def tap(self, selector):
        x, y = self.middle(selector)
        self.send("Emulation.setTouchEmulationEnabled", enabled=True)
        self.send("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
        self.send("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
        self.send("Emulation.setTouchEmulationEnabled", enabled=False)

    def press(self, *keys):
        for key in keys:
            code, text = KEYS.get(key, (0, key))
            shape = {"key": key, "windowsVirtualKeyCode": code or ord(key.upper())}
            self.send("Input.dispatchKeyEvent", type="keyDown", text=text, **shape)
            self.send("Input.dispatchKeyEvent", type="keyUp", **shape)

    def shot(self, path):
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot")["data"]))
