"""A discriminator on the coarsest features of a diffusion network, with heads of its own (SDXL-Lightning, DMD2)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from cm_lightning.backbones.layers import group_norm
from cm_lightning.errors import ConfigError


class Head(nn.Module):
    """Logits (B,) from features (B, width, h, w): a 4 x 4 convolution with stride 2, GroupNorm, SiLU, and their mean.

    Args:
        width: channels of the features.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 4, stride=2, padding=2)  # padded so that one pixel is enough
        self.norm, self.out = group_norm(width), nn.Linear(width, 1)

    def forward(self, features: Tensor) -> Tensor:
        h = nn.functional.silu(self.norm(self.conv(features)))
        logits: Tensor = self.out(h.flatten(2).mean(2))
        return logits[:, 0]


class Discriminator(nn.Module):
    """A copy of a diffusion network's encoder with two heads: for one point of a trajectory, and for two.

    Args:
        encoder: the network that computes features.
        width: channels of its features.
    """

    def __init__(self, encoder: nn.Module, width: int) -> None:
        super().__init__()
        self.encoder = encoder.requires_grad_(True)
        self.one, self.two = Head(width), Head(2 * width)

    def forward(self, *features: Tensor) -> Tensor:
        """Logits (B,) from the features (B, width, h, w) of one point or of two."""
        logits: Tensor = self.one(*features) if len(features) == 1 else self.two(torch.cat(features, 1))
        return logits

    def restart(self, state: Mapping[str, Tensor], seed: int) -> None:
        """Restart from an encoder's weights, with new heads that are the same on all ranks."""
        self.encoder.load_state_dict(state)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed)
            fresh = {name: type(head)(head.conv.in_channels) for name, head in (("one", self.one), ("two", self.two))}
            for name, head in fresh.items():
                getattr(self, name).load_state_dict(head.state_dict())


def bottleneck_width(backbone: nn.Module) -> int:
    """Channels of the features that a discriminator takes from a network.

    Raises:
        ConfigError: the network does not give any.
    """
    width = getattr(backbone, "bottleneck_width", None)
    if not isinstance(width, int) or not callable(getattr(backbone, "bottleneck", None)):
        raise ConfigError(
            f"a discriminator needs features, which {type(backbone).__name__} does not give: use a network of the zoo, "
            "or add bottleneck_width and a method bottleneck(x, noise_label, class_label) that returns (B, width, h, w)"
        )
    return width
