"""The pages in a real browser."""

import os
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

from cm_lightning.export.web import write_page
from cm_lightning.modules.diffusion import DiffusionModule
from cm_lightning.modules.distribution_matching import DistributionMatchingDistillation
from cm_lightning.modules.mean_flow import MeanFlow
from cm_lightning.modules.training import ConsistencyTraining
from cm_lightning.serve.drawer import Drawer
from cm_lightning.serve.painter import Painter
from cm_lightning.serve.wish import Wish
from tests.browser import Browser, needs_browser
from tests.test_serve import draw, make, served, serving

pytestmark = needs_browser
#: The npm package onnxruntime-web, packed or unpacked.
RUNTIME = Path(os.environ.get("ONNXRUNTIME_WEB", Path(__file__).parents[1] / "node_modules/onnxruntime-web"))


@pytest.fixture(scope="module")
def browser():
    with Browser() as browser:
        yield browser


def image(which):
    return f"document.querySelector('#{which} img').src"


def cost(which):
    return f"document.querySelector('#{which} .cost').textContent"


def move(browser, control, value):
    """Move a slider as a user does."""
    browser.run(
        "const e = document.getElementById(arguments[0]); e.value = arguments[1]; e.dispatchEvent(new Event('input'))",
        control,
        value,
    )


def changed(browser, which, before):
    return browser.wait(f"{image(which)} !== '{before}' && {image(which)}")


def test_the_live_page_draws_while_controls_move(browser):
    with served(make(label_dropout=0.1), make(DiffusionModule)) as server:
        browser.open(server.url)
        browser.wait(f"{cost('student')} && {cost('teacher')}")
        assert browser.run(f"return {cost('student')}").startswith("1 evaluation, ")
        assert browser.run(f"return {cost('teacher')}").startswith("7 evaluations, ")
        shown = browser.run(f"return {image('student')}")
        taught = browser.run(f"return {image('teacher')}")

        move(browser, "seed", 7)
        shown = changed(browser, "student", shown)
        changed(browser, "teacher", taught)
        assert browser.run("return document.getElementById('seed-value').textContent") == "7.00"
        expected, _ = draw(server, seed=7, label=0, steps=1)
        np.testing.assert_array_equal(pixels(browser), expected)

        browser.run("document.querySelectorAll('#classes button')[2].click()")
        shown = changed(browser, "student", shown)
        np.testing.assert_array_equal(pixels(browser), draw(server, seed=7, label=2)[0])

        browser.run("[...document.querySelectorAll('#steps button')].find((b) => b.textContent === '4').click()")
        browser.wait(f"{cost('student')}.startsWith('4 evaluations, ')")
        shown = browser.run(f"return {image('student')}")

        browser.drag("#canvas", (0.2, 0.2), (0.8, 0.5), (0.3, 0.8))
        shown = changed(browser, "student", shown)
        assert browser.run("return document.getElementById('clear').disabled") is False
        browser.wait("!student.busy")
        shown = browser.run(f"return {image('student')}")
        move(browser, "noise", 0)
        changed(browser, "student", shown)

        shown = browser.run(f"return {image('student')}")
        browser.run(_DROP)
        shown = changed(browser, "student", shown)
        browser.wait("!student.busy")
        white = browser.run("return painting.pen.getImageData(5, 5, 1, 1).data[0]")
        assert white == 255

        shown = browser.run(f"return {image('student')}")
        browser.run("document.getElementById('clear').click()")
        changed(browser, "student", shown)
        np.testing.assert_array_equal(pixels(browser), draw(server, seed=7, label=2, steps=4)[0])

        delays = browser.run("return window.delays")
        assert delays
        assert all(0 < delay < 20_000 for delay in delays)
        told = browser.run("return document.querySelector('#student .delay').textContent")
        assert told.startswith("on the screen ")
        assert browser.run("return document.getElementById('problem').hidden") is True


#: Drop a white image on the page.
_DROP = """
const canvas = document.createElement("canvas");
canvas.getContext("2d").fillStyle = "#ffffff";
canvas.getContext("2d").fillRect(0, 0, 300, 150);
return new Promise((done) => canvas.toBlob((blob) => {
  const dataTransfer = new DataTransfer();
  dataTransfer.items.add(new File([blob], "white.png", { type: "image/png" }));
  window.dispatchEvent(new DragEvent("drop", { dataTransfer }));
  done();
}));
"""


def pixels(browser):
    """The pixels (H, W, 3) of the model's picture on the page, once it is at rest."""
    browser.wait("!student.busy")
    height, width, values = browser.run(
        "const image = document.querySelector('#student img');"
        "const canvas = document.createElement('canvas');"
        "canvas.width = image.naturalWidth; canvas.height = image.naturalHeight;"
        "const pen = canvas.getContext('2d'); pen.drawImage(image, 0, 0);"
        "return [canvas.height, canvas.width, [...pen.getImageData(0, 0, canvas.width, canvas.height).data]]"
    )
    return np.array(values).reshape(height, width, 4)[..., :3]


def test_a_camera_is_drawn_frame_by_frame(browser):
    with served(make(channels=3)) as server:
        browser.open(server.url)
        browser.wait(cost("student"))
        shown = browser.run(f"return {image('student')}")
        browser.run("document.getElementById('camera').click()")
        for _ in range(3):
            shown = changed(browser, "student", shown)
        assert browser.run("return document.getElementById('camera').ariaPressed") == "true"
        browser.run("window.track = painting.camera.getTracks()[0]; document.getElementById('clear').click()")
        assert browser.run("return [painting.camera, track.readyState]") == [None, "ended"]
        np.testing.assert_array_equal(pixels(browser), draw(server, label=0)[0])


def test_a_model_that_cannot_draw_anew_has_no_canvas(browser):
    with served(make(DistributionMatchingDistillation, teacher="none")) as server:
        browser.open(server.url)
        browser.wait(cost("student"))
        assert browser.run("return document.getElementById('drawing').hidden") is True
        browser.run(_DROP)
        move(browser, "seed", 7)
        browser.wait("document.getElementById('seed-value').textContent === '7.00'")
        np.testing.assert_array_equal(pixels(browser), draw(server, seed=7, label=0)[0])
        assert browser.run("return document.getElementById('problem').hidden") is True


def test_moves_while_a_picture_is_drawn_are_not_queued(browser):
    with served(make()) as server:
        browser.open(server.url)
        browser.wait(cost("student"))
        browser.wait("!student.busy")
        browser.run(
            "window.sent = []; const ask = window.fetch;"
            "window.fetch = (path, options) => { sent.push(JSON.parse(options.body).seed); return ask(path, options) };"
        )
        browser.run(
            "const e = document.getElementById('seed');"
            "for (let i = 1; i <= 40; i++) { e.value = i; e.dispatchEvent(new Event('input')) }"
        )
        browser.wait("!student.busy")
        assert browser.run("return sent") == [1, 40]


def test_a_page_without_classes_and_a_server_that_does_not_answer(browser):
    with served(make(num_classes=0)) as server:
        browser.open(server.url)
        browser.wait(cost("student"))
        assert browser.run("return document.getElementById('classes').hidden") is True
        assert browser.run("return document.getElementById('teacher').hidden") is True
        browser.run("window.fetch = () => Promise.reject(new TypeError())")
        move(browser, "seed", 3)
        browser.wait("!document.getElementById('problem').hidden")
        told = browser.run("return document.getElementById('problem').textContent")
        assert told == "The server does not answer. Does cm-lightning serve still run?"


def test_a_class_of_many_is_typed(browser):
    with served(make(num_classes=30)) as server:
        browser.open(server.url)
        browser.wait(cost("student"))
        shown = browser.run(f"return {image('student')}")
        browser.run(
            "const e = document.querySelector('#classes input');"
            "for (const value of ['', '99', '25']) { e.value = value; e.dispatchEvent(new Event('input')) }"
        )
        changed(browser, "student", shown)
        np.testing.assert_array_equal(pixels(browser), draw(server, label=25)[0])


class Echo(Drawer):
    """In place of a text-to-image model: the brightness of its pictures is the length of the prompt."""

    kind = "anything"

    def __init__(self):
        super().__init__(torch.nn.Identity(), "runs/x", (3, 512, 512))
        self.seen = []

    def pixels(self, wish, steps, drawing):
        self.seen.append((wish, drawing))
        return torch.full((3, 16, 16), len(wish.prompt), dtype=torch.uint8)

    def stages(self, wish, steps):
        raise NotImplementedError

    def controls(self):
        noise = {"name": "strength", "range": [0.1, 1.0], "value": 0.5}
        return {
            "prompt": True,
            "classes": 0,
            "guidance": [1, 8, 1],
            "steps": [2, 4],
            "default_steps": 4,
            "noise": noise,
        }


def test_the_page_of_a_text_to_image_model(browser):
    echo = Echo()
    with serving(Painter(echo)) as server:
        browser.open(server.url)
        browser.wait(cost("student"))
        shown = browser.run(f"return {image('student')}")
        assert browser.run("return document.getElementById('classes').hidden") is True
        browser.run(
            "const e = document.getElementById('prompt'); e.value = 'a lighthouse'; e.dispatchEvent(new Event('input'))"
        )
        changed(browser, "student", shown)
        assert (pixels(browser) == len("a lighthouse")).all()
        assert echo.seen[-1] == (Wish(prompt="a lighthouse", steps=4, guidance=1, strength=0.5), None)

        browser.drag("#canvas", (0.1, 0.5), (0.9, 0.5))
        browser.wait("!student.busy")
        drawing = echo.seen[-1][1]
        assert drawing.shape == (3, 512, 512)
        assert drawing[:, 256, 100:400].max() < -0.5  # a dark stroke
        assert drawing[:, :200].min() > 0.9  # on white
        assert browser.run("return document.getElementById('problem').hidden") is True


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def static(tmp_path):
    """The address at which a folder is served."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path))) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.mark.skipif(not RUNTIME.exists(), reason="ONNXRUNTIME_WEB does not name the npm package onnxruntime-web")
@pytest.mark.parametrize("kind", [ConsistencyTraining, MeanFlow])
def test_the_exported_page_draws_what_torch_draws(kind, browser, static, tmp_path):
    m = make(kind, label_dropout=0.1) if kind is ConsistencyTraining else make(kind, channels=3, num_classes=0)
    write_page(m, tmp_path, RUNTIME)
    browser.open(f"{static}?backend=wasm")
    browser.wait("!document.getElementById('picture').hidden || !document.getElementById('problem').hidden")
    assert browser.run("return document.getElementById('problem').textContent") == ""
    assert browser.run("return document.getElementById('cost').textContent").endswith("by WebAssembly")

    z = torch.randn(1, *m.image_shape)
    drawn = browser.run(
        "return draw(Float32Array.from(arguments[0]), 2).then((values) => [...values])", z.flatten().tolist()
    )
    labels = torch.tensor([2]) if m.num_classes else None
    with torch.no_grad():
        expected = m.one_step(z, labels).clamp(-1, 1)
    assert expected.std() > 0.05
    torch.testing.assert_close(torch.tensor(drawn).reshape(expected.shape), expected, rtol=0, atol=1e-3)

    shown = "document.getElementById('picture').toDataURL()"
    first = browser.run(f"return {shown}")
    move(browser, "seed", 3.5)
    browser.wait(f"{shown} !== '{first}'")
    if m.num_classes:
        browser.wait("!busy")
        first = browser.run(f"return {shown}")
        assert browser.run("return [...document.querySelectorAll('#classes button')].map((b) => b.textContent)") == [
            "0", "1", "2", "any"
        ]  # fmt: skip
        browser.run("document.querySelectorAll('#classes button')[2].click()")
        browser.wait(f"{shown} !== '{first}'")


def mulberry32(seed):
    """The generator, by its published definition, for comparison."""
    counter = seed
    while True:
        counter = (counter + 0x6D2B79F5) % 2**32
        bits = ((counter ^ counter >> 15) * (counter | 1)) % 2**32
        bits ^= (bits + (bits ^ bits >> 7) * (bits | 61)) % 2**32
        yield (bits ^ bits >> 14) / 2**32


def test_the_noise_of_the_exported_page_is_as_documented(browser, static, tmp_path):
    write_page(make(), tmp_path)
    browser.open(static)
    browser.wait("!document.getElementById('problem').hidden")  # the runtime is missing
    told = browser.run("return document.getElementById('problem').textContent")
    assert told.startswith("The network or its runtime could not be loaded: ")

    numbers = mulberry32(7)
    u, v = np.array([next(numbers) for _ in range(10)]).reshape(5, 2).T
    expected = np.sqrt(-2 * np.log(1 - u)) * np.stack([np.cos(2 * np.pi * v), np.sin(2 * np.pi * v)])
    found = browser.run("return [...noiseOf(7, 9)]")
    np.testing.assert_allclose(found, expected.T.ravel()[:9], rtol=1e-12)

    many = np.array(browser.run("return [0, 0.5, 1].map((seed) => [...noiseAt(seed, 4000)])"))
    np.testing.assert_allclose(many.std(1), 1, atol=0.04)
    np.testing.assert_allclose(many.mean(1), 0, atol=0.05)
    assert abs(np.corrcoef(many)[0, 2]) < 0.05
    np.testing.assert_allclose(many[1], (many[0] + many[2]) / 2**0.5, atol=0.1)
