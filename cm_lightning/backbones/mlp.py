"""A small residual MLP for points in the plane, or any flat vector."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from cm_lightning.backbones.embedding import Conditioning, FourierEmbedding
from cm_lightning.domains import COUNT, NATURAL, multiple_of
from cm_lightning.recording import Recorded


class ResidualMLP(Recorded, nn.Module):
    """Residual layers of SiLU and linear maps, each shifted by the conditioning vector.

    Args:
        dim: number of entries of a sample of any shape.
        width: width of the hidden layers, even.
        depth: number of residual layers.
        num_classes: 0 for an unconditional network. Label num_classes is the null class.
        noise_embedding: (B,) -> (B, width), or (B, 2) for two times; Fourier features of scale 0.5 if None.
    """

    def __init__(
        self,
        dim: int = 2,
        width: int = 128,
        depth: int = 4,
        num_classes: int = 0,
        noise_embedding: nn.Module | None = None,
    ) -> None:
        COUNT.check(self, dim=dim, depth=depth)
        multiple_of(2).check(self, width=width)
        NATURAL.check(self, num_classes=num_classes)
        super().__init__()
        self.num_classes, self.bottleneck_width = num_classes, width
        self.conditioning = Conditioning(
            width, num_classes, width, noise_embedding or FourierEmbedding(width, scale=0.5)
        )
        self.stem, self.head = nn.Linear(dim, width), nn.Linear(width, dim)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.shifts = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        nn.init.zeros_(self.head.weight)

    def forward(self, x: Tensor, noise_label: Tensor, class_label: Tensor | None = None) -> Tensor:
        """(B, ...) with ``dim`` entries per sample, (B,), (B,) or None -> the shape of x."""
        h = self._features(x, noise_label, class_label)
        return cast(Tensor, self.head(nn.functional.silu(h))).reshape(x.shape)

    def bottleneck(self, x: Tensor, noise_label: Tensor, class_label: Tensor | None = None) -> Tensor:
        """The features before the last layer, as a map of one pixel: (B, bottleneck_width, 1, 1)."""
        return self._features(x, noise_label, class_label)[:, :, None, None]

    def _features(self, x: Tensor, noise_label: Tensor, class_label: Tensor | None) -> Tensor:
        condition = self.conditioning(noise_label, class_label)
        h: Tensor = self.stem(x.flatten(1))
        for layer, shift in zip(self.layers, self.shifts, strict=True):
            h = h + layer(nn.functional.silu(h + shift(condition)))
        return h
