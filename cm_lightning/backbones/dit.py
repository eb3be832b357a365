"""DiT (Peebles & Xie 2023, 2212.09748): a transformer over patches, conditioned by adaptive layer norms."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as nnf
from einops import rearrange
from torch import Tensor, nn

from cm_lightning.backbones.attention import DotProduct
from cm_lightning.backbones.embedding import PositionalEmbedding, labels_taken
from cm_lightning.backbones.layers import require_divisible
from cm_lightning.backbones.sizes import check_conditions, heads
from cm_lightning.domains import COUNT, multiple_of
from cm_lightning.recording import Recorded

_NOISE_WIDTH = 256


class Modulation(nn.Module):
    """Maps the condition to the shifts, scales and gates of a block, each 0 at first (AdaLN-zero, Section 3.2)."""

    def __init__(self, channels: int, vectors: int) -> None:
        super().__init__()
        self.vectors, self.linear = vectors, nn.Linear(channels, vectors * channels)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, condition: Tensor) -> tuple[Tensor, ...]:
        """(B, channels) -> ``vectors`` of (B, 1, channels)."""
        return cast(Tensor, self.linear(nnf.silu(condition)))[:, None].chunk(self.vectors, dim=-1)


class ModulatedNorm(nn.Module):
    """A layer norm without learned weights, followed by a shift and a scale."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, elementwise_affine=False, eps=1e-6)

    def forward(self, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return torch.addcmul(shift, self.norm(x), scale + 1)


class TokenAttention(nn.Module):
    """Attention over all tokens."""

    def __init__(self, channels: int, head_width: int, forward_mode: bool) -> None:
        super().__init__()
        self.heads = heads(self, channels, head_width)
        self.qkv, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.attend = DotProduct(forward_mode)

    def forward(self, x: Tensor) -> Tensor:
        """(B, tokens, channels) -> the same."""
        q, k, v = rearrange(self.qkv(x), "b t (qkv n c) -> qkv b n t c", qkv=3, n=self.heads)
        return cast(Tensor, self.out(rearrange(self.attend(q, k, v), "b n t c -> b t (n c)")))


class TokenBlock(nn.Module):
    """Attention, then two layers with GELU, each normalised, modulated, gated and added."""

    def __init__(self, channels: int, head_width: int, dropout: float, forward_mode: bool) -> None:
        super().__init__()
        self.modulation = Modulation(channels, 6)
        self.norm1, self.norm2 = ModulatedNorm(channels), ModulatedNorm(channels)
        self.attention = TokenAttention(channels, head_width, forward_mode)
        self.mlp = nn.Sequential(
            nn.Linear(channels, 4 * channels),
            nn.GELU(approximate="tanh"),
            nn.Dropout(dropout),
            nn.Linear(4 * channels, channels),
        )

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition)
        x = x + gate1 * self.attention(self.norm1(x, shift1, scale1))
        return cast(Tensor, x + gate2 * self.mlp(self.norm2(x, shift2, scale2)))


class DiT(Recorded, nn.Module):
    """A transformer for images or latents of any size, cut into square patches.

    The published noise labels are timesteps of up to 1000. With EDM's labels, 0.25 ln sigma, most of the 128
    frequencies hardly vary, so give the parameterization ``noise_scale=250``, or a ``noise_embedding``.

    Args:
        image_channels: C of the images.
        channels: width of a token, a multiple of 4.
        blocks: number of blocks.
        patch: side of a patch, in pixels; the sides of the images are multiples of it.
        head_width: channels of an attention head.
        num_classes: 0 for an unconditional network. Label num_classes is the null class.
        dropout: probability, inside the blocks.
        noise_embedding: (B,) -> (B, 256); positional if None.
        forward_mode: whether ``torch.func.jvp`` can differentiate the attention; see
            :mod:`cm_lightning.backbones.attention`.
    """

    def __init__(
        self,
        image_channels: int = 3,
        channels: int = 384,
        blocks: int = 12,
        patch: int = 2,
        head_width: int = 64,
        num_classes: int = 0,
        dropout: float = 0.0,
        noise_embedding: nn.Module | None = None,
        forward_mode: bool = False,
    ) -> None:
        COUNT.check(self, image_channels=image_channels, blocks=blocks, patch=patch, head_width=head_width)
        multiple_of(4).check(self, channels=channels)  # for sines and cosines of row and column
        check_conditions(self, num_classes, dropout)
        super().__init__()
        self.num_classes, self.patch, self.bottleneck_width = num_classes, patch, channels
        self.noise = noise_embedding or PositionalEmbedding(_NOISE_WIDTH)
        self.noise_labels = labels_taken(self.noise, _NOISE_WIDTH)
        self.mlp = nn.Sequential(nn.Linear(_NOISE_WIDTH, channels), nn.SiLU(), nn.Linear(channels, channels))
        self.classes = nn.Embedding(num_classes + 1, channels) if num_classes else None
        self.place = PositionalEmbedding(channels // 2)
        self.stem = nn.Linear(image_channels * patch**2, channels)
        self.blocks = nn.ModuleList(TokenBlock(channels, head_width, dropout, forward_mode) for _ in range(blocks))
        self.modulation, self.norm = Modulation(channels, 2), ModulatedNorm(channels)
        self.head = nn.Linear(channels, image_channels * patch**2)
        self._start()

    @classmethod
    def small(cls, **options: Any) -> DiT:
        """DiT-S: 12 blocks of 384 channels."""
        return cls(**options)

    @classmethod
    def base(cls, **options: Any) -> DiT:
        """DiT-B: 12 blocks of 768 channels."""
        return cls(**{"channels": 768, **options})

    @classmethod
    def large(cls, **options: Any) -> DiT:
        """DiT-L: 24 blocks of 1024 channels."""
        return cls(**{"channels": 1024, "blocks": 24, **options})

    @classmethod
    def xlarge(cls, **options: Any) -> DiT:
        """DiT-XL: 28 blocks of 1152 channels."""
        return cls(**{"channels": 1152, "blocks": 28, "head_width": 72, **options})

    def forward(self, x: Tensor, noise_label: Tensor, class_label: Tensor | None = None) -> Tensor:
        """(B, C, H, W), (B,), (B,) or None -> (B, C, H, W). Raises ConfigError if patches do not fill the sides."""
        h, condition, rows = self._tokens(x, noise_label, class_label)
        out: Tensor = self.head(self.norm(h, *self.modulation(condition)))
        return rearrange(out, "b (h w) (c p q) -> b c (h p) (w q)", h=rows, p=self.patch, q=self.patch)

    def bottleneck(self, x: Tensor, noise_label: Tensor, class_label: Tensor | None = None) -> Tensor:
        """The tokens after the last block, as a map: (B, bottleneck_width, h, w)."""
        h, _, rows = self._tokens(x, noise_label, class_label)
        return rearrange(h, "b (h w) c -> b c h w", h=rows)

    def _tokens(self, x: Tensor, noise_label: Tensor, class_label: Tensor | None) -> tuple[Tensor, Tensor, int]:
        """The tokens after the last block, the condition, and the number of rows of patches."""
        require_divisible(x, self.patch)
        rows = x.shape[2] // self.patch
        condition = self._condition(noise_label, class_label)
        tokens = rearrange(x, "b c (h p) (w q) -> b (h w) (c p q)", p=self.patch, q=self.patch)
        h = self.stem(tokens) + self._places(rows, tokens.shape[1] // rows, x)
        for block in self.blocks:
            h = block(h, condition)
        return h, condition, rows

    def _condition(self, noise_label: Tensor, class_label: Tensor | None) -> Tensor:
        condition = cast(Tensor, self.mlp(self.noise(noise_label)))
        if self.classes is None:
            return condition
        if class_label is None:
            class_label = torch.full((len(noise_label),), self.num_classes, device=noise_label.device)
        return cast(Tensor, condition + self.classes(class_label))

    def _places(self, rows: int, columns: int, x: Tensor) -> Tensor:
        """The embedding of each patch's position, half of the channels for its row: (rows columns, channels)."""
        place_y, place_x = (self.place(torch.arange(n, device=x.device, dtype=x.dtype)) for n in (rows, columns))
        return torch.cat([place_y.repeat_interleave(columns, dim=0), place_x.repeat(rows, 1)], dim=1)

    def _start(self) -> None:
        """Initialise as published: Xavier-uniform, 0 for the head and all modulation."""
        zeros = [self.head, *(m.linear for m in self.modules() if isinstance(m, Modulation))]
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
        for layer in zeros:
            nn.init.zeros_(layer.weight)
        nn.init.normal_(cast(nn.Linear, self.mlp[0]).weight, std=0.02)
        nn.init.normal_(cast(nn.Linear, self.mlp[2]).weight, std=0.02)
        if self.classes is not None:
            nn.init.normal_(self.classes.weight, std=0.02)
