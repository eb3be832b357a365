"""Text-to-image models behind the live page."""

import io

import numpy as np
import pytest
from PIL import Image

from cm_lightning.commands import serve, stream
from cm_lightning.errors import ConfigError
from cm_lightning.latent.draw import draw
from cm_lightning.latent.few_step import FewStep
from cm_lightning.latent.pipelines import image_to_image, set_scheduler
from cm_lightning.serve.painter import Painter
from cm_lightning.serve.prompts import PromptDrawer
from cm_lightning.serve.server import Server
from cm_lightning.serve.wish import Wish
from tests.latent.tiny import tiny_sd
from tests.test_serve import encoded

SIZE = (3, 16, 16)


def pipeline(kind="lcm"):
    pipe = tiny_sd()
    set_scheduler(pipe, kind)
    return pipe


@pytest.fixture(scope="module")
def pipe():
    return pipeline()


@pytest.fixture(scope="module")
def drawer(pipe):
    return PromptDrawer(pipe, "runs/x")


def pixels(drawer, **wish):
    wish = Wish(**wish)
    picture = drawer.draw(wish, wish.steps)
    drawn = np.asarray(Image.open(io.BytesIO(picture.png))).astype(int)
    assert drawn.std() > 1
    return drawn, picture.evaluations


@pytest.mark.parametrize(("guidance", "cost"), [(None, 1), (1.0, 1), (4.0, 2)])
@pytest.mark.parametrize("steps", [1, 3])
def test_a_picture_is_that_of_sample(steps, guidance, cost, drawer, pipe):
    assert drawer.shape == SIZE
    drawn, evaluations = pixels(drawer, prompt="a b", seed=5, steps=steps, guidance=guidance)
    (expected,) = draw(pipe, ["a b"], steps, guidance or 1.0, 5)
    np.testing.assert_array_equal(drawn, expected.permute(1, 2, 0).numpy())
    assert evaluations == steps * cost


def test_its_own_number_of_steps_is_taken_without_another(drawer):
    assert pixels(drawer, prompt="a")[1] == 4


def test_between_two_seeds_pictures_move_smoothly(drawer):
    first, _ = pixels(drawer, prompt="a b", seed=5, steps=3)
    near, _ = pixels(drawer, prompt="a b", seed=5 + 1e-6, steps=3)  # the noise of later steps is the same
    far, _ = pixels(drawer, prompt="a b", seed=5.5, steps=3)
    assert np.abs(near - first).max() <= 1
    assert np.abs(far - first).max() > 5
    below, _ = pixels(drawer, prompt="a b", seed=6 - 1e-6, steps=1)
    assert np.abs(below - pixels(drawer, prompt="a b", seed=6, steps=1)[0]).max() <= 1


@pytest.mark.parametrize(("steps", "strength", "evaluations"), [(4, 0.5, 2), (4, 1.0, 4), (1, 0.3, 1), (2, 0.1, 1)])
def test_a_drawing_is_drawn_anew_in_one_step_at_least(steps, strength, evaluations, drawer, pipe):
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    wish = {"prompt": "a b", "seed": 5.5, "steps": steps, "strength": strength, "image": encoded(image)}
    drawn, counted = pixels(drawer, **wish)
    assert counted == evaluations
    asked = max(steps, int(np.ceil(1 / strength)))
    options = {"image": Image.fromarray(image), "strength": strength}
    (expected,) = draw(image_to_image(pipe), ["a b"], asked, 1.0, 5, **options)
    np.testing.assert_array_equal(drawn, expected.permute(1, 2, 0).numpy())


def test_a_student_is_drawn_as_it_was_distilled():
    student = PromptDrawer(pipeline("trailing"), "runs/x", FewStep(2, "trailing"))
    told = Painter(student).describe()
    assert (told["prompt"], told["steps"], told["default_steps"], told["guidance"]) == (True, [2], 2, None)
    assert pixels(student, prompt="a")[1] == 2
    for other in ({"steps": 3}, {"guidance": 2.0}):
        with pytest.raises(ConfigError, match="runs/x was distilled for 2 steps of DDIMScheduler"):
            pixels(student, prompt="a", **other)


def test_a_class_is_refused(drawer):
    with pytest.raises(ConfigError, match="label: this model takes a prompt in its place"):
        pixels(drawer, label=1)


def test_the_command_serves_a_pipeline_and_its_teacher(tmp_path, monkeypatch, capsys):
    tiny_sd().save_pretrained(tmp_path / "base")
    seen = []

    def interrupted(server):
        seen.append((server.painter.describe(), server.painter.draw(Wish(prompt="a", guidance=3.0, teacher=True))))
        raise KeyboardInterrupt

    monkeypatch.setattr(Server, "serve_forever", interrupted)
    monkeypatch.setattr("cm_lightning.serve.prompts.TEACHER_STEPS", 5)
    serve.main([f"--pipeline={tmp_path / 'base'}", f"--teacher={tmp_path / 'base'}", "--port=0", "--device=cpu"])
    ((told, picture),) = seen
    assert told == {
        "name": str(tmp_path / "base"), "shape": SIZE, "prompt": True, "classes": 0, "guidance": [1.0, 8.0, 1.0],
        "steps": [1, 2, 4, 8], "default_steps": 4, "noise": {"name": "strength", "range": [0.1, 1.0], "value": 0.5},
        "teacher": str(tmp_path / "base"),
    }  # fmt: skip
    assert picture.evaluations == 10
    again = Image.open(io.BytesIO(picture.png))
    (expected,) = draw(pipeline("trailing"), ["a"], 5, 7.5, 0)
    np.testing.assert_array_equal(np.asarray(again), expected.permute(1, 2, 0).numpy())


def test_a_student_with_a_timestep_of_its_own_draws_an_image_anew():
    student = PromptDrawer(pipeline(), "runs/x", FewStep(1, "lcm", timesteps=(399,)))
    image = encoded(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    assert pixels(student, prompt="a", image=image, strength=0.5)[1] == 1


def test_a_stream_of_frames_is_drawn_by_a_prompt(pipe, drawer, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("cm_lightning.serve.prompts.few_step_pipeline", lambda *_, **__: pipe)
    (tmp_path / "frames").mkdir()
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"frames/{i}.png")
    stream.main(["--pipeline=x", "--prompt=a b", "--strength=0.3", "--steps=4", "--seed=5", "--device=cpu",
                 f"--input={tmp_path}/frames", f"--output={tmp_path}/out"])  # fmt: skip
    assert capsys.readouterr().out.startswith("2 frames, ")
    for i, image in enumerate(images):
        expected, _ = pixels(drawer, prompt="a b", seed=5, steps=4, strength=0.3, image=encoded(image))
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / f"out/00000{i}.png")), expected)
