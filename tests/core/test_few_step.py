"""The sampler of students that were distilled for a few steps, against closed forms and against diffusers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from cm_lightning.core.few_step import ddim_step, few_step_sample, trailing_timesteps
from cm_lightning.core.latent import LatentSchedule, Prediction
from cm_lightning.errors import ConfigError
from tests.core.test_latent import ALPHAS, PREDICTIONS, ExactGaussian

STUDENT, TEACHER, HALF = 749, 624, 499


def at(t: int) -> Tensor:
    return torch.tensor([t])


@pytest.mark.parametrize(
    ("steps", "timesteps"),
    [
        (1, [999]),
        (2, [999, 499]),
        (3, [999, 666, 332]),
        (4, [999, 749, 499, 249]),
        (8, [999, 874, 749, 624, 499, 374, 249, 124]),
        (1000, list(range(999, -1, -1))),
    ],
)
def test_trailing_timesteps(steps: int, timesteps: list[int]) -> None:
    assert trailing_timesteps(steps) == timesteps


@pytest.mark.parametrize("steps", [0, 1001, -1])
def test_steps_beyond_the_schedule_are_refused(steps: int) -> None:
    with pytest.raises(ConfigError, match=rf"steps must lie in 1 \.\.\. 1000.*got {steps}"):
        trailing_timesteps(steps)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_steps_of_the_teacher_have_their_closed_form(prediction: Prediction) -> None:
    """Data N(0, 0.25) under Stable Diffusion's schedule, at z_t = 1."""
    schedule = LatentSchedule(ALPHAS, prediction)
    network = ExactGaussian(schedule, 0.5)

    def step(z: Tensor, t: int, q: int) -> Tensor:
        return ddim_step(schedule, z, schedule.clean(network(z, at(t)), z, at(t)), at(t), at(q))

    start = torch.ones(1, dtype=torch.float64)
    middle = step(start, STUDENT, TEACHER)
    assert middle.item() == pytest.approx(0.964546559740, abs=1e-11)
    assert step(middle, TEACHER, HALF).item() == pytest.approx(0.901917880300, abs=1e-11)
    assert step(start, STUDENT, HALF).item() == pytest.approx(0.894836468554, abs=1e-11)


def test_a_student_with_the_right_target_makes_the_teachers_two_steps_in_one() -> None:
    schedule, start = LatentSchedule(ALPHAS), torch.ones(1, dtype=torch.float64)
    clean = schedule.clean(torch.tensor([1.008909564090], dtype=torch.float64), start, at(STUDENT))
    assert clean.item() == pytest.approx(0.084345711404, abs=1e-11)
    assert ddim_step(schedule, start, clean, at(STUDENT), at(HALF)).item() == pytest.approx(0.901917880300, abs=1e-11)


def test_the_start_is_noise_alone() -> None:
    schedule, seen = LatentSchedule(ALPHAS), []

    def predict(z_t: Tensor, t: Tensor) -> Tensor:
        seen.append((z_t, t.tolist()))
        return torch.full_like(z_t, 7.0)

    z = torch.randn(2, 3, dtype=torch.float64)
    assert few_step_sample(predict, schedule, z, [999]).eq(7).all()
    ((first, t),) = seen
    leak = 0.068264914217  # the share of the image in z_999, which the start lacks
    torch.testing.assert_close(first, math.sqrt(1 - leak**2) * z, rtol=0, atol=1e-11)
    assert t == [999, 999]


def test_one_evaluation_for_each_timestep_at_that_timestep() -> None:
    seen: list[int] = []

    def predict(z_t: Tensor, t: Tensor) -> Tensor:
        seen.append(int(t[0]))
        return 0.1 * z_t

    few_step_sample(predict, LatentSchedule(ALPHAS), torch.randn(1, 2), trailing_timesteps(4))
    assert seen == [999, 749, 499, 249]


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_it_is_diffusers_trailing_euler(prediction: Prediction, steps: int) -> None:
    """With a small network whose output depends on the timestep and on all of the latent."""
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="trailing",
        prediction_type=prediction,
    )  # fmt: skip
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 8), norm_num_groups=4,
        layers_per_block=1, down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
    ).requires_grad_(False)  # fmt: skip
    z = torch.randn(2, 4, 8, 8)
    schedule = LatentSchedule(scheduler.alphas_cumprod, prediction)

    scheduler.set_timesteps(steps)
    theirs = z * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        output = unet(scheduler.scale_model_input(theirs, t), t).sample
        theirs = scheduler.step(output, t, theirs).prev_sample

    def predict(z_t: Tensor, t: Tensor) -> Tensor:
        return schedule.clean(unet(z_t, t).sample, z_t, t)

    ours = few_step_sample(predict, schedule, z, trailing_timesteps(steps))
    assert theirs.std() > 0.1
    assert ((ours - theirs).abs() / theirs.abs().clamp(min=1)).max() < 1e-4
