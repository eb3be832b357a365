"""ADM (Dhariwal & Nichol 2021): the network of EDM and CM for ImageNet 64 x 64, and of CM for LSUN 256 x 256."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import torch.nn.functional as nnf
from torch import Tensor, nn

from cm_lightning.backbones.embedding import PositionalEmbedding, labels_taken, one_hot
from cm_lightning.backbones.pyramid import Pyramid, PyramidBlock, PyramidNet, Style
from cm_lightning.backbones.sizes import check_conditions, check_levels
from cm_lightning.domains import COUNT


class ADMConditioning(nn.Module):
    """The noise label after two layers, plus a vector of the class.

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
        self.mlp = nn.Sequential(nn.Linear(embedding_width, width), nn.SiLU(), nn.Linear(width, width))
        self.classes = nn.Linear(num_classes, width, bias=False) if num_classes else None
        if self.classes is not None:
            nn.init.normal_(self.classes.weight)  # as in an embedding table

    def forward(self, noise_label: Tensor, class_label: Tensor | None) -> Tensor:
        """(B,), (B,) or None -> (B, width)."""
        condition = cast(Tensor, self.mlp(self.noise(noise_label)))
        if self.classes is not None:
            condition = condition + self.classes(one_hot(class_label, self.num_classes, condition))
        return nnf.silu(condition)


class ADM(PyramidNet):
    """The U-Net of guided diffusion: attention at three resolutions; its condition scales and shifts the norms.

    OpenAI's weights expect the noise label 250 ln sigma: set ``noise_scale=250`` of the parameterization. EDM's expect
    0.25 ln sigma.

    Args:
        image_channels: C of the images.
        channels: width of the finest level, the unit of ``multipliers``.
        multipliers: width of each level, finest first; each level halves the resolution.
        blocks: residual blocks of a level on the way down; there is one more on the way up.
        attention_levels: the levels with self-attention, 0 the finest: at 32, 16 and 8 pixels.
        num_classes: 0 for an unconditional network. Label num_classes is the null class.
        dropout: probability, inside the residual blocks.
        head_width: channels of an attention head.
        scale_shift: whether the condition scales and shifts the second norm of a block, or is added before it, as in
            CM's networks of LSUN.
        noise_embedding: (B,) -> (B, channels); positional if None.
        forward_mode: whether ``torch.func.jvp`` can differentiate the attention; see
            :mod:`cm_lightning.backbones.attention`.
        norm_groups: groups of every norm, a divisor of all widths; if None, 32, or fewer so that each has at least four
            channels, as in EDM. The networks of OpenAI and diffusers have 32 at every width.
    """

    def __init__(
        self,
        image_channels: int = 3,
        channels: int = 192,
        multipliers: Sequence[int] = (1, 2, 3, 4),
        blocks: int = 3,
        attention_levels: Sequence[int] = (1, 2, 3),
        num_classes: int = 0,
        dropout: float = 0.0,
        head_width: int = 64,
        scale_shift: bool = True,
        noise_embedding: nn.Module | None = None,
        forward_mode: bool = False,
        norm_groups: int | None = None,
    ) -> None:
        check_levels(self, image_channels, channels, multipliers, blocks, attention_levels)
        check_conditions(self, num_classes, dropout)
        COUNT.check(self, head_width=head_width)
        if norm_groups is not None:
            COUNT.check(self, norm_groups=norm_groups)
        condition = 4 * channels
        style = Style(condition, dropout, head_width, forward_mode, scale_shift, groups=norm_groups)
        block = partial(PyramidBlock, style=style)
        widths = [channels * m for m in multipliers]
        noise = noise_embedding or PositionalEmbedding(channels)
        super().__init__(
            image_channels,
            ADMConditioning(condition, num_classes, noise, channels),
            widths[0],
            Pyramid(widths[0], widths, blocks, attention_levels, block, block),
            num_classes,
            style.eps,
            norm_groups,
        )

    @classmethod
    def imagenet64(cls, **options: Any) -> ADM:
        """The network of EDM and CM for ImageNet, 3 x 64 x 64, class-conditional; dropout from EDM's Table 7."""
        return cls(**{"num_classes": 1000, "dropout": 0.1, **options})

    @classmethod
    def lsun256(cls, **options: Any) -> ADM:
        """CM's network for LSUN bedroom and cat, 3 x 256 x 256, unconditional."""
        sizes = {"channels": 256, "multipliers": (1, 1, 2, 2, 4, 4), "blocks": 2, "attention_levels": (3, 4, 5)}
        return cls(**{**sizes, "scale_shift": False, **options})
