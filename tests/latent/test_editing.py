"""Editing with text-to-image models: what is known stays, to the pixel, and the rest is diffusers' own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import (
    AutoPipelineForImage2Image,
    AutoPipelineForInpainting,
    DDIMPipeline,
    LatentConsistencyModelPipeline,
)
from PIL import Image

from cm_lightning.commands import edit_prompt
from cm_lightning.commands.edit import main as edit
from cm_lightning.core.noise import generators
from cm_lightning.errors import CmError, ConfigError
from cm_lightning.images import picture, to_pixels
from cm_lightning.latent.editing import fill, redraw
from cm_lightning.latent.few_step import FewStep
from cm_lightning.latent.pipelines import inpainting, set_scheduler
from tests.latent.tiny import quiet, tiny_sd, tiny_sdxl, unet

IMAGE = torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
MASK = torch.zeros(16, 16, dtype=torch.bool)
MASK[:, :6] = True  # three latents wide


def lcm_pipeline():
    pipe = tiny_sd()
    parts = {name: part for name, part in pipe.components.items() if name != "unet"}
    guided = unet(time_cond_proj_dim=8)
    return quiet(LatentConsistencyModelPipeline(unet=guided, **parts, requires_safety_checker=False))


def pipeline(make, kind="lcm"):
    pipe = make()
    set_scheduler(pipe, kind)
    return pipe


@pytest.fixture(scope="module")
def pipe():
    return pipeline(tiny_sd)


KINDS = [(tiny_sd, "lcm"), (tiny_sd, "trailing"), (tiny_sd, "euler"), (tiny_sdxl, "lcm"), (lcm_pipeline, "lcm")]


@pytest.mark.parametrize("strength", [1.0, 0.5])
@pytest.mark.parametrize(("make", "kind"), KINDS)
def test_known_pixels_are_kept_and_the_others_drawn(make, kind, strength):
    drawn = fill(pipeline(make, kind), ["a b", "c", "a b"], IMAGE, MASK, strength, 2, 1.0, seed=3, batch_size=2)
    assert drawn.shape == (3, 3, 16, 16)
    assert drawn.dtype == torch.uint8
    assert torch.equal(drawn[..., 6:], IMAGE[..., 6:].expand(3, -1, -1, -1))
    assert (drawn[..., :6] != IMAGE[..., :6]).float().mean() > 0.9
    assert not torch.equal(drawn[0], drawn[2])  # each has its own noise


def theirs(kind, pipe, steps, **options):
    other = quiet(kind.from_pipe(pipe))
    image = other("a b", num_inference_steps=steps, guidance_scale=1.0, generator=generators(5, [0]), output_type="pt",
                  image=picture(IMAGE), **options).images  # fmt: skip
    return to_pixels(image * 2 - 1)


def test_what_is_drawn_is_what_diffusers_draws(pipe):
    mask = picture((255 * MASK).to(torch.uint8).expand(3, -1, -1))
    ours = fill(pipe, ["a b"], IMAGE, MASK, 1.0, 3, 1.0, seed=5)
    filled = theirs(AutoPipelineForInpainting, pipe, 3, mask_image=mask, height=16, width=16)
    assert torch.equal(ours[..., :6], filled[..., :6])
    ours = redraw(pipe, ["a b"], IMAGE, 0.5, 4, 1.0, seed=5)
    assert torch.equal(ours, theirs(AutoPipelineForImage2Image, pipe, 4, strength=0.5))


def test_a_result_does_not_depend_on_the_batch(pipe):
    together, alone = (fill(pipe, ["a", "b", "c"], IMAGE, MASK, 1.0, 2, 1.0, batch_size=size).int() for size in (3, 1))
    assert (together - alone).abs().max() <= 1


def test_a_latent_of_which_one_pixel_is_edited_is_drawn_anew(pipe, monkeypatch):
    given = []
    monkeypatch.setattr(
        "cm_lightning.latent.editing.draw_all",
        lambda *_, mask_image, **__: given.append(np.asarray(mask_image)) or 255 - IMAGE[None],
    )
    mask = torch.zeros(16, 16, dtype=torch.bool)
    mask[3, 7] = True
    (drawn,) = fill(pipe, ["a"], IMAGE, mask, 1.0, 2, 1.0)
    assert np.argwhere(given[0][..., 0] == 255).tolist() == [[2, 6], [2, 7], [3, 6], [3, 7]]
    assert (drawn != IMAGE).any(0).nonzero().tolist() == [[3, 7]]


def test_an_lcm_draws_an_image_anew():
    (drawn,) = redraw(pipeline(lcm_pipeline), ["a"], IMAGE, 0.5, 4, 2.0)
    assert drawn.shape == IMAGE.shape
    assert not torch.equal(drawn, IMAGE)


def test_a_model_without_such_a_pipeline_is_named(pipe):
    with pytest.raises(ConfigError, match="--pipeline: diffusers has no AutoPipelineForInpainting of a DDIMPipeline"):
        inpainting(DDIMPipeline(pipe.unet, pipe.scheduler))


@pytest.mark.parametrize("call", [lambda *how: fill(*how[:3], MASK, *how[3:]), redraw])
def test_what_editing_refuses(call, pipe):
    with pytest.raises(ConfigError, match=r"1 steps at strength 0\.5 make less than one step: raise one of them"):
        call(pipe, ["a"], IMAGE, 0.5, 1, 1.0)
    with pytest.raises(ConfigError, match=r"strength must be a number in \(0, 1\]"):
        call(pipe, ["a"], IMAGE, 1.5, 1, 1.0)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A base, and images."""
    root = tmp_path_factory.mktemp("edit")
    tiny_sd().save_pretrained(root / "base")
    picture(IMAGE).save(root / "a.png")
    picture(IMAGE[:, :8]).save(root / "half.png")
    Image.new("RGB", (30, 20), "red").save(root / "large.png")
    for name, colour in (("black", 0), ("white", 255)):
        Image.new("L", (16, 16), colour).save(root / f"{name}.png")
    picture((255 * MASK).to(torch.uint8).expand(3, -1, -1)).save(root / "mask.png")
    return root


@pytest.fixture(autouse=True)
def in_that_folder(files, monkeypatch):
    monkeypatch.chdir(files)


@pytest.fixture
def loaded(pipe, monkeypatch):
    """The base, without reading it once more."""
    monkeypatch.setattr("cm_lightning.latent.pipelines.few_step_pipeline", lambda *_, **__: pipe)


BASE = "--pipeline=base --scheduler=lcm --prompt=a --device=cpu"


def results(line, tmp_path, capsys):
    """The results (N, H, W, C), and what was printed."""
    edit([*line.split(), f"--output={tmp_path / 'x.npz'}"])
    return np.load(tmp_path / "x.npz")["images"], capsys.readouterr().out


def test_the_command_inpaints(tmp_path, capsys, pipe):
    line = f"inpaint {BASE} --image=a.png --mask=mask.png --steps=2 --num_samples=3"
    images, told = results(f"{line} --output={tmp_path / 'sheet.png'}", tmp_path, capsys)
    assert images.shape == (3, 16, 16, 3)
    assert torch.equal(torch.from_numpy(images).permute(0, 3, 1, 2), fill(pipe, ["a"] * 3, IMAGE, MASK, 1.0, 2, 1.0))
    assert "3 results: " in told
    assert "evaluations of the network for each: 2\n" in told
    shown = np.asarray(Image.open(tmp_path / "sheet.png"))  # what is known, and the results
    assert (shown[2:18, 8:18] == np.asarray(Image.open("a.png"))[:, 6:]).all()
    assert (shown[2:18, 2:8] == 128).all()


def test_the_command_outpaints(tmp_path, capsys, loaded):
    images, _ = results(f"outpaint {BASE} --image=half.png --at=8,0 --steps=2", tmp_path, capsys)
    assert images.shape == (1, 16, 16, 3)
    assert (images[0, 8:] == np.asarray(Image.open("half.png"))).all()
    assert images[0, :8].std() > 1


@pytest.mark.parametrize(
    ("line", "evaluations"),
    [("", 2), ("--strength=1", 4), ("--strength=0.25", 1), ("--guidance=2 --negative_prompt=b", 4)],
)
def test_the_strength_is_the_share_of_the_steps(line, evaluations, tmp_path, capsys, loaded):
    images, told = results(f"stroke {BASE} --image=a.png {line}", tmp_path, capsys)
    assert images.shape == (1, 16, 16, 3)
    assert f"evaluations of the network for each: {evaluations}\n" in told


def test_an_image_of_another_size_is_cut_to_what_is_asked_for(tmp_path, capsys, loaded):
    images, _ = results(f"variations {BASE} --image=large.png --resize --num_samples=2", tmp_path, capsys)
    assert images.shape == (2, 16, 16, 3)
    images, _ = results(f"variations {BASE} --image=large.png --resize --height=8 --width=24", tmp_path, capsys)
    assert images.shape == (1, 8, 24, 3)


def test_a_student_is_drawn_as_it_was_distilled(tmp_path, capsys, files):
    FewStep(2, "euler").write(files / "base")
    try:
        line = "inpaint --pipeline=base --prompt=a --device=cpu --image=a.png --mask=mask.png"
        _, told = results(line, tmp_path, capsys)
        assert "evaluations of the network for each: 2\n" in told
        with pytest.raises(ConfigError, match="base was distilled for 2 steps of EulerDiscreteScheduler"):
            edit([*line.split(), "--steps=3"])
    finally:
        (files / "base/few_step.json").unlink()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        *(
            (f"{name} {BASE} --image=a.png", f"{name} needs a model in pixels: give --ckpt_path in place of --pipeline")
            for name in ("colourise", "super-resolution", "denoise", "interpolate")
        ),
        (f"blur {BASE} --image=a.png", "invalid choice: 'blur'"),
        (f"inpaint {BASE} --image=a.png", "inpaint needs --mask"),
        (f"inpaint {BASE} --mask=a.png", "inpaint needs --image"),
        (f"variations {BASE}", "variations needs --image"),
        (f"stroke {BASE} --image=a.png --mask=a.png", "--mask is not an option of stroke, but of inpaint: leave it ou"),
        (f"inpaint {BASE} --image=a.png --mask=a.png --at=0,0", "--at is not an option of inpaint, but of outpaint: l"),
        (f"outpaint {BASE} --image=a.png --resize", "--resize is not an option of outpaint, but of inpaint, stroke, "),
        (f"stroke {BASE} --image=a.png --image=a.png", "stroke takes 1 --image, got 2"),
        (f"stroke {BASE} --image=a.png --height=16", "--height needs --resize: add it, or leave --height out"),
        (f"stroke {BASE} --image=a.png --width=12", "--width: must be a multiple of 8 above 0"),
        (f"stroke {BASE} --image=a.png --strength=0", "--strength: must be a number in (0, 1]"),
        (f"stroke {BASE} --image=a.png --steps=1", "--steps 1 at --strength 0.5 makes less than one step: raise one"),
        (f"stroke {BASE} --image=a.png --negative_prompt=b", "--negative_prompt has no effect without guidance"),
        (f"stroke {BASE} --image=a.png --sigmas=2", "no option --sigmas"),
        (f"stroke {BASE} --image=a.png --output=a.jpg", "--output a.jpg: give a .png, .gif, .npz, or a folder"),
        ("stroke --pipeline=base --image=a.png", "the following arguments are required: --prompt"),
        (f"stroke {BASE} --image=a.png --lora=a:b", "--lora a:b: give PATH or PATH:WEIGHT"),
    ],
)  # fmt: skip
def test_options_are_refused_before_a_model_is_read(line, message, capsys, monkeypatch):
    monkeypatch.setattr(edit_prompt, "load", None)
    with pytest.raises((SystemExit, CmError)) as refused:
        edit(line.split())
    shown = capsys.readouterr().err if isinstance(refused.value, SystemExit) else str(refused.value)
    assert message in shown
    assert len(shown.splitlines()) == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (f"stroke {BASE} --image=none.png", "--image none.png: file not found"),
        (f"stroke {BASE} --image=large.png", "--image large.png has 30 x 20 pixels, and the model draws multiples of"),
        (f"inpaint {BASE} --image=a.png --mask=none.png", "--mask none.png: file not found"),
        (f"inpaint {BASE} --image=a.png --mask=large.png", "--mask large.png has 30 x 20 pixels"),
        (f"inpaint {BASE} --image=a.png --mask=black.png", "--mask black.png is black everywhere"),
        (f"inpaint {BASE} --image=a.png --mask=white.png", "--mask white.png is white everywhere"),
        (f"outpaint {BASE} --image=a.png", "--image a.png has 16 x 16 pixels, the model 16 x 16: outpaint takes a sma"),
        (f"outpaint {BASE} --image=half.png --at=9,0", "--at 9,0: the image ends beyond 16 x 16: give at most 8,0"),
    ],
)  # fmt: skip
def test_files_that_do_not_fit_are_named(line, message, loaded):
    with pytest.raises(CmError) as refused:
        edit(line.split())
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
