"""The live page's server: its pictures are those of sample, and bad requests do no harm."""

import base64
import http.client
import io
import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import numpy as np
import pytest
import torch
from PIL import Image

from cm_lightning.backbones.embedding import TwoTimesEmbedding
from cm_lightning.backbones.unet import UNet
from cm_lightning.commands import serve
from cm_lightning.core.editing import noise_at
from cm_lightning.core.noise import generators, unit_noise
from cm_lightning.editing import Editor
from cm_lightning.errors import ConfigError
from cm_lightning.images import to_pixels, to_unit_range
from cm_lightning.modules.diffusion import DiffusionModule
from cm_lightning.modules.distribution_matching import DistributionMatchingDistillation
from cm_lightning.modules.mean_flow import MeanFlow
from cm_lightning.modules.training import ConsistencyTraining
from cm_lightning.serve.painter import Painter
from cm_lightning.serve.samples import SampleDrawer
from cm_lightning.serve.server import MOST_AT_ONCE, MOST_BYTES, Server
from cm_lightning.serve.wish import MOST_PIXELS, Wish
from tests.helpers import module as points_module

JSON = {"Content-Type": "application/json"}


def make(kind=ConsistencyTraining, channels=1, num_classes=3, **options):
    torch.manual_seed(0)
    two = {"noise_embedding": TwoTimesEmbedding(8)} if kind is MeanFlow else {}
    m = kind(UNet(channels, 8, (1,), 1, (), num_classes=num_classes, patch=4, **two), (channels, 8, 8), **options)
    for p in m.backbone.parameters():
        torch.nn.init.normal_(p, std=0.2)
    if kind is DiffusionModule:
        m.sampler.default_nfe = m.default_steps = 7
    return m.eval()


def served(module, teacher=None):
    """A server of a module and its teacher."""
    return serving(Painter(SampleDrawer(module, "runs/x"), teacher and SampleDrawer(teacher, "runs/t")))


@contextmanager
def serving(painter):
    """A server in a thread, on a port that the system chooses."""
    with Server(painter, port=0) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def guided():
    return make(label_dropout=0.1, sampling_sigmas={2: [80.0, 3.0]})


@pytest.fixture(scope="module")
def server(guided):
    with served(guided, make(DiffusionModule)) as server:
        yield server


def ask(server, body=None, path="/draw", method="POST", **headers):
    """Status and content of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    try:
        connection.request(method, path, body, {**JSON, **{k.replace("_", "-"): v for k, v in headers.items()}})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def draw(server, **wish):
    """The pixels (H, W, 3) and what else is told."""
    status, content = ask(server, json.dumps(wish))
    answer = json.loads(content)
    assert status == 200, answer
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(answer.pop("image"))))), answer


def refusal(server, *arguments, **options):
    status, content = ask(server, *arguments, **options)
    return status, json.loads(content)["error"]


def shown(images):
    """What a picture shows of a batch of one."""
    return to_pixels(images)[0].expand(3, -1, -1).permute(1, 2, 0).numpy()


def encoded(pixels, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return base64.b64encode(buffer.getvalue()).decode()


PIXELS = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)


@pytest.mark.parametrize(
    ("wish", "evaluations"),
    [
        ({}, 1),
        ({"seed": 7, "label": 2}, 1),
        ({"seed": 7, "label": 2, "steps": 2}, 2),
        ({"label": 1, "guidance": 1.5}, 2),
        ({"label": 3}, 1),  # the null class
    ],
)
def test_a_picture_is_the_sample_of_its_seed(wish, evaluations, server, guided):
    pixels, told = draw(server, **wish)
    expected = guided.sample(
        1, wish.get("steps"), wish.get("label"), generators(wish.get("seed", 0), [0]), guidance=wish.get("guidance", 0)
    )
    np.testing.assert_array_equal(pixels, shown(expected))
    assert told["evaluations"] == evaluations
    assert 0 < told["milliseconds"] < 5000


def test_the_teacher_draws_in_its_own_evaluations(server):
    pixels, told = draw(server, seed=3, label=1, steps=1, teacher=True)
    expected = make(DiffusionModule).sample(1, None, 1, generators(3, [0]))
    np.testing.assert_array_equal(pixels, shown(expected))
    assert told["evaluations"] == 7


def test_between_two_seeds_pictures_move_smoothly(guided):
    def start(seed):
        return guided.sample(1, 2, 0, [noise_at(seed)])

    torch.testing.assert_close(start(4), guided.sample(1, 2, 0, generators(4, [0])), rtol=0, atol=0)
    for whole in (4, 5):  # also in the noise that the second step adds
        torch.testing.assert_close(start(whole + 1e-6), start(whole), rtol=0, atol=1e-3)
        torch.testing.assert_close(start(whole - 1e-6), start(whole), rtol=0, atol=1e-3)
    assert not torch.allclose(start(4), start(4.5), atol=1e-2)
    one_step = Editor(guided, 3, [0], 1).interpolate([4, 5])[1:2]
    torch.testing.assert_close(guided.sample(1, 1, 0, [noise_at(4.5)]), one_step, rtol=0, atol=1e-5)


def test_noise_between_two_seeds_is_as_strong_as_that_of_either():
    for seed in (0.25, 0.5, 0.75):
        z = unit_noise([1, 3, 64, 64], [noise_at(seed)], dtype=torch.float64)
        assert z.dtype == torch.float64
        assert z.std() == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("kind", [ConsistencyTraining, MeanFlow, DiffusionModule])
@pytest.mark.parametrize("text", ["plain", "of a browser"])
def test_a_drawing_is_drawn_anew(kind, text):
    m = make(kind)
    image = ("data:image/png;base64," if text == "of a browser" else "") + encoded(PIXELS)
    picture = SampleDrawer(m, "x").draw(Wish(label=1, seed=5, image=image, sigma=2.0), 2)
    level = m.objective.trajectory.path.level(torch.tensor(2.0)).item() if kind is MeanFlow else 2.0
    ratio = 2.24 / 5.38
    second = m.objective.trajectory.path.level(torch.tensor(2.0 * ratio)).item() if kind is MeanFlow else 2.0 * ratio
    levels = [level] if kind is DiffusionModule else [level, second]
    expected = Editor(m, 1, [1], sigmas=levels, seed=5).redraw(to_unit_range(torch.from_numpy(PIXELS)[None]))
    drawn = np.asarray(Image.open(io.BytesIO(picture.png))).astype(int)
    assert np.abs(drawn - shown(expected)).max() <= 1  # of the rounding of a flow map's time
    assert picture.evaluations == (2 if kind is not DiffusionModule else picture.evaluations)


def test_a_drawing_of_another_size_and_colour_is_fitted():
    wide = np.zeros((20, 40, 3), np.uint8)
    wide[:, 10:30] = (255, 0, 0)  # what remains when the sides are cut off
    grey = Wish(image=encoded(wide)).drawing((1, 5, 5))
    torch.testing.assert_close(grey, torch.full((1, 5, 5), 76 / 127.5 - 1))
    red = Wish(image=encoded(wide, "BMP")).drawing((3, 5, 5))
    torch.testing.assert_close(red, torch.tensor([1.0, -1, -1])[:, None, None].expand(3, 5, 5))
    assert Wish().drawing((1, 5, 5)) is None


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("{", "the body is not JSON"),
        ("", "the body is not JSON"),
        (b"\xff", "the body is not JSON"),
        ("[" * 100_000, "the body is not JSON"),
        ('{"seed": 1' + "0" * 5000 + "}", "the body is not JSON"),
        ("[]", "give an object"),
        ("3", "give an object"),
        ('{"sede": 1}', "unknown value 'sede'; perhaps seed is meant"),
        ('{"seed": "1"}', "seed must be a number from 0"),
        ('{"seed": -1}', "seed must be a number from 0"),
        ('{"seed": 4294967296}', "seed must be a number from 0"),
        ('{"seed": NaN}', "seed must be a number from 0"),
        ('{"seed": null}', "seed must be a number from 0"),
        ('{"seed": true}', "seed must be a number from 0"),
        ('{"steps": 0}', "steps must be a whole number from 1 to 256"),
        ('{"steps": 1.5}', "steps must be a whole number from 1 to 256"),
        ('{"steps": 1000000}', "steps must be a whole number from 1 to 256"),
        ('{"label": 4}', "labels must lie in 0 ... 2"),
        ('{"label": -1}', "label must be a whole number"),
        ('{"label": [1]}', "label must be a whole number"),
        ('{"guidance": Infinity}', "guidance must be a finite number"),
        ('{"sigma": 0}', "sigma must be a finite number above 0"),
        (json.dumps({"sigma": 900, "image": encoded(PIXELS)}), "sigmas must lie in 0.002 ... 80"),
        ('{"strength": 0}', "strength must be a number in (0, 1]"),
        ('{"prompt": 3}', "prompt must be text"),
        ('{"prompt": "a 3"}', "prompt: this model does not take one"),
        ('{"teacher": 1}', "teacher must be true or false"),
        ('{"image": 3}', "image must be an image file in base64"),
        ('{"image": "%%%"}', "image must be an image file in base64"),
        ('{"image": "\u00e4"}', "image must be an image file in base64"),
        ('{"image": ""}', "image cannot be read: give a file of PNG, JPEG, WEBP, GIF, BMP"),
        ('{"image": "AAAA"}', "image cannot be read: give a file of PNG"),
        (json.dumps({"image": encoded(PIXELS)[:60]}), "image cannot be read"),
        (json.dumps({"image": encoded(PIXELS, "EPS")}), "image cannot be read: give a file of PNG"),
        (json.dumps({"image": encoded(PIXELS, "TIFF")}), "image cannot be read: give a file of PNG"),
    ],
)
def test_a_bad_wish_is_refused_in_one_line(body, said, server):
    status, line = refusal(server, body.encode() if isinstance(body, str) else body)
    assert status == 400
    assert said in line
    assert "\n" not in line


def test_a_large_image_is_refused_before_it_is_decoded(server):
    side = int(MOST_PIXELS**0.5) + 1
    bomb = encoded(np.zeros((side, side), np.uint8))  # some kilobytes
    status, line = refusal(server, json.dumps({"image": bomb}))
    assert (status, line) == (400, f"image has {side} x {side} pixels: give at most {MOST_PIXELS:,} in all")


@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        ({"path": "/", "Host": "evil.example"}, 403, "answers to http://127.0.0.1"),
        ({"path": "/model", "method": "GET", "Host": "evil.example:80"}, 403, "answers to http://127.0.0.1"),
        ({"path": "/", "method": "GET", "Host": "[bad"}, 403, "answers to http://127.0.0.1"),
        ({"path": "/other", "method": "GET"}, 404, "page not found"),
        ({"path": "/../server.py", "method": "GET"}, 404, "page not found"),
        ({"path": "/draw", "method": "GET"}, 404, "page not found"),
        ({"path": "/other"}, 404, "path not found"),
        ({"Content_Type": "text/plain"}, 415, "send application/json"),
        ({"body": "x" * (MOST_BYTES + 1)}, 413, "send at most 1,048,576"),
        ({"Content_Length": "two"}, 400, "Content-Length must be a whole number"),
        ({"Content_Length": "-2"}, 400, "Content-Length must be a whole number"),
        ({"body": "0\r\n\r\n", "Transfer_Encoding": "chunked"}, 411, "say the length"),
    ],
)
def test_a_bad_request_is_refused(options, status, said, server):
    found, line = refusal(server, **{"body": "{}", **options})
    assert found == status
    assert said in line


@pytest.mark.parametrize("host", ["localhost", "localhost:1", "127.0.0.1", "127.3.2.1:80", "[::1]:80"])
def test_names_of_this_machine_are_answered(host, server):
    assert ask(server, "{}", Host=host)[0] == 200


@pytest.mark.parametrize(
    ("path", "kind"), [("/", "text/html"), ("/style.css", "text/css"), ("/page.js", "text/javascript")]
)
def test_the_page_is_complete(path, kind, server):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    connection.request("GET", f"{path}?x=1")
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    assert answer.status == 200
    assert answer.headers["Content-Type"].startswith(kind)
    assert "default-src 'self'" in answer.headers["Content-Security-Policy"]
    assert "http" not in text  # nothing is taken from elsewhere


def test_the_model_is_described(server):
    status, content = ask(server, path="/model", method="GET")
    assert status == 200
    assert json.loads(content) == {
        "name": "runs/x", "shape": [1, 8, 8], "classes": 3, "guidance": [0.0, 4.0, 0.0], "steps": [1, 2, 4, 8],
        "default_steps": 1, "noise": {"name": "sigma", "range": [0.2, 40.0], "value": 5.38}, "teacher": "runs/t",
    }  # fmt: skip


def test_many_at_once_are_all_answered_and_each_gets_its_own(server):
    with ThreadPoolExecutor(MOST_AT_ONCE) as threads:
        drawn = list(threads.map(lambda seed: draw(server, seed=seed, label=1), range(MOST_AT_ONCE)))
    for seed, (pixels, told) in enumerate(drawn):
        np.testing.assert_array_equal(pixels, draw(server, seed=seed, label=1)[0])
        assert told["evaluations"] == 1


def test_connections_that_come_before_the_server_accepts_any_wait_for_it(guided):
    with Server(Painter(SampleDrawer(guided, "runs/x")), port=0) as server, ExitStack() as opened:
        address = ("127.0.0.1", server.server_port)
        waiting = [opened.enter_context(socket.create_connection(address, timeout=20)) for _ in range(4 * MOST_AT_ONCE)]
        for connection in waiting:
            connection.sendall(b"GET /other HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            assert [connection.recv(12) for connection in waiting] == [b"HTTP/1.1 404"] * len(waiting)
        finally:
            server.shutdown()
            thread.join()


def test_too_many_at_once_are_told_to_come_again(server):
    taken = [server.places.acquire(blocking=False) for _ in range(MOST_AT_ONCE)]
    try:
        assert all(taken)
        assert refusal(server, "{}") == (503, "too many images are requested at once: try again")
    finally:
        server.places.release(MOST_AT_ONCE)
    assert ask(server, "{}")[0] == 200


def test_a_connection_is_kept_and_one_that_leaves_is_not_an_error(server, capsys):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    connection.connect()
    own = connection.sock
    for _ in range(2):
        connection.request("POST", "/draw", "{}", JSON)
        assert connection.getresponse().read()
        assert connection.sock is own
    connection.close()
    with socket.create_connection(("127.0.0.1", server.server_port)) as half:
        half.sendall(b"POST /draw HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{")
    assert ask(server, "{}")[0] == 200
    assert capsys.readouterr().err == ""


def test_an_error_of_ours_is_a_line_there_and_here(server, monkeypatch, capsys):
    monkeypatch.setattr(server.painter, "draw", lambda wish: 1 / 0)
    status, line = refusal(server, "{}")
    assert (status, line) == (500, "ZeroDivisionError: division by zero")
    assert capsys.readouterr().err == "error: ZeroDivisionError: division by zero\n"


def test_a_model_without_classes_and_teacher():
    painter = Painter(SampleDrawer(make(num_classes=0, channels=3), "x"))
    told = painter.describe()
    assert (told["classes"], told["guidance"], told["teacher"], told["shape"]) == (0, None, None, (3, 8, 8))
    assert painter.draw(Wish()).evaluations == 1
    with pytest.raises(ConfigError, match="a teacher is missing: start the server with --teacher"):
        painter.draw(Wish(teacher=True))
    with pytest.raises(ConfigError, match="unconditional"):
        painter.draw(Wish(label=1))
    with pytest.raises(ConfigError, match="guidance needs a class-conditional network"):
        painter.draw(Wish(guidance=1.0))


def test_a_diffusion_model_is_its_own_teacher():
    painter = Painter(SampleDrawer(make(DiffusionModule), "x"))
    told = painter.describe()
    assert (told["teacher"], told["steps"], told["default_steps"]) == ("x", [5, 7, 9, 17], 5)
    assert painter.draw(Wish(steps=5)).evaluations == 5
    assert painter.draw(Wish(steps=5, teacher=True)).evaluations == 7


def test_a_teacher_without_label_dropout_is_not_guided():
    painter = Painter(SampleDrawer(make(label_dropout=0.1), "x"), SampleDrawer(make(), "t"))
    assert painter.draw(Wish(guidance=1.0)).evaluations == 2
    assert painter.draw(Wish(guidance=1.0, teacher=True)).evaluations == 1


@pytest.mark.parametrize(
    ("make_painter", "said"),
    [
        (lambda: Painter(SampleDrawer(points_module(), "x")), "x does not draw grey or colour images"),
        (
            lambda: Painter(SampleDrawer(make(), "x"), SampleDrawer(make(num_classes=0), "t")),
            "--teacher t draws 8 x 8 pixels, 1 channel, but x draws 8 x 8 pixels, 1 channel, 3 classes: give models",
        ),
    ],
)
def test_models_that_do_not_fit_are_refused(make_painter, said):
    with pytest.raises(ConfigError, match=said):
        make_painter()


def test_a_port_that_is_taken_is_told(server):
    with pytest.raises(
        ConfigError, match=rf"--port {server.server_port} of 127.0.0.1 cannot be used \(address already"
    ):
        Server(server.painter, port=server.server_port)


@pytest.mark.parametrize("host", ["no.such.host.invalid", "a b", "203.0.113.9"])
def test_an_address_of_elsewhere_is_told(host, server):
    with pytest.raises(ConfigError, match=f"--host {host}|--port 0 of {host} cannot be used"):
        Server(server.painter, host, 0)


def test_other_machines_are_let_in_under_any_name(server):
    with Server(server.painter, "0.0.0.0", 0) as open_to_all:
        assert not open_to_all.local
    assert server.local


@pytest.fixture
def command(monkeypatch):
    """Run the command with this model, in a server that Ctrl-C ends at once."""
    monkeypatch.setattr("cm_lightning.modules.loading.load_module", lambda path, weights, trust: make())

    def interrupted(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(Server, "serve_forever", interrupted)
    return lambda *options: serve.main(["--ckpt_path=x", "--port=0", "--device=cpu", *options])


def test_the_command_says_where_the_page_is_and_ends_by_ctrl_c(command, monkeypatch, capsys):
    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    command("--open")
    said = capsys.readouterr()
    assert said.out == f"{opened[0]}  (Ctrl-C ends it)\n\n"
    assert opened[0].startswith("http://127.0.0.1:")
    assert said.err == ""
    command("--host=0.0.0.0", "--teacher=t")
    assert capsys.readouterr().err == "note: anyone who can reach this machine can use the page\n"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", "give either --ckpt_path, a checkpoint, or --pipeline"),
        ("--ckpt_path=x --pipeline=y", "give either --ckpt_path, a checkpoint, or --pipeline"),
        ("--ckpt_path=x --lora=y", "--lora belongs to --pipeline: leave it out"),
        ("--ckpt_path=x --dtype=float16", "--dtype belongs to --pipeline: leave it out"),
        ("--pipeline=x --weights=raw", "--weights belongs to --ckpt_path: leave it out"),
        ("--pipeline=x --trust=y", "--trust belongs to --ckpt_path: leave it out"),
    ],
)
def test_options_that_do_not_go_together_are_refused(line, said, capsys):
    with pytest.raises(SystemExit):
        serve.main(line.split())
    assert f"error: {said}" in capsys.readouterr().err


@pytest.mark.parametrize("port", ["-1", "65536", "x", "1.5"])
def test_a_port_outside_the_range_is_refused(port, command, capsys):
    with pytest.raises(SystemExit):
        command(f"--port={port}")
    assert "--port: must be a whole number from 0 to 65535" in capsys.readouterr().err


def test_a_generator_of_few_steps_draws_anew_at_its_own_levels():
    m = make(DistributionMatchingDistillation, teacher="none", levels=[80.0, 6.0, 1.5])
    drawer = SampleDrawer(m, "x")
    assert drawer.controls()["noise"] == {"name": "sigma", "range": [1.5, 40.0], "value": 5.38}
    picture = drawer.draw(Wish(label=1, seed=5, image=encoded(PIXELS), sigma=5.0), 2)
    expected = Editor(m, 1, [1], sigmas=[6.0, 1.5], seed=5).redraw(to_unit_range(torch.from_numpy(PIXELS)[None]))
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(picture.png))), shown(expected))
    assert picture.evaluations == 2


def test_a_generator_of_one_step_draws_samples_and_takes_no_drawings():
    drawer = SampleDrawer(make(DistributionMatchingDistillation, teacher="none"), "x")
    assert drawer.controls()["noise"] is None
    assert drawer.draw(Wish(seed=3), None).evaluations == 1
    with pytest.raises(ConfigError, match="was trained at noise level 80 alone, where nothing of an image is left"):
        drawer.draw(Wish(image=encoded(PIXELS)), None)
