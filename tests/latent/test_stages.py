"""Batched steps of latent consistency models: the pictures are those that diffusers' pipelines draw one by one."""

import pytest
import torch
from diffusers import LatentConsistencyModelPipeline

from cm_lightning.core.stream_batch import StreamBatch
from cm_lightning.errors import ConfigError
from cm_lightning.images import picture, to_pixels, to_unit_range
from cm_lightning.latent.draw import draw
from cm_lightning.latent.few_step import FewStep
from cm_lightning.latent.pipelines import image_to_image, set_scheduler
from cm_lightning.latent.stages import lcm_stages
from cm_lightning.serve.frames import redraw_frames
from cm_lightning.serve.prompts import PromptDrawer
from cm_lightning.serve.wish import Wish
from tests.latent.tiny import quiet, tiny_sd, tiny_sdxl, unet

FRAMES = to_unit_range(torch.randint(0, 256, (5, 3, 16, 16), generator=torch.Generator().manual_seed(0)))


def embedded():
    """A full LCM, whose network takes the guidance as an input."""
    parts = {name: part for name, part in tiny_sd().components.items() if name not in ("unet", "image_encoder")}
    guided = unet(time_cond_proj_dim=8)
    return quiet(LatentConsistencyModelPipeline(unet=guided, **parts, requires_safety_checker=False))


KINDS = {"epsilon": tiny_sd, "v": lambda: tiny_sd(v_prediction=True), "sdxl": tiny_sdxl, "embedded": embedded}


def pipeline(kind, scheduler="lcm"):
    pipe = KINDS[kind]()
    set_scheduler(pipe, scheduler)
    return pipe


def close(pixels, others):
    """Whether bytes are the same up to the rounding of batched arithmetic."""
    torch.testing.assert_close(pixels.int(), others.int(), rtol=0, atol=1)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_each_frame_gets_the_picture_that_the_pipeline_draws(kind, guidance):
    pipe = image_to_image(pipeline(kind))
    batch = StreamBatch(lcm_stages(pipe, "a b", 4, guidance, 5, strength=0.8))
    assert batch.delay == (3 if kind == "embedded" else 2)  # LCM's own pipeline spreads all steps below the strength
    pictures = [batch.push(frame) for frame in [*FRAMES, *[None] * batch.delay]][batch.delay :]
    for drawn, frame in zip(pictures, FRAMES, strict=True):
        image = picture(to_pixels(frame))
        (expected,) = draw(pipe, ["a b"], 4, guidance, 5, image=image, strength=0.8)
        assert expected.float().std() > 1
        close(drawn, expected)


def test_a_student_with_timesteps_of_its_own():
    model = PromptDrawer(pipeline("epsilon"), "x", FewStep(3, "lcm", timesteps=(939, 559, 199)))
    wish = Wish(prompt="a", strength=1.0)
    assert list(model.stages(wish, None).levels) == [939, 559, 199]
    for frame, drawn in zip(FRAMES, redraw_frames(model, FRAMES, wish, batch_steps=True), strict=True):
        close(drawn.pixels, model.pixels(wish, None, frame))


def test_a_stream_of_batched_steps_repeats_frames_and_counts_passes():
    model, calls = PromptDrawer(pipeline("v"), "x"), []
    wish, frames = Wish(prompt="a b", seed=5, strength=0.5), [FRAMES[0], FRAMES[1], FRAMES[1], FRAMES[2]]
    alone = list(redraw_frames(model, frames, wish, 4, 0.99))
    model.pipe.unet.register_forward_hook(lambda network, inputs, output: calls.append(len(output[0])))
    together = list(redraw_frames(model, frames, wish, 4, 0.99, batch_steps=True))
    told, warm_up = [1, 1], [1, 2, 1]
    assert calls == [*told, *warm_up, 1, 2, 1, 1, 1]
    assert [frame.drawn for frame in together] == [True, True, False, True]
    for one, other in zip(alone, together, strict=True):
        close(one.pixels, other.pixels)


@pytest.mark.parametrize(
    ("scheduler", "wish", "message"),
    [
        ("trailing", {}, "the steps of LCMScheduler can be batched, those of DDIMScheduler cannot: leave it out"),
        ("lcm", {"strength": 0.3}, "x redraws a frame in one step here, so there are none to batch"),
        ("lcm", {"label": 1}, "label: this model takes a prompt in its place"),
    ],
)
def test_what_cannot_be_batched(scheduler, wish, message):
    with pytest.raises(ConfigError, match=message):
        next(redraw_frames(PromptDrawer(pipeline("epsilon", scheduler), "x"), FRAMES, Wish(**wish), batch_steps=True))
