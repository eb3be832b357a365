"""The steps by which a latent consistency model redraws images, for batches of frames at different steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import LCMScheduler
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from cm_lightning.core.guidance import guided
from cm_lightning.core.latent import ScaledBoundary
from cm_lightning.core.noise import generators
from cm_lightning.core.sampler import ConsistencyFunction
from cm_lightning.core.stream_batch import Stages
from cm_lightning.errors import ConfigError
from cm_lightning.images import picture, to_pixels
from cm_lightning.latent.base import TextToImageBase
from cm_lightning.latent.draw import draw


@torch.no_grad()
def lcm_stages(pipe: Any, prompt: str, steps: int, guidance: float, seed: int, **options: Any) -> Stages:
    """The steps of an image-to-image pipeline, whose pictures are those of :func:`draw` up to rounding.

    Their timesteps, and the other arguments of the network, are taken from a call of the pipeline itself.

    Args:
        pipe: the pipeline, with LCM's scheduler.
        prompt: the prompt of all images.
        steps: steps of the scheduler, before the strength is applied.
        guidance: guidance_scale of the pipeline; 1 draws without guidance.
        seed: seed of the noise, which is that of the first image under it.
        options: more arguments of the pipeline, among them ``strength``.

    Raises:
        ConfigError: the pipeline has another scheduler, or refuses the number of steps.
    """
    if not isinstance(pipe.scheduler, LCMScheduler):
        given = type(pipe.scheduler).__name__
        raise ConfigError(
            f"batch_steps: the steps of LCMScheduler can be batched, those of {given} cannot: leave it out"
        )
    base = TextToImageBase(pipe)
    blank = torch.zeros(3, base.image_size, base.image_size)
    options["image"] = picture(to_pixels(blank))
    calls = _calls_of_network(pipe, lambda: draw(pipe, [prompt], steps, guidance, seed, **options))
    levels, condition = [int(t) for t, _ in calls], calls[0][1]
    dtype = condition["encoder_hidden_states"].dtype

    def started(image: Tensor, generator: torch.Generator) -> Tensor:
        pixels = pipe.image_processor.preprocess(picture(to_pixels(image)))
        first = torch.tensor(levels[:1], device=pipe.device)
        point: Tensor = pipe.prepare_latents(pixels, first, 1, 1, dtype, pipe.device, generator)
        return point

    (generator,) = generators(seed, [0])
    like = started(blank, generator)  # which draws the noise of encoding and of the first level
    noise = {t: randn_tensor(like.shape, generator, like.device, like.dtype) for t in levels[1:]}

    def noised(x: Tensor, t: float) -> Tensor:
        point: Tensor = pipe.scheduler.add_noise(x, noise[int(t)], torch.tensor([t], device=x.device))
        return point

    return Stages(
        start=lambda image: started(image, *generators(seed, [0])),
        f=_consistency_function(base, condition, guidance),
        levels=levels,
        noised=noised,
        finished=lambda x: to_pixels(_decoded(base, x))[0].cpu(),
    )


def _calls_of_network(pipe: Any, draw: Callable[[], object]) -> list[tuple[Tensor, dict[str, Any]]]:
    """The timestep and the named arguments of each evaluation of the network while something is drawn."""
    calls: list[tuple[Tensor, dict[str, Any]]] = []

    def record(network: object, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        calls.append((inputs[1], named))

    hook = pipe.unet.register_forward_pre_hook(record, with_kwargs=True)
    try:
        draw()
    finally:
        hook.remove()
    return calls


def _consistency_function(base: TextToImageBase, condition: dict[str, Any], guidance: float) -> ConsistencyFunction:
    """f(z_t, t) of LCM's scheduler; the condition has a second row, the first of the two, under guidance."""
    rows = len(condition["encoder_hidden_states"])
    boundary = ScaledBoundary(base.pipe.scheduler.config.timestep_scaling)

    def f(x: Tensor, t: Tensor) -> Tensor:
        output = base.unet(x.repeat(rows, 1, 1, 1), t.repeat(rows), **_repeated(condition, len(x)))[0]
        if rows == 2:
            unconditional, conditional = output.chunk(2)
            output = guided(conditional, unconditional, x.new_full((len(x),), guidance - 1))
        return boundary(x, t, base.schedule.clean(output, x, t)).to(x.dtype)

    return f


def _repeated(value: Any, n: int) -> Any:
    """The same with each row of its tensors n times in succession."""
    if isinstance(value, dict):
        return {name: _repeated(part, n) for name, part in value.items()}
    return value.repeat_interleave(n, 0) if isinstance(value, Tensor) else value


def _decoded(base: TextToImageBase, latents: Tensor) -> Tensor:
    """Images (B, 3, H, W) in [-1, 1] of latents (B, C, h, w), decoded in the precision in which pipelines decode."""
    vae = base.pipe.vae
    if not (base.is_xl and vae.dtype == torch.float16 and vae.config.force_upcast):
        return base.decode(latents)
    vae.float()  # SDXL's autoencoder overflows in float16
    images = base.decode(latents)
    vae.half()
    return images
