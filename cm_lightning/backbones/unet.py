"""A U-Net in the manner of DDPM++ (Song et al. 2021) with adaptive scale and shift, small enough for a CPU."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as nnf
from einops import rearrange
from torch import Tensor, nn

from cm_lightning.backbones.attention import SelfAttention
from cm_lightning.backbones.embedding import Conditioning
from cm_lightning.backbones.layers import group_norm, zero
from cm_lightning.backbones.sizes import check_conditions, check_levels
from cm_lightning.domains import COUNT
from cm_lightning.recording import Recorded


class ResidualBlock(nn.Module):
    """Norm, SiLU, convolution, twice; the second norm is scaled and shifted by the conditioning vector."""

    def __init__(self, channels_in: int, channels_out: int, condition: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = group_norm(channels_in), group_norm(channels_out)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.conv2 = zero(nn.Conv2d(channels_out, channels_out, 3, padding=1))
        self.affine = nn.Linear(condition, 2 * channels_out)
        self.dropout = nn.Dropout(dropout)
        self.skip = nn.Identity() if channels_in == channels_out else nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = rearrange(self.affine(condition), "b (two c) -> two b c 1 1", two=2)
        h = self.conv1(nnf.silu(self.norm1(x)))
        h = nnf.silu(torch.addcmul(shift, self.norm2(h), scale + 1))
        return cast(Tensor, (self.skip(x) + self.conv2(self.dropout(h))) * math.sqrt(0.5))


class Block(nn.Module):
    """A residual block, with attention after it at the levels that have it."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        condition: int,
        dropout: float,
        head_width: int | None,
        forward_mode: bool,
    ) -> None:
        super().__init__()
        self.residual = ResidualBlock(channels_in, channels_out, condition, dropout)
        self.attention = SelfAttention(channels_out, head_width, forward_mode) if head_width else nn.Identity()

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        return cast(Tensor, self.attention(self.residual(x, condition)))


class UNet(Recorded, nn.Module):
    """A U-Net for images of any size and any number of channels.

    Args:
        image_channels: C of the images.
        channels: width of the finest level.
        multipliers: width of each level, finest first, in units of ``channels``; each level halves the resolution.
        blocks: residual blocks of a level on the way down; there is one more on the way up.
        attention_levels: the levels with self-attention, 0 the finest.
        num_classes: 0 for an unconditional network. Label num_classes is the null class.
        dropout: probability, inside the residual blocks.
        patch: side of the patches folded into channels before the first level (space to depth). 2 leaves a quarter of
            the pixels and makes the network about four times as fast.
        head_width: channels of an attention head.
        noise_embedding: (B,) -> (B, channels); positional if None.
        forward_mode: whether ``torch.func.jvp`` can differentiate the attention; see
            :mod:`cm_lightning.backbones.attention`.
    """

    def __init__(
        self,
        image_channels: int = 3,
        channels: int = 128,
        multipliers: Sequence[int] = (1, 2, 2),
        blocks: int = 2,
        attention_levels: Sequence[int] = (1,),
        num_classes: int = 0,
        dropout: float = 0.0,
        patch: int = 1,
        head_width: int = 64,
        noise_embedding: nn.Module | None = None,
        forward_mode: bool = False,
    ) -> None:
        check_levels(self, image_channels, channels, multipliers, blocks, attention_levels)
        check_conditions(self, num_classes, dropout)
        COUNT.check(self, patch=patch, head_width=head_width)
        super().__init__()
        self.num_classes, self.patch = num_classes, patch
        self.bottleneck_width = channels * multipliers[-1]
        condition = 4 * channels
        self.conditioning = Conditioning(condition, num_classes, channels, noise_embedding)
        widths = [channels * m for m in multipliers]

        def block(channels_in: int, level: int) -> Block:
            head = head_width if level in attention_levels else None
            return Block(channels_in, widths[level], condition, dropout, head, forward_mode)

        self.stem = nn.Conv2d(image_channels * patch**2, channels, 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        self.shrink, self.grow = nn.ModuleList(), nn.ModuleList()
        width, skips = channels, [channels]
        for level in range(len(widths)):
            if level > 0:
                self.shrink.append(nn.Conv2d(width, width, 3, stride=2, padding=1))
                skips.append(width)
            down = [block(width if i == 0 else widths[level], level) for i in range(blocks)]
            width = widths[level]
            skips += [width] * blocks
            self.down.append(nn.ModuleList(down))
        last = len(widths) - 1
        self.middle = nn.ModuleList([block(width, last), block(width, last)])
        for level in reversed(range(len(widths))):
            up = [block((width if i == 0 else widths[level]) + skips.pop(), level) for i in range(blocks + 1)]
            width = widths[level]
            self.up.append(nn.ModuleList(up))
            if level > 0:
                self.grow.append(nn.Conv2d(width, width, 3, padding=1))
        self.head = nn.Sequential(
            group_norm(width), nn.SiLU(), zero(nn.Conv2d(width, image_channels * patch**2, 3, padding=1))
        )
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor, noise_label: Tensor, class_label: Tensor | None = None) -> Tensor:
        """(B, C, H, W), (B,), (B,) or None -> (B, C, H, W)."""
        height, width = x.shape[2:]
        h, skips, condition = self._down(x, noise_label, class_label)
        for level, blocks in enumerate(self.up):
            if level > 0:
                h = self.grow[level - 1](nnf.interpolate(h, size=skips[-1].shape[2:], mode="nearest"))
            for block in cast(nn.ModuleList, blocks):
                h = block(torch.cat([h, skips.pop()], dim=1), condition)
        return nnf.pixel_shuffle(self.head(h), self.patch)[:, :, :height, :width]

    def bottleneck(self, x: Tensor, noise_label: Tensor, class_label: Tensor | None = None) -> Tensor:
        """The features of the coarsest level: (B, bottleneck_width, h, w)."""
        return self._down(x, noise_label, class_label)[0]

    def _down(self, x: Tensor, noise_label: Tensor, class_label: Tensor | None) -> tuple[Tensor, list[Tensor], Tensor]:
        """The features of the coarsest level, the skip connections, finest first, and the condition."""
        height, width = x.shape[2:]
        x = nnf.pad(x, (0, -width % self.patch, 0, -height % self.patch))
        h = nnf.pixel_unshuffle(x, self.patch).contiguous(memory_format=torch.channels_last)
        condition = self.conditioning(noise_label, class_label)

        h = self.stem(h)
        skips = [h]
        for level, blocks in enumerate(self.down):
            if level > 0:
                h = self.shrink[level - 1](h)
                skips.append(h)
            for block in cast(nn.ModuleList, blocks):
                h = block(h, condition)
                skips.append(h)
        for block in self.middle:
            h = block(h, condition)
        return h, skips, condition
