"""Classifier-free guidance (Ho & Salimans 2022): w = guidance_scale - 1, so 0 is the condition alone."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from cm_lightning.core.noise import expand
from cm_lightning.errors import ConfigError


def guided(conditional: Tensor, unconditional: Tensor, w: Tensor) -> Tensor:
    """Classifier-free guidance c + w (c - u) for w (B,).

    A network's output is linear in x0 and epsilon at the same x_t, so guiding it guides both (LCM, Eq. 13).
    """
    return conditional + expand(w, conditional).to(conditional.dtype) * (conditional - unconditional)


def estimates(
    f: Callable[[Tensor, Tensor, Tensor | None], Tensor], x: Tensor, t: Tensor, labels: Tensor, null: int
) -> tuple[Tensor, Tensor]:
    """f(x, t, labels) and f(x, t, null), each (B, ...), evaluated in one batch."""
    classes = torch.cat([labels, torch.full_like(labels, null)])
    conditional, unconditional = f(torch.cat([x, x]), torch.cat([t, t]), classes).chunk(2)
    return conditional, unconditional


def guided_function(
    f: Callable[[Tensor, Tensor, Tensor | None], Tensor], labels: Tensor | None, null: int, w: float
) -> Callable[[Tensor, Tensor], Tensor]:
    """f(x, t, labels) under guidance, as a function of x (B, ...) and t (B,).

    Args:
        f: a denoiser or a consistency function.
        labels: classes (B,); None for an unconditional network.
        null: the null class.
        w: strength of the guidance; 0 costs one evaluation, any other value two, in one batch.
    """
    if w == 0 or labels is None:
        return lambda x, t: f(x, t, labels)

    def both(x: Tensor, t: Tensor) -> Tensor:
        return guided(*estimates(f, x, t, labels, null), x.new_full((len(x),), w))

    return both


def guided_jump(
    flow_map: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor], labels: Tensor | None, null: int, w: float
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """X(x, t, r, labels) under guidance, as a function of x (B, ...), t (B,) and r (B,), which is the same for all.

    Args:
        flow_map: the flow map X.
        labels, null, w: see :func:`guided_function`.
    """

    def jump(x: Tensor, t: Tensor, r: Tensor) -> Tensor:
        def to_r(x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
            return flow_map(x, t, r[:1].expand(len(x)), labels)

        return guided_function(to_r, labels, null, w)(x, t)

    return jump


def guidance_embedding(w: Tensor, width: int = 256) -> Tensor:
    """Sines and cosines of 1000 w, (B,) -> (B, width), for the student's ``time_cond_proj`` (LCM, section 4.2).

    Raises:
        ConfigError: an odd width.
    """
    if width < 4 or width % 2:
        raise ConfigError(f"the guidance embedding needs an even width of at least 4, got {width}")
    half = width // 2
    frequencies = torch.exp(-math.log(10_000.0) / (half - 1) * torch.arange(half, device=w.device))
    angles = 1000.0 * w[:, None].float() * frequencies
    return torch.cat([angles.sin(), angles.cos()], 1)
