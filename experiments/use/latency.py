"""The live page in headless Chromium: milliseconds from a slider's move to the image on the screen, and a screenshot.

PYTHONPATH=. python experiments/use/latency.py http://127.0.0.1:8000/ [--moves 200] [--screenshot serve.png]
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from tests.browser import Browser

_ZIGZAG = ((0.3, 0.22), (0.5, 0.15), (0.68, 0.25), (0.65, 0.4), (0.48, 0.48), (0.68, 0.6), (0.7, 0.75), (0.5, 0.85))
_MOVES = """
const seed = document.getElementById("seed");
return (async () => {
  for (let i = 0; i < arguments[0]; i += 1) {
    seed.value = 5 + i * 0.02;
    seed.dispatchEvent(new Event("input"));
    await new Promise((resolve) => setTimeout(resolve, 50));
    while (student.busy) await new Promise((resolve) => setTimeout(resolve, 1));
  }
  return delays.slice(-arguments[0]);
})();
"""


def picture(browser: Browser, path: Path) -> None:
    """Draw a 3 with the pointer, wait for the models, and write what the page shows."""
    browser.run("[...document.querySelectorAll('#classes button')].find((b) => b.textContent === '3')?.click()")
    browser.drag("#canvas", *_ZIGZAG, (0.3, 0.8))
    browser.wait("!student.busy && !(teacher && teacher.busy)")
    browser.screenshot(path)
    browser.run("document.getElementById('clear').click()")


def main() -> None:
    """Open the page, take the screenshot, and move the slider."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--moves", type=int, default=200)
    parser.add_argument("--screenshot", type=Path)
    args = parser.parse_args()
    with Browser() as browser:
        browser.open(args.url)
        browser.wait("document.querySelector('#student .cost').textContent")
        if args.screenshot:
            picture(browser, args.screenshot)
        browser.run("teacher = null")  # its evaluations would take the processor while the slider moves
        delays = sorted(browser.run(_MOVES.replace("arguments[0]", str(args.moves))))
        told = browser.run("return document.querySelector('#student .cost').textContent")
    late = delays[-1 - len(delays) // 20]
    print(f"{len(delays)} moves: median {statistics.median(delays):.0f} ms, 95 % within {late:.0f} ms")
    print(f"the last image: {told}")


if __name__ == "__main__":
    main()
