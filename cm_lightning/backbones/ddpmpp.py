"""DDPM++ as EDM trained it (Song et al. 2021; Karras et al. 2022, Table 7)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

from torch import Tensor, nn

from cm_lightning.backbones.embedding import PositionalEmbedding, labels_taken, one_hot
from cm_lightning.backbones.pyramid import Pyramid, PyramidBlock, PyramidNet, Style, start_as_edm
from cm_lightning.backbones.sizes import check_conditions, check_levels


class SongConditioning(nn.Module):
    """Noise label and class label, added and then mixed by two layers.

    Args:
        width: width of the output.
        num_classes: 0 for an unconditional network. Label num_classes is the null class, for which nothing is added.
        noise_embedding: (B,) -> (B, embedding_width).
        embedding_width: width of the noise embedding.
    """

    def __init__(self, width: int, num_classes: int, noise_embedding: nn.Module, embedding_width: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.noise, self.noise_labels = noise_embedding, labels_taken(noise_embedding, embedding_width)
        self.classes = nn.Linear(num_classes, embedding_width) if num_classes else None
        self.mlp = nn.Sequential(nn.Linear(embedding_width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())

    def forward(self, noise_label: Tensor, class_label: Tensor | None) -> Tensor:
        """(B,), (B,) or None -> (B, width)."""
        embedding = cast(Tensor, self.noise(noise_label))
        if self.classes is not None:
            labels = one_hot(class_label, self.num_classes, embedding)
            embedding = embedding + self.classes(labels * math.sqrt(self.num_classes))
        return cast(Tensor, self.mlp(embedding))


class DDPMpp(PyramidNet):
    """EDM's network for CIFAR-10 (55.7 M parameters), FFHQ and AFHQ.

    Args:
        image_channels: C of the images.
        channels: width of the finest level, the unit of ``multipliers``.
        multipliers: width of each level, finest first; each level halves the resolution.
        blocks: residual blocks of a level on the way down; there is one more on the way up.
        attention_levels: the levels with self-attention in one head, 0 the finest: at 16 pixels for the 32 of CIFAR-10.
        num_classes: 0 for an unconditional network. Label num_classes is the null class.
        dropout: probability, inside the residual blocks.
        noise_embedding: (B,) -> (B, channels); positional if None.
        forward_mode: whether ``torch.func.jvp`` can differentiate the attention; see
            :mod:`cm_lightning.backbones.attention`.
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
        condition = 4 * channels
        style = Style(
            condition, dropout, None, forward_mode, scale_shift=False, scale=math.sqrt(0.5), eps=1e-6, project=True
        )
        block = partial(PyramidBlock, style=style)
        widths = [channels * m for m in multipliers]
        noise = noise_embedding or PositionalEmbedding(channels, endpoint=True)
        super().__init__(
            image_channels,
            SongConditioning(condition, num_classes, noise, channels),
            channels,
            Pyramid(channels, widths, blocks, attention_levels, block, block, up_attention="last"),
            num_classes,
            style.eps,
        )
        start_as_edm(self)

    @classmethod
    def cifar10(cls, **options: Any) -> DDPMpp:
        """EDM's network for CIFAR-10, 3 x 32 x 32; dropout as in its Table 7."""
        return cls(**{"dropout": 0.13, **options})

    @classmethod
    def ffhq64(cls, **options: Any) -> DDPMpp:
        """EDM's network for FFHQ and AFHQv2, 3 x 64 x 64; dropout as for FFHQ in its Table 7."""
        return cls(**{"multipliers": (1, 2, 2, 2), "attention_levels": (2,), "dropout": 0.05, **options})
