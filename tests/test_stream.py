"""Streams: frames drawn anew as the live page draws them, repeated where they resemble the last one drawn."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

from cm_lightning.commands.stream import main as stream
from cm_lightning.errors import CmError, ConfigError
from cm_lightning.export.folder import write_export
from cm_lightning.images import to_unit_range, write_gif
from cm_lightning.modules.diffusion import DiffusionModule
from cm_lightning.modules.distribution_matching import DistributionMatchingDistillation
from cm_lightning.modules.mean_flow import MeanFlow
from cm_lightning.modules.training import ConsistencyTraining
from cm_lightning.serve.frames import redraw_frames, similarity
from cm_lightning.serve.samples import SampleDrawer
from cm_lightning.serve.wish import Wish
from tests.test_serve import make

FRAMES = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def pictures(drawer, frames, **options):
    return list(redraw_frames(drawer, iter(frames), Wish(sigma=2.0, seed=4), **options))


@pytest.fixture(scope="module")
def drawer():
    return SampleDrawer(make(), "x")


def test_every_frame_is_drawn_as_the_page_draws_it(drawer):
    frames = to_unit_range(FRAMES)
    drawn = pictures(drawer, frames, steps=2)
    assert [picture.drawn for picture in drawn] == [True] * 3
    for picture, frame in zip(drawn, frames, strict=True):
        assert picture.pixels.dtype == torch.uint8
        torch.testing.assert_close(picture.pixels, drawer.pixels(Wish(sigma=2.0, seed=4), 2, frame), rtol=0, atol=0)
        assert 0 < picture.seconds < 20


def test_a_frame_that_resembles_the_last_one_drawn_is_not_drawn(drawer):
    first, other, _ = to_unit_range(FRAMES)
    near, far = first + 0.05 * other, first + 0.4 * other  # at angles of about 3 and 22 degrees
    assert similarity(first, near) > 0.99 > similarity(first, far) > 0.8
    drawer._rows = 0
    drawn = pictures(drawer, [first, near, first, far, far, other], threshold=0.99)
    assert [picture.drawn for picture in drawn] == [True, False, False, True, False, True]
    assert drawer._rows == 3 + 1  # one more, that is not counted, to warm up
    assert drawn[1].pixels is drawn[0].pixels
    assert not torch.equal(drawn[3].pixels, drawn[0].pixels)
    assert all(picture.drawn for picture in pictures(drawer, [first, first]))


def test_a_slow_change_is_noticed(drawer):
    first, other, _ = to_unit_range(FRAMES)
    frames = [torch.lerp(first, other, share) for share in torch.linspace(0, 1, 9)]
    drawn = [picture.drawn for picture in pictures(drawer, frames, threshold=0.95)]
    assert 2 < sum(drawn) < 9


def close(pixels, others):
    """Whether bytes are the same up to the rounding of batched arithmetic."""
    torch.testing.assert_close(pixels.int(), others.int(), rtol=0, atol=1)


@pytest.mark.parametrize(
    ("kind", "options", "steps"),
    [
        (ConsistencyTraining, {}, 2),
        (ConsistencyTraining, {"num_classes": 0}, 4),
        (MeanFlow, {}, 3),
        (DistributionMatchingDistillation, {"teacher": "none", "levels": [80.0, 6.0, 1.5, 0.05]}, 4),
    ],
)
@pytest.mark.parametrize("threshold", [1.0, 0.99])
def test_batched_steps_draw_the_same_pictures(kind, options, steps, threshold):
    model = SampleDrawer(make(kind, **options), "x")
    first, second, third = to_unit_range(FRAMES)
    frames = [first, second, second, third, third, first]
    wish = {"steps": steps, "threshold": threshold}
    alone, together = pictures(model, frames, **wish), pictures(model, frames, **wish, batch_steps=True)
    for one, other in zip(alone, together, strict=True):
        close(one.pixels, other.pixels)
        assert one.drawn == other.drawn
    assert not torch.equal(alone[0].pixels, alone[1].pixels)


@pytest.fixture
def calls(drawer):
    """The batches that the network is called on."""
    seen = []
    hook = drawer.module.backbone.register_forward_hook(lambda network, inputs, output: seen.append(len(output)))
    yield seen
    hook.remove()


WARM_UP = [1, 2, 3, 2, 1]


@pytest.mark.parametrize("n", [1, 2, 5])
def test_batched_steps_take_one_pass_for_each_frame(n, drawer, calls):
    frames = [*to_unit_range(FRAMES), *to_unit_range(FRAMES)][:n]
    drawn = pictures(drawer, frames, steps=3, batch_steps=True)
    assert len(drawn) == n
    assert len(calls) == len(WARM_UP) + n + 2
    assert sum(calls) == sum(WARM_UP) + 3 * n
    assert max(calls[len(WARM_UP) :]) == min(n, 3)


def test_a_repeated_frame_lets_those_in_flight_continue(drawer, calls):
    first, other, _ = to_unit_range(FRAMES)
    pictures(drawer, [first] * 4 + [other], steps=3, threshold=0.99, batch_steps=True)
    assert calls == [*WARM_UP, 1, 1, 1, 1, 1, 1]


def test_the_times_of_batched_steps_overlap(drawer):
    drawn = pictures(drawer, to_unit_range(FRAMES), steps=3, batch_steps=True)
    ends = [picture.at for picture in drawn]
    assert ends == sorted(ends)
    assert drawn[0].seconds == drawn[0].at
    assert sum(picture.seconds for picture in drawn) > ends[-1]
    alone = pictures(drawer, to_unit_range(FRAMES), steps=3)
    assert sum(picture.seconds for picture in alone) == pytest.approx(alone[-1].at)


@pytest.mark.parametrize(("model", "steps"), [(ConsistencyTraining, 1), (DiffusionModule, 7)])
def test_one_step_has_nothing_to_batch(model, steps):
    with pytest.raises(ConfigError, match="batch_steps: x redraws a frame in one step here, so there are none to"):
        pictures(SampleDrawer(make(model), "x"), to_unit_range(FRAMES), steps=steps, batch_steps=True)


@pytest.mark.parametrize(
    ("a", "b", "cosine"),
    [((1, 0), (2, 0), 1), ((1, 0), (0, 3), 0), ((1, 1), (-1, -1), -1), ((3, 4), (4, 3), 0.96), ((0, 0), (1, 0), 0)],
)
def test_similarity_is_the_cosine_of_the_angle(a, b, cosine):
    first, second = (torch.tensor(values, dtype=torch.float32).reshape(1, 1, 2) for values in (a, b))
    assert similarity(first, second) == pytest.approx(cosine)


def test_no_frames_give_no_pictures(drawer):
    assert pictures(drawer, []) == []
    with pytest.raises(ConfigError, match=r"threshold must be a number in \[0, 1\]"):
        pictures(drawer, [], threshold=2.0)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A model, frames in a folder whose names need their numbers, the same as an animation, and frames that rest."""
    root = tmp_path_factory.mktemp("stream")
    for name in ("model", "frames", "still", "empty"):
        (root / name).mkdir()
    write_export(make(), root / "model", 0, "raw")
    for number, pixels in zip((2, 9, 10), FRAMES, strict=True):
        Image.fromarray(pixels[0].numpy()).save(root / f"frames/frame{number}.png")
        Image.fromarray(FRAMES[int(number == 10), 0].numpy()).save(root / f"still/{number}.png")
    (root / "frames/notes.txt").write_text("not a frame")
    (root / "empty/notes.txt").write_text("not a frame")
    (root / "clip.mp4").write_bytes(b"x")
    write_gif(root / "clip.gif", [frame.expand(3, -1, -1) for frame in FRAMES])
    return root


@pytest.fixture(autouse=True)
def in_that_folder(files, monkeypatch):
    monkeypatch.chdir(files)


MODEL = "--ckpt_path=model --device=cpu"


@pytest.mark.parametrize("given", ["frames", "clip.gif"])
def test_the_command_draws_a_folder_and_an_animation(given, tmp_path, capsys, drawer):
    stream(f"{MODEL} --input={given} --sigma=2 --seed=4 --label=1 --output={tmp_path / 'out'}".split())
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["000000.png", "000001.png", "000002.png"]
    for name, frame in zip(names, to_unit_range(FRAMES), strict=True):
        expected = drawer.pixels(Wish(sigma=2.0, seed=4, label=1), None, frame).expand(3, -1, -1)
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out" / name)), expected.permute(1, 2, 0))
    told = capsys.readouterr().out
    assert re.fullmatch(
        r"3 frames, \S+ frames per second, \S+ ms from a frame to its picture \(at most \S+\): \S+out\n", told
    )


def test_the_command_batches_steps_and_keeps_the_order_of_frames(tmp_path, capsys, drawer):
    stream(f"{MODEL} --input=frames --sigma=2 --steps=4 --label=1 --batch-steps --output={tmp_path / 'out'}".split())
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["000000.png", "000001.png", "000002.png"]
    for name, frame in zip(names, to_unit_range(FRAMES), strict=True):
        expected = drawer.pixels(Wish(sigma=2.0, label=1), 4, frame)[0]
        close(torch.from_numpy(np.array(Image.open(tmp_path / "out" / name)))[..., 0], expected)
    assert capsys.readouterr().out.startswith("3 frames, ")


def test_the_command_repeats_frames_and_writes_an_animation(tmp_path, capsys):
    stream(f"{MODEL} --input=still --threshold=0.99 --output={tmp_path / 'x.gif'}".split())
    assert capsys.readouterr().out.startswith("3 frames, 1 of them repeated, ")
    with Image.open(tmp_path / "x.gif") as animation:
        assert animation.n_frames == 2  # Pillow shows one twice as long
        assert animation.info["duration"] == 80


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--input=frames", "give either --ckpt_path, a checkpoint, or --pipeline, a text-to-image model"),
        (MODEL, "the following arguments are required: --input"),
        (f"{MODEL} --input=frames --prompt=a", "--prompt belongs to --pipeline: leave it out"),
        (f"{MODEL} --input=frames --strength=0.5", "--strength belongs to --pipeline: leave it out"),
        (f"{MODEL} --input=frames --lora=a", "--lora belongs to --pipeline: leave it out"),
        ("--pipeline=x --input=frames --sigma=2", "--sigma belongs to --ckpt_path: leave it out"),
        ("--pipeline=x --input=frames --label=0", "--label belongs to --ckpt_path: leave it out"),
        (f"{MODEL} --input=frames --batch-steps --steps=1", "--batch_steps needs several steps for each frame:"),
        (f"{MODEL} --input=frames --batch-steps --sigma=0.004", "batch_steps: model redraws a frame in one step"),
        (f"{MODEL} --input=frames --threshold=1.5", "--threshold: must be a number in [0, 1]"),
        (f"{MODEL} --input=frames --output=a.mp4", "--output a.mp4: give a .gif, or a folder"),
        (f"{MODEL} --input=nowhere", "--input nowhere: found neither as a folder nor as a file"),
        (f"{MODEL} --input=empty", "--input empty does not hold images: give a folder of frames"),
        (f"{MODEL} --input=clip.mp4", "is not a .gif or .webp: make a folder of frames of a video, by ffmpeg -i clip."),
        (f"{MODEL} --input=frames --label=7", "labels must lie in 0 ... 2"),
        (f"{MODEL} --input=frames --guidance=2", "guidance needs a network that was trained with label_dropout"),
    ],
)  # fmt: skip
def test_what_the_command_refuses(line, message, capsys, monkeypatch):
    monkeypatch.setattr("cm_lightning.modules.loading.load_module", lambda path, weights, trust: make())
    with pytest.raises((SystemExit, CmError)) as refused:
        stream(line.split())
    shown = capsys.readouterr().err if isinstance(refused.value, SystemExit) else str(refused.value)
    assert message in shown
    assert len(shown.splitlines()) == 1
