"""Classifier-free guidance (Ho & Salimans 2022): w = guidance_scale - 1, so w = 0 uses the condition alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cm_lightning.core.noise import expand
from cm_lightning.domains import ABOVE_ONE, POSITIVE
from cm_lightning.errors import ConfigError
from cm_lightning.recording import Recorded


class Guidance(NamedTuple):
    """Classes and the guidance that a network is conditioned on: the condition of a flow map in place of classes."""

    #: (B,)
    labels: Tensor
    #: (B,) 1 - 1/omega in [0, 1); 0 means no guidance.
    strength: Tensor
    #: (B,) the lowest and the highest t that are guided.
    low: Tensor
    high: Tensor

    @staticmethod
    def of(labels: Tensor, omega: float, low: float = 0.0, high: float = 1.0) -> Guidance:
        """Guidance that is the same for all samples."""
        numbers = (1 - 1 / omega, low, high)
        return Guidance(labels, *(torch.full_like(labels, number, dtype=torch.float32) for number in numbers))

    def in_force(self, t: Tensor) -> Tensor:
        """The strength at levels t (B,): 0 outside the interval."""
        return self.strength * ((t >= self.low) & (t <= self.high))

    def with_null(self, null: int) -> Guidance:
        """The samples under their classes, followed by the same samples under the null class, (2B,)."""
        classes = torch.cat([self.labels, torch.full_like(self.labels, null)])
        return Guidance(classes, *(torch.cat([part, part]) for part in self[1:]))


class GuidanceLaw(Recorded):
    """The guidance of the samples of a batch: ln omega uniform, the interval from below 1/2 to above it (iMF).

    Args:
        largest: the largest omega, above 1.
    """

    def __init__(self, largest: float = 8.0) -> None:
        ABOVE_ONE.check(self, largest=largest)
        self.largest = largest

    def draw(self, labels: Tensor, generator: torch.Generator | None = None) -> Guidance:
        """The guidance of samples of the classes (B,)."""
        u, low, high = torch.rand(3, len(labels), dtype=torch.float32, device=labels.device, generator=generator)
        return Guidance(labels, 1 - self.largest**-u, low / 2, (1 + high) / 2)


class GuidanceInput:
    """Adapts a network that takes strength and interval with t and t - r to the condition :class:`Guidance`.

    Where r is t an interval only decides whether t is guided, and the null class is never guided. So the network is
    then given the strength in force and the whole interval: all such samples teach it the same velocities.

    Args:
        network: (x, labels (B, 5), classes) -> (B, ...).
        null: the null class.
        noise_scale: the factor on both times.
    """

    def __init__(self, network: Callable[..., Tensor], null: int, noise_scale: float = 1.0) -> None:
        POSITIVE.check(self, noise_scale=noise_scale)
        self.network, self.null, self.noise_scale = network, null, noise_scale

    def __call__(self, x: Tensor, times: Tensor, c: Any = None) -> Tensor:
        """(B, ...), (B, 2), guidance, classes (B,) or None -> (B, ...)."""
        if not isinstance(c, Guidance):
            c = Guidance.of(times.new_full((len(x),), self.null, dtype=torch.long) if c is None else c, 1.0)
        return self.network(x, torch.cat([times, self._inputs(times, c).to(times.dtype)], 1), c.labels)

    def _inputs(self, times: Tensor, c: Guidance) -> Tensor:
        t, gap = times.unbind(1)
        null = c.labels == self.null
        whole = null | (gap == 0)
        strength = torch.where(whole, c.in_force(t / self.noise_scale), c.strength)
        return torch.stack(
            [torch.where(null, 0.0, strength), torch.where(whole, 0.0, c.low), torch.where(whole, 1.0, c.high)], 1
        )


def guided(conditional: Tensor, unconditional: Tensor, w: Tensor) -> Tensor:
    """Classifier-free guidance c + w (c - u) for w (B,).

    A network's output is linear in x0 and epsilon at the same x_t, so guiding it guides both (LCM, Eq. 13).
    """
    return conditional + expand(w, conditional).to(conditional.dtype) * (conditional - unconditional)


def estimates(
    f: Callable[[Tensor, Tensor, Any], Tensor], x: Tensor, t: Tensor, labels: Tensor | Guidance, null: int
) -> tuple[Tensor, Tensor]:
    """Evaluate f(x, t, labels) and f(x, t, null), each (B, ...), in one batch; labels may be :class:`Guidance`."""
    classes: Any
    if isinstance(labels, Guidance):
        classes = labels.with_null(null)
    else:
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
