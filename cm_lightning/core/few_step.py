"""Sampling from a student that was distilled for few steps: DDIM without noise (SDXL-Lightning, Lin et al. 2024).

At the first timestep the latent is ``sigma_t z``: noise alone, without a trace of an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from cm_lightning.core.latent import LatentSchedule
from cm_lightning.core.sampler import ConsistencyFunction
from cm_lightning.domains import INTEGER
from cm_lightning.errors import ConfigError


def trailing_timesteps(steps: int, total: int = 1000) -> list[int]:
    """The timesteps of a few-step student, descending from the last one in equal steps: 4 gives 999, 749, 499, 249.

    Raises:
        ConfigError: not 1 <= steps <= total.
    """
    INTEGER.check(steps=steps)
    if not 1 <= steps <= total:
        raise ConfigError(f"steps must lie in 1 ... {total}, the timesteps of the noise schedule; got {steps}")
    return [round(total - i * total / steps) - 1 for i in range(steps)]


def ddim_step(schedule: LatentSchedule, z_t: Tensor, clean: Tensor, t: Tensor, q: Tensor) -> Tensor:
    """Step from t to q (B,), holding fixed the estimate of z_0 (B, ...) and the noise that it implies at z_t."""
    return schedule.step(z_t, schedule.noise(z_t, clean, t), t, q)


def few_step_sample(
    predict_clean: ConsistencyFunction, schedule: LatentSchedule, z: Tensor, timesteps: Sequence[int]
) -> Tensor:
    """Estimate z_0, step to the next timestep, and so on: len(timesteps) evaluations, without fresh noise.

    The result equals that of the scheduler ``EulerDiscreteScheduler(timestep_spacing="trailing")`` of diffusers at
    guidance 0 to the precision of float32. Its last step leads to the estimate itself, so with a single timestep
    the result is what the network predicts of z_0.

    Args:
        predict_clean: (z_t (B, ...), t (B,) int64) -> the estimate of z_0 (B, ...); ``schedule.clean`` reads it from
            the output of a network that predicts epsilon or v.
        schedule: the noise schedule.
        z: unit noise (B, C, h, w).
        timesteps: descending; see :func:`trailing_timesteps`.

    Returns:
        The clean latents (B, C, h, w).
    """
    levels = [torch.full((len(z),), t, dtype=torch.long, device=z.device) for t in timesteps]
    z_t = schedule.point(torch.zeros_like(z), z, levels[0])
    clean = predict_clean(z_t, levels[0])
    for t, q in pairwise(levels):
        z_t = ddim_step(schedule, z_t, clean, t, q)
        clean = predict_clean(z_t, q)
    return clean
