"""Embeddings of the noise label and of the class, shared by the networks of the zoo."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn

from cm_lightning.domains import POSITIVE, at_least, check_ascending, multiple_of
from cm_lightning.errors import ConfigError, flat
from cm_lightning.recording import Recorded


class PositionalEmbedding(Recorded, nn.Module):
    """Cosines and sines of the label at geometrically spaced frequencies from 1 down to 1/10,000.

    Args:
        width: width of the output, even; usually the network's channels.
        endpoint: whether 1/10,000 is the last frequency (DDPM++) or the one that would follow it (ADM, DiT).
    """

    frequencies: Tensor

    def __init__(self, width: int, endpoint: bool = False) -> None:
        multiple_of(2).check(self, width=width)
        if endpoint:
            at_least(4).check(self, width=width)
        super().__init__()
        exponents = torch.arange(width // 2, dtype=torch.float32) / (width // 2 - int(endpoint))
        self.register_buffer("frequencies", 10_000.0**-exponents, persistent=False)

    def forward(self, label: Tensor) -> Tensor:
        """(B,) -> (B, width)."""
        angles = torch.outer(label, self.frequencies.to(label.dtype))
        return torch.cat([angles.cos(), angles.sin()], dim=1)


class FourierEmbedding(Recorded, nn.Module):
    """Cosines and sines at random frequencies N(0, scale^2), fixed at construction (NCSN++).

    NCSN++ has a scale of 16; iCT lowers it to 0.02, so that f changes slowly with sigma. The label is 0.25 ln sigma.
    """

    frequencies: Tensor

    def __init__(self, width: int, scale: float = 16.0) -> None:
        multiple_of(2).check(self, width=width)
        POSITIVE.check(self, scale=scale)
        super().__init__()
        self.register_buffer("frequencies", torch.randn(width // 2) * scale)

    def forward(self, label: Tensor) -> Tensor:
        """(B,) -> (B, width)."""
        angles = torch.outer(label, 2 * math.pi * self.frequencies.to(label.dtype))
        return torch.cat([angles.cos(), angles.sin()], dim=1)


class SinusoidEmbedding(Recorded, nn.Module):
    """Cosines and sines at geometrically spaced frequencies between two bounds, for continuous-time methods.

    The highest frequency bounds the derivative in t, and is therefore low.

    Args:
        width: width of the output, even, at least 4.
        low: the lowest frequency, in radians per unit of the label.
        high: the highest one.
    """

    frequencies: Tensor

    def __init__(self, width: int, low: float = 0.25, high: float = 8.0) -> None:
        multiple_of(2).check(self, width=width)
        at_least(4).check(self, width=width)
        POSITIVE.check(self, low=low, high=high)
        check_ascending(self, low=low, high=high)
        super().__init__()
        exponents = torch.linspace(math.log(low), math.log(high), width // 2, dtype=torch.float32)
        self.register_buffer("frequencies", exponents.exp(), persistent=False)

    def forward(self, label: Tensor) -> Tensor:
        """(B,) -> (B, width)."""
        angles = torch.outer(label, self.frequencies.to(label.dtype))
        return torch.cat([angles.cos(), angles.sin()], dim=1)


class AngleEmbedding(Recorded, nn.Module):
    """Cosines and sines of the angle t = arctan(sigma / sigma_data), TrigFlow's time, for labels c ln sigma.

    All angles lie between 0 and pi / 2, so a few low frequencies distinguish them, and short runs learn faster.

    Args:
        width: width of the output, even, at least 4.
        low: see :class:`SinusoidEmbedding`.
        high: see :class:`SinusoidEmbedding`.
        sigma_data: standard deviation of the data.
        noise_scale: c of the label c ln sigma.
    """

    def __init__(
        self, width: int, low: float = 0.25, high: float = 8.0, sigma_data: float = 0.5, noise_scale: float = 0.25
    ) -> None:
        POSITIVE.check(self, low=low, high=high, sigma_data=sigma_data, noise_scale=noise_scale)
        super().__init__()
        self.of_angle = SinusoidEmbedding(width, low, high)
        self.sigma_data, self.noise_scale = sigma_data, noise_scale

    def forward(self, label: Tensor) -> Tensor:
        """(B,) -> (B, width)."""
        return cast(Tensor, self.of_angle(((label / self.noise_scale).exp() / self.sigma_data).atan()))


class TwoTimesEmbedding(Recorded, nn.Module):
    """The embedding of two labels, each in half of the width; it turns any network of the zoo into a flow map.

    Args:
        width: width of the output, a multiple of 4, at least 8.
        low: see :class:`SinusoidEmbedding`.
        high: see :class:`SinusoidEmbedding`.
    """

    def __init__(self, width: int, low: float = 0.25, high: float = 8.0) -> None:
        multiple_of(4).check(self, width=width)
        at_least(8).check(self, width=width)
        POSITIVE.check(self, low=low, high=high)
        super().__init__()
        self.each = SinusoidEmbedding(width // 2, low, high)

    def forward(self, labels: Tensor) -> Tensor:
        """(B, 2) -> (B, width)."""
        first, second = labels.unbind(1)
        return torch.cat([self.each(first), self.each(second)], dim=1)


class StepSizeEmbedding(TwoTimesEmbedding):
    """A :class:`TwoTimesEmbedding` of t and the number of doublings log2(1/d), d = t - r (shortcut models).

    Args:
        width, low, high: see :class:`TwoTimesEmbedding`.
    """

    def __init__(self, width: int, low: float = 0.25, high: float = 8.0) -> None:
        super().__init__(width, low, high)

    def forward(self, labels: Tensor) -> Tensor:
        """(B, 2) -> (B, width); steps below 2^-16 are raised to it."""
        t, step = labels.unbind(1)
        return super().forward(torch.stack([t, -step.clamp(min=2.0**-16).log2()], 1))


class GuidedTimesEmbedding(TwoTimesEmbedding):
    """A :class:`TwoTimesEmbedding` plus a linear map of the guidance's strength and interval (iMF).

    Args:
        width, low, high: see :class:`TwoTimesEmbedding`.
    """

    def __init__(self, width: int, low: float = 0.25, high: float = 8.0) -> None:
        super().__init__(width, low, high)
        self.guidance = nn.Linear(3, width)

    def forward(self, labels: Tensor) -> Tensor:
        """(B, 5) -> (B, width)."""
        return super().forward(labels[:, :2]) + cast(Tensor, self.guidance(labels[:, 2:]))


class JumpEmbedding(Recorded, nn.Module):
    """The embedding of t, plus one of the jump from t to r that is 0 where r = t (CTM).

    It does not have weights of its own. So the weights of a network that was trained to denoise with the first
    embedding fit, and it still denoises where r = t.

    Args:
        width: width of the output, even, at least 4.
        start: the embedding of t; :class:`PositionalEmbedding` if None.
        low: the lowest frequency of the jump's embedding, in radians per unit of the label.
        high: the highest one.

    Raises:
        ConfigError: a value is out of range, or ``start`` has another width or takes more than one label.
    """

    def __init__(self, width: int, start: nn.Module | None = None, low: float = 0.25, high: float = 2.0) -> None:
        multiple_of(2).check(self, width=width)
        at_least(4).check(self, width=width)
        POSITIVE.check(self, low=low, high=high)
        super().__init__()
        self.start, self.jump = start or PositionalEmbedding(width), SinusoidEmbedding(width, low, high)
        if 1 not in labels_taken(self.start, width):
            raise ConfigError("JumpEmbedding: start must take a single label: leave it out, or set another")

    def forward(self, labels: Tensor) -> Tensor:
        """(B, 2) -> (B, width)."""
        t, r = labels.unbind(1)
        return cast(Tensor, self.start(t) + (self.jump(t - r) - self.jump(torch.zeros_like(t))))


#: What to set for a number of noise labels.
_EMBEDDINGS = {
    1: "one of a single label, such as SinusoidEmbedding, or leave it out",
    2: "a TwoTimesEmbedding",
    5: "a GuidedTimesEmbedding",
}


def labels_taken(noise_embedding: nn.Module, width: int) -> list[int]:
    """The numbers of noise labels that an embedding takes, of 1, 2 and 5.

    They are found by trial, because the embedding may be the user's own.

    Args:
        noise_embedding: maps (B,), (B, 2) or (B, 5) to (B, width).
        width: the width that the network needs.

    Raises:
        ConfigError: its output has another width, or it takes none of these numbers.
    """
    name, shapes, fault = type(noise_embedding).__name__, [], ""
    place = next((t.device for t in (*noise_embedding.parameters(), *noise_embedding.buffers())), None)
    for shape in ((3,), (3, 2), (3, 5)):
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):  # a trial must not change the run's random numbers
                found = tuple(noise_embedding(torch.ones(shape, device=place)).shape)
        except Exception as error:  # the user's own embedding may raise anything
            fault = fault or f": {flat(str(error))}"
            continue
        if len(found) == 2:
            shapes.append((shape[-1] if len(shape) == 2 else 1, found[1]))
    if not shapes:
        raise ConfigError(
            f"noise_embedding must map labels (B,), or (B, 2) for two times, to (B, {width}): {name} does not{fault}"
        )
    fitting = [labels for labels, own in shapes if own == width]
    if not fitting:
        raise ConfigError(
            f"noise_embedding: {name} gives {shapes[0][1]} values for each sample, but this network takes {width}: "
            f"set the width of the embedding to {width}"
        )
    return fitting


def check_labels(method: str, backbone: nn.Module, given: int) -> None:
    """Raise ConfigError unless a network takes as many noise labels for each sample as the method gives.

    The network, or a part of it, lists the numbers in an attribute ``noise_labels``; without it nothing is checked.
    """
    if all(given in getattr(part, "noise_labels", [given]) for part in backbone.modules()):
        return
    taken: Any = next(
        part.noise_labels for part in backbone.modules() if given not in getattr(part, "noise_labels", [given])
    )
    raise ConfigError(
        f"{method} gives its network {given} noise label(s) for each sample, but this {type(backbone).__name__} takes "
        f"{' or '.join(map(str, taken))}: set noise_embedding, an option of most networks, to {_EMBEDDINGS[given]}"
    )


def one_hot(class_label: Tensor | None, num_classes: int, like: Tensor) -> Tensor:
    """(B,) int64 or None -> (B, num_classes) in the dtype of ``like`` (B, ...); a row of zeros is the null class."""
    if class_label is None:
        return like.new_zeros(len(like), num_classes)
    return nn.functional.one_hot(class_label, num_classes + 1)[:, :num_classes].to(like.dtype)


class Conditioning(nn.Module):
    """Maps noise label and class label to one vector that every block receives.

    Args:
        width: width of the output.
        num_classes: 0 for an unconditional network; otherwise label num_classes is the null class.
        noise_embedding: (B,) -> (B, its width); :class:`PositionalEmbedding` if None.
        embedding_width: width of ``noise_embedding``.
    """

    def __init__(
        self, width: int, num_classes: int, embedding_width: int, noise_embedding: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.noise = noise_embedding or PositionalEmbedding(embedding_width)
        self.noise_labels = labels_taken(self.noise, embedding_width)
        self.classes = nn.Embedding(num_classes + 1, embedding_width) if num_classes else None
        self.mlp = nn.Sequential(nn.Linear(embedding_width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())

    def forward(self, noise_label: Tensor, class_label: Tensor | None) -> Tensor:
        """(B,), (B,) or None -> (B, width)."""
        embedding = cast(Tensor, self.noise(noise_label))
        if self.classes is not None:
            if class_label is None:
                class_label = torch.full((len(noise_label),), self.num_classes, device=noise_label.device)
            embedding = embedding + self.classes(class_label)
        return cast(Tensor, self.mlp(embedding))
