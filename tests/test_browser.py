"""The pages in a real browser."""

import numpy as np
import pytest

from cm_lightning.modules.diffusion import DiffusionModule
from tests.browser import Browser, needs_browser
from tests.test_serve import draw, make, served

pytestmark = needs_browser


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
        move(browser, "sigma", 0)
        changed(browser, "student", shown)

        delays = browser.run("return window.delays")
        assert delays
        assert all(0 < delay < 20_000 for delay in delays)
        told = browser.run("return document.querySelector('#student .delay').textContent")
        assert told.startswith("on the screen ")
        assert browser.run("return document.getElementById('problem').hidden") is True


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
