"""NCSN++ as EDM trained it (Song et al. 2021; Karras et al. 2022, Table 7)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

from torch import Tensor, nn

from cm_lightning.backbones.ddpmpp import SongConditioning
from cm_lightning.backbones.embedding import FourierEmbedding
from cm_lightning.backbones.layers import Resample
from cm_lightning.backbones.pyramid import Pyramid, PyramidBlock, PyramidNet, Style, start_as_edm
from cm_lightning.backbones.sizes import check_conditions, check_levels

_TAPS = (1, 3, 3, 1)


class Inlet(nn.Module):
    """Adds the image, or its version from the level above, filtered to half the size, to the features.

    The convolution reaches two pixels beyond the border, so that the filter does not need padding.
    """

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, 3, padding=2)
        self.resample = Resample("down", _TAPS, margin=0)

    def forward(self, h: Tensor, image: Tensor) -> Tensor:
        return cast(Tensor, (h + self.resample(self.conv(image))) * math.sqrt(0.5))


class InletPyramid(Pyramid):
    """A pyramid that takes in the image at each level, not only at the finest."""

    def __init__(self, image_channels: int, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        halved = [block for block in self.encoder if _halves(block)]
        widths = [cast(nn.Conv2d, block.conv2).out_channels for block in halved]
        self.inlets = nn.ModuleList(Inlet(i, o) for i, o in zip([image_channels, *widths], widths, strict=False))

    def encode(self, h: Tensor, condition: Tensor, image: Tensor) -> list[Tensor]:
        skips, inlets = [h], iter(self.inlets)
        for block in self.encoder:
            h = block(skips[-1], condition)
            if _halves(block):
                h = image = next(inlets)(h, image)
            skips.append(h)
        return skips


def _halves(block: nn.Module) -> bool:
    return cast(Resample, block.resample).resampling == "down"


class NCSNpp(PyramidNet):
    """EDM's second network for CIFAR-10, due to Song et al., which differs from DDPM++ in three points.

    It has Fourier features of the noise level, triangle filters, and the image itself added at every level on the way
    down.

    Args:
        image_channels, channels, multipliers, blocks, attention_levels, num_classes, dropout, forward_mode: see
            :class:`~cm_lightning.backbones.ddpmpp.DDPMpp`.
        noise_embedding: (B,) -> (B, 2 channels); Fourier features of scale 16 if None. iCT uses a scale of 0.02.
    """

    def __init__(
        self,
        image_channels: int = 3,
        channels: int = 128,
        multipliers: Sequence[int] = (2, 2, 2),
        blocks: int = 4,
        attention_levels: Sequence[int] = (1,),
        num_classes: int = 0,
        dropout: float = 0.0,
        noise_embedding: nn.Module | None = None,
        forward_mode: bool = False,
    ) -> None:
        check_levels(self, image_channels, channels, multipliers, blocks, attention_levels)
        check_conditions(self, num_classes, dropout)
        condition, noise_width = 4 * channels, 2 * channels
        style = Style(
            condition,
            dropout,
            None,
            forward_mode,
            scale_shift=False,
            scale=math.sqrt(0.5),
            eps=1e-6,
            taps=_TAPS,
            project=True,
        )
        block = partial(PyramidBlock, style=style)
        widths = [channels * m for m in multipliers]
        noise = noise_embedding or FourierEmbedding(noise_width)
        super().__init__(
            image_channels,
            SongConditioning(condition, num_classes, noise, noise_width),
            channels,
            InletPyramid(image_channels, channels, widths, blocks, attention_levels, block, block, up_attention="last"),
            num_classes,
            style.eps,
        )
        start_as_edm(self)

    @classmethod
    def cifar10(cls, **options: Any) -> NCSNpp:
        """EDM's network for CIFAR-10, 3 x 32 x 32; dropout as in its Table 7."""
        return cls(**{"dropout": 0.13, **options})

    @classmethod
    def ffhq64(cls, **options: Any) -> NCSNpp:
        """EDM's network for FFHQ and AFHQv2, 3 x 64 x 64; dropout as for FFHQ in its Table 7."""
        return cls(**{"multipliers": (1, 2, 2, 2), "attention_levels": (2,), "dropout": 0.05, **options})
