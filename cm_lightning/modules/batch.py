"""What a batch of anybody's data must be."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from cm_lightning.errors import ConfigError


def images_and_labels(
    batch: Any, image_shape: tuple[int, ...], num_classes: int, first: bool
) -> tuple[Tensor, Tensor | None]:
    """Images (B, *image_shape) and, for a network with classes, labels (B,).

    Args:
        batch: images, or (images, labels); labels are passed over where there are no classes.
        image_shape: what the network expects.
        num_classes: 0 for an unconditional network.
        first: whether to look at the values of labels on an accelerator too, which makes it wait.

    Raises:
        ConfigError: naming the option that does not fit the data.
    """
    if not isinstance(batch, (Tensor, tuple, list)):
        raise ConfigError(f"the data has batches of type {type(batch).__name__}: give images, or (images, labels)")
    x, labels = (batch, None) if isinstance(batch, Tensor) else (batch[0], batch[1] if len(batch) > 1 else None)
    if tuple(x.shape[1:]) != image_shape:
        shape = ",".join(str(size) for size in x.shape[1:])
        raise ConfigError(
            f"the data has samples of shape {tuple(x.shape[1:])}, the model expects {image_shape}: "
            f"set --model.image_shape=[{shape}] and the channels of its backbone"
        )
    if not x.is_floating_point():
        raise ConfigError(f"the data has samples of type {x.dtype}: give floats in [-1, 1]")
    if not num_classes:
        return x, None
    if not isinstance(labels, Tensor):  # none, or captions
        raise ConfigError("the backbone has classes, but the data no labels: set --model.backbone.num_classes=0")
    if (first or labels.device.type == "cpu") and not 0 <= labels.min() <= labels.max() < num_classes:
        raise ConfigError(
            f"the data has labels from {int(labels.min())} to {int(labels.max())}, the backbone {num_classes} "
            "classes: set --model.backbone.num_classes to the number of classes, or to 0"
        )
    return x, labels
