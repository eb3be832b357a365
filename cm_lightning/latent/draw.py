"""Images from prompts by diffusers' pipelines: each from its own noise, in whatever batch it is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cm_lightning.core.noise import generators, unit_noise
from cm_lightning.domains import COUNT, INTEGER, NON_NEGATIVE
from cm_lightning.errors import ConfigError
from cm_lightning.images import to_pixels

#: Arguments of a pipeline that apply to each prompt.
_EACH = ("image", "mask_image", "negative_prompt")


def draw(
    pipe: Any,
    prompts: Sequence[str],
    steps: int,
    guidance: float,
    seed: int = 0,
    first: int = 0,
    size: tuple[int, int] | None = None,
    **options: Any,
) -> Tensor:
    """Draw images (B, 3, H, W) uint8, returned on the CPU.

    Args:
        pipe: a pipeline of Stable Diffusion's family, with its scheduler set.
        prompts: the B prompts.
        steps: steps of the scheduler. Each takes one evaluation of the network, or two under guidance that is not baked
            in.
        guidance: guidance_scale of the pipeline; 1 draws without guidance.
        seed: seed of the noise.
        first: the number of the first image; image number i has the same noise in every batch.
        size: (height, width) in pixels; the default of the model if None.
        options: more arguments of the pipeline; ``image``, ``mask_image`` and ``negative_prompt`` apply to each
            prompt. ``latents`` are unit noise in place of the seed's, whose later noise, that of the scheduler's steps,
            stays the same.

    Raises:
        ConfigError: a number is out of range, or the pipeline refuses the size or the number of steps.
    """
    COUNT.check(steps=steps)
    NON_NEGATIVE.check(guidance=guidance)
    INTEGER.check(seed=seed)
    if size:
        options |= {"height": size[0], "width": size[1]}
    options |= {name: [options[name]] * len(prompts) for name in _EACH if name in options}
    noise = generators(seed, range(first, first + len(prompts)))
    if "latents" in options:
        unit_noise(options["latents"].shape, noise)  # as the pipeline would have drawn from them
    try:
        images: Tensor = pipe(
            prompt=list(prompts),
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=noise,
            output_type="pt",
            **options,
        ).images
    except ValueError as error:  # such as sizes that do not divide by 8, or more steps than the scheduler has
        raise ConfigError(f"the pipeline cannot draw this: {str(error).strip().splitlines()[0]}") from error
    return to_pixels(images * 2 - 1).cpu()


def evaluations(pipe: Any, steps: int, guidance: float) -> int:
    """Evaluations of the network for an image (NFE): twice the steps if guidance is applied during sampling."""
    embedded = pipe.unet.config.time_cond_proj_dim is not None
    return steps * (1 if embedded or guidance <= 1 else 2)


@torch.no_grad()
def draw_all(
    pipe: Any, prompts: Sequence[str], steps: int, guidance: float, seed: int, batch_size: int, **options: Any
) -> Tensor:
    """Call :func:`draw` for any number of prompts, in batches."""
    COUNT.check(batch_size=batch_size)
    return torch.cat(
        [
            draw(pipe, prompts[i : i + batch_size], steps, guidance, seed, i, **options)
            for i in range(0, len(prompts), batch_size)
        ]
    )
