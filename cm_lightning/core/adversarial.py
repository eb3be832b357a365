"""Losses on a generator's samples by a second network: a discriminator, or a denoiser of the samples.

The second network is the critic. Its loss must reach it alone, and the generator's loss the generator alone: give the
critic detached samples, and the generator a critic whose weights are :class:`~cm_lightning.core.held.Held`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as nnf
from torch import Tensor

from cm_lightning.core.noise import expand

#: h(r) = r^2 f''(r) for a divergence f, as a function of log r, where r is the density of the data over that of the
#: samples (f-distill, Xu et al. 2025).
DIVERGENCES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "reverse_kl": torch.ones_like,
    "forward_kl": torch.exp,
    "jensen_shannon": torch.sigmoid,
    "hellinger": lambda log_r: torch.exp(log_r / 2) / 4,
}


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """-log D(real) - log(1 - D(fake)) for logits (B,), a scalar (Goodfellow et al. 2014, Eq. 1)."""
    return nnf.softplus(-real).mean() + nnf.softplus(fake).mean()


def generator_loss(fake: Tensor) -> Tensor:
    """-log D(fake) for logits (B,), the loss that does not saturate (Goodfellow et al. 2014, section 3), a scalar."""
    return nnf.softplus(-fake).mean()


def accuracy(real: Tensor, fake: Tensor) -> Tensor:
    """The share of logits (B,) of the right sign: 0.5 if the discriminator sees no difference, a scalar."""
    return ((real > 0).float().mean() + (fake < 0).float().mean()) / 2


def matching_weight(logits: Tensor, divergence: str) -> Tensor:
    """The weight of samples under a divergence other than KL(samples || data), (B,), with a mean of 1 (f-distill).

    Args:
        logits: logits (B,) of a discriminator of the noisy samples, which are log r at its optimum.
        divergence: a name of :data:`DIVERGENCES`. ``forward_kl`` covers the data, ``reverse_kl`` seeks modes.
    """
    weight = DIVERGENCES[divergence](logits.detach().float().clamp(-10, 10))  # or one sample may outweigh all
    return weight / weight.mean()


def matching_loss(x: Tensor, real: Tensor, fake: Tensor, weight: Tensor | None = None) -> Tensor:
    """Distribution matching (DMD, Yin et al. 2024, Eqs. 7 and 8): a loss whose gradient is that of KL(samples || data).

    Both denoisers estimate the clean image behind the same noisy sample. Where they agree, the loss is 0.

    Args:
        x: samples (B, ...) with gradients.
        real: the estimate by a denoiser of the data (B, ...).
        fake: the estimate by a denoiser of the samples (B, ...).
        weight: factor on the gradient of each sample, (B,); 1 if None.

    Returns:
        0.5 mean (x - sg(x - g))^2 with g = weight (fake - real) / mean |x - real|, a scalar.
    """
    with torch.no_grad():
        x_0, real, fake = x.float(), real.float(), fake.float()
        scale = (x_0 - real).abs().flatten(1).mean(1).clamp(min=1e-8)
        factor = 1 / scale if weight is None else weight / scale
        goal = x_0 - expand(factor, x_0) * (fake - real)
    return 0.5 * nnf.mse_loss(x.float(), goal)
