"""EDM2 (Karras et al. 2024, 2312.02696, configuration G): every layer preserves the magnitude of its input."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, cast

import torch
import torch.nn.functional as nnf
from einops import rearrange
from torch import Tensor, nn
from torch._compile import _disable_dynamo

from cm_lightning.backbones.attention import DotProduct
from cm_lightning.backbones.embedding import labels_taken, one_hot
from cm_lightning.backbones.layers import Resample, Resampling
from cm_lightning.backbones.pyramid import Pyramid
from cm_lightning.backbones.sizes import check_conditions, check_levels, heads
from cm_lightning.domains import COUNT
from cm_lightning.recording import Recorded

_CHANNELS = {"XS": 128, "S": 192, "M": 256, "L": 320, "XL": 384, "XXL": 448}


def _unit(x: Tensor, dims: Sequence[int]) -> Tensor:
    """Scale x to a mean square of 1 over ``dims``."""
    size = math.prod([x.shape[d] for d in dims])  # torch.compile does not support a generator here
    dtype = torch.promote_types(x.dtype, torch.float32)
    norm = torch.linalg.vector_norm(x, dim=tuple(dims), keepdim=True, dtype=dtype) / math.sqrt(size)
    scale: Tensor = norm + 1e-4
    return x / scale.to(x.dtype)


def _silu(x: Tensor) -> Tensor:
    """SiLU divided by the standard deviation of its output on unit noise (Eq. 81)."""
    return nnf.silu(x) / 0.596


def _mix(a: Tensor, b: Tensor, t: float) -> Tensor:
    """(1 - t) a + t b, divided by its magnitude for independent a and b (Eq. 88)."""
    return torch.lerp(a, b, t) / math.hypot(1 - t, t)


def _join(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Concatenate a and b, weighted so that each contributes according to t and the magnitude is kept (Eq. 103)."""
    n, m = a.shape[1], b.shape[1]
    scale = math.sqrt((n + m) / ((1 - t) ** 2 + t**2))
    return torch.cat([a * (scale * (1 - t) / math.sqrt(n)), b * (scale * t / math.sqrt(m))], dim=1)


class UnitLinear(nn.Module):
    """A linear map or zero-padded convolution with weights of unit norm for each output (Eq. 47, 66).

    Args:
        channels_in: channels of the input.
        channels_out: channels of the output.
        kernel: side of the convolution; a linear map of vectors if None.
    """

    def __init__(self, channels_in: int, channels_out: int, kernel: int | None = None) -> None:
        if kernel is not None:
            COUNT.check(self, kernel=kernel)
        super().__init__()
        window = (kernel, kernel) if kernel else ()
        self.weight = nn.Parameter(torch.randn(channels_out, channels_in, *window))
        self._normed = -1  # the version of the weights that was last normalised

    def _dims(self) -> range:
        return range(1, self.weight.ndim)

    @torch.no_grad()
    def force_norm(self) -> None:
        """Bring the stored weights back to their norm, which grows under updates that are orthogonal to them.

        This happens once after each change: a second pass before the optimizer's step must not touch what backward
        needs.
        """
        if self.weight._version != self._normed:
            self.weight.copy_(_unit(self.weight, self._dims()))
            self._normed = self.weight._version

    def forward(self, x: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        weight = _unit(self.weight, self._dims()) * (gain / math.sqrt(self.weight[0].numel()))
        weight = weight.to(x.dtype)
        if weight.ndim == 2:
            return nnf.linear(x, weight)
        return nnf.conv2d(x, weight, padding=weight.shape[-1] // 2)


class UnitFourier(Recorded, nn.Module):
    """sqrt(2) cos(frequency label + phase) of unit magnitude, drawn once at construction (Eq. 75)."""

    frequencies: Tensor
    phases: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", 2 * math.pi * torch.randn(width))
        self.register_buffer("phases", 2 * math.pi * torch.rand(width))

    def forward(self, label: Tensor) -> Tensor:
        """(B,) -> (B, width)."""
        angles = torch.outer(label, self.frequencies.to(label.dtype)) + self.phases.to(label.dtype)
        return angles.cos() * math.sqrt(2)


class UnitConditioning(nn.Module):
    """Noise label and class label, mixed in equal parts."""

    def __init__(self, width: int, num_classes: int, noise_embedding: nn.Module, embedding_width: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.noise, self.noise_labels = noise_embedding, labels_taken(noise_embedding, embedding_width)
        self.linear = UnitLinear(embedding_width, width)
        self.classes = UnitLinear(num_classes, width) if num_classes else None

    def forward(self, noise_label: Tensor, class_label: Tensor | None) -> Tensor:
        """(B,), (B,) or None -> (B, width)."""
        condition = cast(Tensor, self.linear(self.noise(noise_label)))
        if self.classes is not None:
            labels = one_hot(class_label, self.num_classes, condition) * math.sqrt(self.num_classes)
            condition = _mix(condition, self.classes(labels), 0.5)
        return _silu(condition)


class UnitAttention(nn.Module):
    """Cosine attention over all pixels: q, k and v are normalised (Section 2.3)."""

    def __init__(self, channels: int, head_width: int, forward_mode: bool, balance: float) -> None:
        super().__init__()
        self.heads, self.balance = heads(self, channels, head_width), balance
        self.qkv, self.out = UnitLinear(channels, 3 * channels, 1), UnitLinear(channels, channels, 1)
        self.attend = DotProduct(forward_mode)

    def forward(self, x: Tensor) -> Tensor:
        qkv = rearrange(self.qkv(x), "b (qkv n c) h w -> qkv b n (h w) c", qkv=3, n=self.heads)
        q, k, v = _unit(qkv, [-1])
        h = rearrange(self.attend(q, k, v), "b n (h w) c -> b (n c) h w", h=x.shape[2])
        return _mix(x, self.out(h), self.balance)


class UnitBlock(nn.Module):
    """A residual block without norms; on the way down its input is normalised instead (Figure 11)."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        resampling: Resampling,
        attends: bool,
        encoder: bool,
        condition: int,
        dropout: float,
        head_width: int,
        forward_mode: bool,
    ) -> None:
        super().__init__()
        self.encoder, self.balance, self.dropout = encoder, 0.3, nn.Dropout(dropout)
        self.resample = Resample(resampling)
        self.conv1 = UnitLinear(channels_out if encoder else channels_in, channels_out, 3)
        self.conv2 = UnitLinear(channels_out, channels_out, 3)
        self.affine, self.gain = UnitLinear(condition, channels_out), nn.Parameter(torch.zeros(()))
        self.skip = UnitLinear(channels_in, channels_out, 1) if channels_in != channels_out else nn.Identity()
        self.attention = (
            UnitAttention(channels_out, head_width, forward_mode, self.balance) if attends else nn.Identity()
        )

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        x = self.resample(x)
        if self.encoder:
            x = _unit(self.skip(x), [1])
        scale = self.affine(condition, self.gain)[:, :, None, None] + 1
        h = self.conv2(self.dropout(_silu(self.conv1(_silu(x)) * scale)))
        x = _mix(x if self.encoder else self.skip(x), h, self.balance)
        return cast(Tensor, self.attention(x)).clamp(-256, 256)


class UnitPyramid(Pyramid):
    """A pyramid in which skip connections have the same weight as the features that they are joined to."""

    def join(self, h: Tensor, skip: Tensor) -> Tensor:
        return _join(h, skip, 0.5)


class EDM2(Recorded, nn.Module):
    """EDM2's network for ImageNet, for pixels at 64 x 64 or latents of 64 x 64.

    After each optimizer step, at the next pass that computes a gradient, the weights are brought back to unit norm.
    The learning rate alone then sets how fast they rotate (Section 2.3): use a schedule that decays.

    Args:
        image_channels: C of the images.
        channels: width of the finest level, the unit of ``multipliers``.
        multipliers: width of each level, finest first; each level halves the resolution.
        blocks: residual blocks of a level on the way down; there is one more on the way up.
        attention_levels: the levels with self-attention, 0 the finest: at 16 and 8 pixels.
        num_classes: 0 for an unconditional network. Label num_classes is the null class.
        dropout: probability, inside the residual blocks.
        head_width: channels of an attention head.
        noise_embedding: (B,) -> (B, width of the finest level), of unit magnitude; random Fourier features if None.
        forward_mode: whether ``torch.func.jvp`` can differentiate the attention; see
            :mod:`cm_lightning.backbones.attention`.
    """

    def __init__(
        self,
        image_channels: int = 3,
        channels: int = 192,
        multipliers: Sequence[int] = (1, 2, 3, 4),
        blocks: int = 3,
        attention_levels: Sequence[int] = (2, 3),
        num_classes: int = 0,
        dropout: float = 0.0,
        head_width: int = 64,
        noise_embedding: nn.Module | None = None,
        forward_mode: bool = False,
    ) -> None:
        check_levels(self, image_channels, channels, multipliers, blocks, attention_levels)
        check_conditions(self, num_classes, dropout)
        COUNT.check(self, head_width=head_width)
        super().__init__()
        self.num_classes = num_classes
        widths = [channels * m for m in multipliers]
        condition = max(widths)
        block = partial(
            UnitBlock, condition=condition, dropout=dropout, head_width=head_width, forward_mode=forward_mode
        )
        self.conditioning = UnitConditioning(
            condition, num_classes, noise_embedding or UnitFourier(widths[0]), widths[0]
        )
        self.stem = UnitLinear(image_channels + 1, widths[0], 3)
        self.pyramid = UnitPyramid(
            widths[0], widths, blocks, attention_levels, partial(block, encoder=True), partial(block, encoder=False)
        )
        self.bottleneck_width = self.pyramid.bottleneck_width
        self.head, self.gain = UnitLinear(self.pyramid.width, image_channels, 3), nn.Parameter(torch.zeros(()))
        self.to(memory_format=torch.channels_last)

    @classmethod
    def imagenet(cls, size: Literal["XS", "S", "M", "L", "XL", "XXL"] = "S", **options: Any) -> EDM2:
        """A published size, class-conditional: in pixels (3 x 64 x 64), or ``image_channels=4`` in latents."""
        return cls(**{"channels": _CHANNELS[size], "num_classes": 1000, **options})

    def forward(self, x: Tensor, noise_label: Tensor, class_label: Tensor | None = None) -> Tensor:
        """(B, C, H, W), (B,), (B,) or None -> (B, C, H, W). Raises ConfigError if the sides cannot be halved."""
        return cast(Tensor, self.head(self.pyramid(*self._inputs(x, noise_label, class_label)), self.gain))

    def bottleneck(self, x: Tensor, noise_label: Tensor, class_label: Tensor | None = None) -> Tensor:
        """The features of the coarsest level: (B, bottleneck_width, h, w)."""
        return self.pyramid.bottleneck(*self._inputs(x, noise_label, class_label))

    #: Whether a caller calls :meth:`before_pass` itself, so that a compiled pass is one graph.
    prepared = False

    # A graph would be recompiled for each version of the weights. torch.compiler.disable does the same, but imports the
    # compiler, which takes two seconds, with this file.
    @_disable_dynamo
    def before_pass(self) -> None:
        """Bring the weights back to unit norm if the pass that follows computes a gradient."""
        if self.training and torch.is_grad_enabled():
            for module in self.modules():
                if isinstance(module, UnitLinear):
                    module.force_norm()

    def _inputs(self, x: Tensor, noise_label: Tensor, class_label: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        if not (self.prepared and torch.compiler.is_compiling()):
            self.before_pass()
        ones = torch.ones_like(x[:, :1])  # in place of biases, which the layers do not have
        image = torch.cat([x, ones], dim=1).contiguous(memory_format=torch.channels_last)
        return self.stem(image), self.conditioning(noise_label, class_label), image
