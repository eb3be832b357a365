"""The attention of all networks of the zoo, and the one place where its kernel is chosen."""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as nnf
from einops import rearrange
from torch import Tensor, nn

from cm_lightning.backbones.layers import group_norm, zero
from cm_lightning.backbones.sizes import heads
from cm_lightning.domains import COUNT, POSITIVE
from cm_lightning.errors import ConfigError


class DotProduct(nn.Module):
    """softmax(q k^T / sqrt(d)) v (Vaswani et al. 2017, Eq. 1), without weights.

    Args:
        forward_mode: False uses torch's fused kernel, which does not have a forward-mode derivative. True uses the
            formula itself with the softmax in float32 or better, which ``torch.func.jvp`` can differentiate.
            Continuous-time methods need it; it keeps all scores in memory.
    """

    def __init__(self, forward_mode: bool = False) -> None:
        super().__init__()
        self.forward_mode = forward_mode

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Each (B, heads, tokens, d) -> the same."""
        if not self.forward_mode:
            return nnf.scaled_dot_product_attention(q, k, v)
        scores = (q / math.sqrt(q.shape[-1])) @ k.transpose(-2, -1)
        weights = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32))
        return weights.to(v.dtype) @ v


def set_forward_mode(network: nn.Module, forward_mode: bool) -> None:
    """Choose the kernel of all attention layers of a network that is already built.

    Raises:
        ConfigError: the network has diffusers' attention with a fused kernel, which is fixed when it is built.
    """
    for module in network.modules():
        if isinstance(module, DotProduct):
            module.forward_mode = forward_mode
        elif forward_mode and type(getattr(module, "processor", None)).__name__.startswith("AttnProcessor2"):
            raise ConfigError(
                "diffusers' attention lacks a forward-mode derivative here: build the network with forward_mode true, "
                "or set the method's derivative to difference"
            )


class SelfAttention(nn.Module):
    """Attention over all pixels, with a residual connection. The 3C channels are ordered (q/k/v, head, d).

    Args:
        channels: channels of input and output.
        head_width: channels of a head; one head if None.
        forward_mode: see :class:`DotProduct`.
        scale: factor on the sum of input and output.
        eps: epsilon of the norm.
        groups: groups of the norm; see :func:`~cm_lightning.backbones.layers.group_norm`.
    """

    def __init__(
        self,
        channels: int,
        head_width: int | None,
        forward_mode: bool = False,
        scale: float = math.sqrt(0.5),
        eps: float = 1e-5,
        groups: int | None = None,
    ) -> None:
        POSITIVE.check(self, scale=scale, eps=eps)
        if groups is not None:
            COUNT.check(self, groups=groups)
        super().__init__()
        self.heads = 1 if head_width is None else heads(self, channels, head_width)
        self.scale = scale
        self.norm = group_norm(channels, eps, groups)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = zero(nn.Conv2d(channels, channels, 1))
        self.attend = DotProduct(forward_mode)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = rearrange(self.qkv(self.norm(x)), "b (qkv n c) h w -> qkv b n (h w) c", qkv=3, n=self.heads)
        h = rearrange(self.attend(q, k, v), "b n (h w) c -> b (n c) h w", h=x.shape[2])
        return cast(Tensor, (x + self.out(h)) * self.scale)
