"""A real browser for tests: headless Chromium, driven through its WebDriver by the standard library alone."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

_OPTIONS = [
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1160,960"),
    *("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"),  # a camera that films a moving figure
]

needs_browser = pytest.mark.skipif(
    not (shutil.which("chromium") and shutil.which("chromedriver")), reason="Chromium and chromedriver are not here"
)


class Browser:
    """A session of Chromium; a context that ends it."""

    def __init__(self) -> None:
        self.driver = subprocess.Popen(["chromedriver", "--port=0"], stdout=subprocess.PIPE, text=True)
        assert self.driver.stdout
        said = ""
        while not (port := re.search(r"successfully on port (\d+)", said)):
            said = self.driver.stdout.readline()
            assert said, "chromedriver did not start"
        self.url = f"http://127.0.0.1:{port[1]}/session"
        wanted = {"browserName": "chrome", "goog:chromeOptions": {"args": _OPTIONS}}
        self.url += f"/{self._ask('POST', '', {'capabilities': {'alwaysMatch': wanted}})['sessionId']}"

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._ask("DELETE", "")
        finally:
            self.driver.kill()
            self.driver.wait()

    def open(self, url: str) -> None:
        self._ask("POST", "/url", {"url": url})

    def run(self, script: str, *values: Any) -> Any:
        """The value of a function's body of JavaScript, which may be a promise."""
        return self._ask("POST", "/execute/sync", {"script": script, "args": values})

    def wait(self, condition: str, seconds: float = 20.0) -> Any:
        """Wait until an expression of JavaScript is true, and return its value."""
        end = time.monotonic() + seconds
        while not (value := self.run(f"return {condition}")):
            assert time.monotonic() < end, f"{condition} did not come true"
            time.sleep(0.02)
        return value

    def drag(self, selector: str, *places: tuple[float, float]) -> None:
        """Press the pointer in an element, move it along places in shares of its size, and release it."""
        box = self.run(
            "const b = document.querySelector(arguments[0]).getBoundingClientRect();"
            "return [b.x, b.y, b.width, b.height]",
            selector,
        )
        at = [{"x": round(box[0] + x * box[2]), "y": round(box[1] + y * box[3])} for x, y in places]
        moves = [{"type": "pointerMove", "duration": 10, **place} for place in at]
        actions = [moves[0], {"type": "pointerDown", "button": 0}, *moves[1:], {"type": "pointerUp", "button": 0}]
        mouse = {"type": "pointer", "id": "mouse", "parameters": {"pointerType": "mouse"}, "actions": actions}
        self._ask("POST", "/actions", {"actions": [mouse]})

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self._ask("GET", "/screenshot")))

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"}, method=method)
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
            return json.load(answer)["value"]
