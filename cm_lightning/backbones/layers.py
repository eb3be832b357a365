"""Small layers that the networks share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, TypeAlias, cast

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from cm_lightning.domains import NATURAL
from cm_lightning.errors import ConfigError

#: The change of resolution in a block.
Resampling: TypeAlias = Literal["keep", "down", "up"]


def zero(layer: nn.Conv2d) -> nn.Conv2d:
    """Initialise a layer to 0, so that its residual block starts as the identity."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(cast(Tensor, layer.bias))
    return layer


def group_norm(channels: int, eps: float = 1e-5, groups: int | None = None) -> nn.GroupNorm:
    """A group norm of ``groups`` groups; if None, 32, or fewer that divide the channels into at least four each.

    Raises:
        ConfigError: the groups do not divide the channels.
    """
    if groups is None:
        groups = math.gcd(min(32, max(1, channels // 4)), channels)
    if channels % groups:
        raise ConfigError(f"norm_groups {groups} does not divide a layer of {channels} channels: choose another number")
    return nn.GroupNorm(groups, channels, eps)


def require_divisible(x: Tensor, factor: int) -> None:
    """Raise ConfigError unless height and width of x (B, C, H, W) can be divided by ``factor``."""
    height, width = x.shape[2:]
    if height % factor or width % factor:
        raise ConfigError(
            f"images of {height} x {width} do not fit: give this network sides that are multiples of {factor}"
        )


class Resample(nn.Module):
    """Half or double the resolution with a separable filter.

    Args:
        resampling: ``down`` or ``up``; ``keep`` is the identity.
        taps: (1, 1) is a box, which takes the mean of four pixels or repeats them; (1, 3, 3, 1) is NCSN++'s triangle.
        margin: width of the zero padding; if None, the width that keeps the image centred.
    """

    kernel: Tensor

    def __init__(self, resampling: Resampling, taps: Sequence[float] = (1, 1), margin: int | None = None) -> None:
        if margin is not None:
            NATURAL.check(self, margin=margin)
        super().__init__()
        self.resampling, self.margin = resampling, (len(taps) - 1) // 2 if margin is None else margin
        taps_1d = torch.tensor(taps, dtype=torch.float32, device="cpu")
        self.box = tuple(taps) == (1, 1)
        self.register_buffer("kernel", torch.outer(taps_1d, taps_1d) / taps_1d.sum() ** 2, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H/2, W/2), (B, C, 2H, 2W), or x."""
        if self.resampling == "keep":
            return x
        if self.box:
            return nnf.avg_pool2d(x, 2) if self.resampling == "down" else nnf.interpolate(x, scale_factor=2)
        kernel = self.kernel.to(x.dtype).expand(x.shape[1], 1, -1, -1)
        if self.resampling == "down":
            return nnf.conv2d(x, kernel, stride=2, padding=self.margin, groups=x.shape[1])
        return nnf.conv_transpose2d(x, 4 * kernel, stride=2, padding=self.margin, groups=x.shape[1])
