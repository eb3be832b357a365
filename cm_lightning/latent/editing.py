"""Editing images with a text-to-image model, which redraws the part under a mask or the whole image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor

from cm_lightning.domains import SHARE
from cm_lightning.errors import ConfigError
from cm_lightning.images import picture
from cm_lightning.latent.draw import draw_all
from cm_lightning.latent.pipelines import image_to_image, inpainting


def fill(
    pipe: Any,
    prompts: Sequence[str],
    image: Tensor,
    mask: Tensor,
    strength: float,
    steps: int,
    guidance: float,
    seed: int = 0,
    batch_size: int = 4,
    **options: Any,
) -> Tensor:
    """Redraw the part of an image that a mask covers.

    The pipeline keeps the rest at each step, but only as latents, from which the autoencoder makes slightly different
    pixels. The known pixels are therefore put back at the end.

    Args:
        pipe: a pipeline of Stable Diffusion's family, with its scheduler set.
        prompts: the prompt of each result.
        image: (3, H, W) uint8; H and W are multiples of 8.
        mask: (H, W) bool, true where the image is redrawn.
        strength: the share of the steps that are taken, in (0, 1]; at 1 nothing remains under the mask.
        steps: steps of the scheduler, before the share is taken.
        guidance: guidance_scale of the pipeline; 1 means no guidance.
        seed: seed of the noise; a result depends only on it and on the result's number.
        batch_size: number of images drawn at a time.
        options: more arguments of the pipeline.

    Returns:
        (N, 3, H, W) uint8, with exactly the image's pixels where the mask is false.

    Raises:
        ConfigError: a number is out of range, or the pipeline refuses the size or the number of steps.
    """
    _check_share(steps, strength)
    factor = pipe.vae_scale_factor
    covered = nnf.max_pool2d(mask[None].float(), factor)  # the latents of which any pixel is redrawn
    covered = covered.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
    pixels = draw_all(
        inpainting(pipe), prompts, steps, guidance, seed, batch_size, image=picture(image), strength=strength,
        mask_image=picture((255 * covered).to(torch.uint8).expand(3, -1, -1)), size=tuple(image.shape[1:]), **options,
    )  # fmt: skip
    return torch.where(mask, pixels, image)


def redraw(
    pipe: Any,
    prompts: Sequence[str],
    image: Tensor,
    strength: float,
    steps: int,
    guidance: float,
    seed: int = 0,
    batch_size: int = 4,
    **options: Any,
) -> Tensor:
    """Draw variations of an image, or an image from strokes (SDEdit): image to image.

    The arguments are those of :func:`fill`. The lower the strength, the more of the image remains.

    Returns:
        (N, 3, H, W) uint8.
    """
    _check_share(steps, strength)
    return draw_all(
        image_to_image(pipe), prompts, steps, guidance, seed, batch_size,
        image=picture(image), strength=strength, **options,
    )  # fmt: skip


def _check_share(steps: int, strength: float) -> None:
    SHARE.check(strength=strength)
    if steps * strength < 1:
        raise ConfigError(f"{steps} steps at strength {strength:g} make less than one step: raise one of them")
