"""Losses on samples of a generator, judged by a second network: a discriminator, or a score of the samples.

The second network is the critic. Its loss must reach it alone, and the generator's loss the generator alone: give the
critic detached samples, and the generator a critic in :func:`held`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from cm_lightning.core.noise import expand


@contextmanager
def held(network: nn.Module) -> Iterator[None]:
    """A context in which gradients pass through a network to its input, but do not reach its weights."""
    trained = [p for p in network.parameters() if p.requires_grad]
    for p in trained:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in trained:
            p.requires_grad_(True)


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """-log D(real) - log(1 - D(fake)) for logits (B,), a scalar (Goodfellow et al. 2014, Eq. 1)."""
    return nnf.softplus(-real).mean() + nnf.softplus(fake).mean()


def generator_loss(fake: Tensor) -> Tensor:
    """-log D(fake) for logits (B,), the loss that does not saturate (Goodfellow et al. 2014, section 3), a scalar."""
    return nnf.softplus(-fake).mean()


def accuracy(real: Tensor, fake: Tensor) -> Tensor:
    """The share of logits (B,) of the right sign: 0.5 for a discriminator that sees no difference, a scalar."""
    return ((real > 0).float().mean() + (fake < 0).float().mean()) / 2


def matching_loss(x: Tensor, real: Tensor, fake: Tensor) -> Tensor:
    """Distribution matching (DMD, Yin et al. 2024, Eqs. 7 and 8): a loss whose gradient is that of KL(samples || data).

    Both estimates are of the clean image behind the same noisy sample. Where they agree, the loss is 0.

    Args:
        x: samples (B, ...) with gradients.
        real: the estimate of a denoiser of the data (B, ...).
        fake: the estimate of a denoiser of the samples (B, ...).

    Returns:
        0.5 mean (x - sg(x - g))^2 with g = (fake - real) / mean |x - real|, a scalar.
    """
    with torch.no_grad():
        x_0, real, fake = x.float(), real.float(), fake.float()
        scale = (x_0 - real).abs().flatten(1).mean(1).clamp(min=1e-8)
        goal = x_0 - (fake - real) / expand(scale, x_0)
    return 0.5 * nnf.mse_loss(x.float(), goal)
