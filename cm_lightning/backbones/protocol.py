"""The interface that every network of the zoo, and any of your own, must have."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class Backbone(Protocol):
    """A network F(x, noise_label, class_label): any ``nn.Module`` with this forward.

    It does not need preconditioning of its own: the parameterization scales its input to unit variance and its output
    to the variance of the data.
    """

    def forward(self, x: Tensor, noise_label: Tensor, class_label: Tensor | None = None) -> Tensor:
        """Map an image to an image of the same shape.

        Args:
            x: (B, C, H, W), of unit variance.
            noise_label: (B,), c_noise of the parameterization, 0.25 ln sigma by default.
            class_label: (B,) int64 in [0, num_classes], where num_classes itself is the null class; None means the null
                class for all.
        """
        ...
