"""The U shape that DDPM++, NCSN++, ADM and EDM2 share: the blocks, and the skip connections between them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias, cast

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from cm_lightning.backbones.attention import SelfAttention
from cm_lightning.backbones.layers import Resample, Resampling, group_norm, require_divisible, zero
from cm_lightning.domains import COUNT, POSITIVE
from cm_lightning.recording import Recorded

#: (channels in, channels out, resampling, with attention?) -> a block with ``forward(x, condition)``.
BlockFactory: TypeAlias = Callable[[int, int, Resampling, bool], nn.Module]


class Pyramid(nn.Module):
    """Encoder and decoder, with a skip connection from each stage of the encoder to one of the decoder.

    A level has ``blocks`` blocks on the way down, after a block that halves the resolution, and ``blocks + 1`` on the
    way up, before a block that doubles it. At the bottom there are two more blocks, the first with attention.

    Args:
        stem: channels of the input.
        widths: channels of each level, finest first.
        blocks: number of blocks of a level on the way down.
        attention_levels: the levels with attention in their blocks, 0 the finest.
        encode: makes the blocks on the way down.
        decode: makes the blocks on the way up.
        up_attention: whether every block of these levels on the way up has attention, or only the last.
    """

    def __init__(
        self,
        stem: int,
        widths: Sequence[int],
        blocks: int,
        attention_levels: Sequence[int],
        encode: BlockFactory,
        decode: BlockFactory,
        up_attention: str = "every",
    ) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.ModuleList(), nn.ModuleList()
        self.joins: list[bool] = []  # for each block of the decoder: whether it takes a skip connection
        self.factor = 2 ** (len(widths) - 1)
        width, skips = stem, [stem]
        for level, target in enumerate(widths):
            if level > 0:
                self.encoder.append(encode(width, width, "down", False))
                skips.append(width)
            for _ in range(blocks):
                self.encoder.append(encode(width, target, "keep", level in attention_levels))
                width = target
                skips.append(width)
        self._decode(decode(width, width, "keep", True), joins=False)
        self._decode(decode(width, width, "keep", False), joins=False)
        for level, target in reversed(list(enumerate(widths))):
            if level < len(widths) - 1:
                self._decode(decode(width, width, "up", False), joins=False)
            for i in range(blocks + 1):
                attends = level in attention_levels and (up_attention == "every" or i == blocks)
                self._decode(decode(width + skips.pop(), target, "keep", attends), joins=True)
                width = target
        self.width, self.bottleneck_width = width, widths[-1]

    def _decode(self, block: nn.Module, joins: bool) -> None:
        self.decoder.append(block)
        self.joins.append(joins)

    def forward(self, h: Tensor, condition: Tensor, image: Tensor) -> Tensor:
        """(B, stem, H, W), (B, width of the condition), the network's input -> (B, self.width, H, W)."""
        require_divisible(h, self.factor)
        skips = self.encode(h, condition, image)
        h = skips[-1]
        for block, joins in zip(self.decoder, self.joins, strict=True):
            h = block(self.join(h, skips.pop()) if joins else h, condition)
        return h

    def bottleneck(self, h: Tensor, condition: Tensor, image: Tensor) -> Tensor:
        """The features of the coarsest level, after its two blocks: (B, bottleneck_width, h, w)."""
        require_divisible(h, self.factor)
        h = self.encode(h, condition, image)[-1]
        for block in self.decoder[:2]:
            h = block(h, condition)
        return h

    def encode(self, h: Tensor, condition: Tensor, image: Tensor) -> list[Tensor]:
        """The skip connections, finest first."""
        skips = [h]
        for block in self.encoder:
            skips.append(block(skips[-1], condition))
        return skips

    def join(self, h: Tensor, skip: Tensor) -> Tensor:
        return torch.cat([h, skip], dim=1)


@dataclass(frozen=True)
class Style:
    """The options in which the blocks of the families differ.

    Attributes:
        condition: width of the conditioning vector.
        dropout: probability, before the second convolution.
        head_width: channels of an attention head; one head if None.
        forward_mode: see :class:`~cm_lightning.backbones.attention.DotProduct`.
        scale_shift: whether the condition scales and shifts the second norm (ADM), or is added before it.
        scale: factor on the sum of branch and skip: sqrt(1/2) keeps its variance.
        eps: epsilon of the norms.
        taps: taps of the resampling filter.
        project: whether a resampled skip passes through a 1 x 1 convolution too.
        groups: groups of the norms; see :func:`~cm_lightning.backbones.layers.group_norm`.
    """

    condition: int
    dropout: float
    head_width: int | None
    forward_mode: bool
    scale_shift: bool
    scale: float = 1.0
    eps: float = 1e-5
    taps: tuple[int, ...] = (1, 1)
    project: bool = False
    groups: int | None = None

    def __post_init__(self) -> None:
        POSITIVE.check(self, scale=self.scale, eps=self.eps)
        if self.groups is not None:
            COUNT.check(self, groups=self.groups)


class PyramidBlock(nn.Module):
    """Norm, SiLU and convolution, twice, with resampling in the first; the condition enters at the second norm."""

    def __init__(
        self, channels_in: int, channels_out: int, resampling: Resampling, attends: bool, style: Style
    ) -> None:
        super().__init__()
        self.style = style
        self.resample = Resample(resampling, style.taps)
        self.norm1 = group_norm(channels_in, style.eps, style.groups)
        self.norm2 = group_norm(channels_out, style.eps, style.groups)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.conv2 = zero(nn.Conv2d(channels_out, channels_out, 3, padding=1))
        self.affine = nn.Linear(style.condition, channels_out * (2 if style.scale_shift else 1))
        self.dropout = nn.Dropout(style.dropout)
        projects = channels_in != channels_out or (style.project and resampling != "keep")
        self.skip = nn.Conv2d(channels_in, channels_out, 1) if projects else nn.Identity()
        self.attention = (
            SelfAttention(channels_out, style.head_width, style.forward_mode, style.scale, style.eps, style.groups)
            if attends
            else nn.Identity()
        )

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        h = self.conv1(self.resample(nnf.silu(self.norm1(x))))
        h = nnf.silu(self._conditioned(h, self.affine(condition)[:, :, None, None]))
        h = self.conv2(self.dropout(h))
        return cast(Tensor, self.attention((self.skip(self.resample(x)) + h) * self.style.scale))

    def _conditioned(self, h: Tensor, affine: Tensor) -> Tensor:
        if not self.style.scale_shift:
            return cast(Tensor, self.norm2(h + affine))
        scale, shift = affine.chunk(2, dim=1)
        return torch.addcmul(shift, self.norm2(h), scale + 1)


class PyramidNet(Recorded, nn.Module):
    """A network of a conditioning, a convolution, a pyramid, and a head of norm, SiLU and convolution."""

    def __init__(
        self,
        image_channels: int,
        conditioning: nn.Module,
        stem: int,
        pyramid: Pyramid,
        num_classes: int,
        eps: float,
        groups: int | None = None,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.conditioning = conditioning
        self.stem = nn.Conv2d(image_channels, stem, 3, padding=1)
        self.pyramid, self.bottleneck_width = pyramid, pyramid.bottleneck_width
        self.head = nn.Sequential(
            group_norm(pyramid.width, eps, groups),
            nn.SiLU(),
            zero(nn.Conv2d(pyramid.width, image_channels, 3, padding=1)),
        )
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor, noise_label: Tensor, class_label: Tensor | None = None) -> Tensor:
        """(B, C, H, W), (B,), (B,) or None -> (B, C, H, W). Raises ConfigError if the sides cannot be halved."""
        return cast(Tensor, self.head(self.pyramid(*self._inputs(x, noise_label, class_label))))

    def bottleneck(self, x: Tensor, noise_label: Tensor, class_label: Tensor | None = None) -> Tensor:
        """The features of the coarsest level: (B, bottleneck_width, h, w)."""
        return self.pyramid.bottleneck(*self._inputs(x, noise_label, class_label))

    def _inputs(self, x: Tensor, noise_label: Tensor, class_label: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        image = x.contiguous(memory_format=torch.channels_last)
        return self.stem(image), self.conditioning(noise_label, class_label), image


def start_as_edm(network: PyramidNet) -> None:
    """Initialise DDPM++ or NCSN++ as EDM does: Xavier-uniform, zero biases, residual branches almost 0.

    Karras et al. 2022, released code: a gain of sqrt(0.2) into attention, and 1e-5 where other networks start at 0.
    """
    gains = {network.head[2]: 1e-5}
    for module in network.modules():
        if isinstance(module, PyramidBlock):
            gains[module.conv2] = 1e-5
        if isinstance(module, SelfAttention):
            gains |= {module.qkv: math.sqrt(0.2), module.out: 1e-5}
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(module.weight, gains.get(module, 1.0))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
