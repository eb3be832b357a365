"""Checks and conversions of batches from any data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor

from cm_lightning.errors import ConfigError

_IMAGES = ("images", "image", "pixel_values", "x", "img")
_LABELS = ("labels", "label", "class_labels", "y", "target")
#: By how much resizing, or a headroom of the data, may push a pixel beyond the range.
_SLACK = 0.25


def images_and_labels(
    batch: Any, image_shape: tuple[int, ...], num_classes: int, first: bool, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor | None]:
    """Images (B, *image_shape) and, for a network with classes, labels (B,) int64.

    Args:
        batch: images; (images, labels); or a dictionary with ``images`` (``image``, ``pixel_values``) and ``labels``.
            Labels are whole numbers of any type, (B,) or (B, 1), or one-hot (B, num_classes); they are ignored if
            num_classes is 0.
        image_shape: the shape that the network expects.
        num_classes: number of classes; 0 for an unconditional network.
        first: whether to check the values on an accelerator too, which synchronises with it.
        dtype: dtype of the returned images; unchanged if None.

    Raises:
        ConfigError: the data do not fit; the message names the option.
    """
    x, labels = _parts(batch)
    _check_images(x, image_shape, first)
    x = x if dtype is None else x.to(dtype)
    if not num_classes:
        return x, None
    if not isinstance(labels, Tensor):  # none, or captions
        raise ConfigError(
            "the backbone has classes, but the data does not have labels: set --model.backbone.num_classes=0"
        )
    labels = _class_numbers(labels, len(x), num_classes, first)
    if (first or labels.device.type == "cpu") and not 0 <= labels.min() <= labels.max() < num_classes:
        low, high = int(labels.min()), int(labels.max())
        remedy = "number them from 0" if (low, high) == (1, num_classes) else (
            "set --model.backbone.num_classes to the number of classes, or to 0")  # fmt: skip
        raise ConfigError(f"the data has labels from {low} to {high}, the backbone has {num_classes} classes: {remedy}")
    return x, labels


def number_of_samples(batch: Any) -> int:
    """The number of samples in a batch."""
    return len(_parts(batch)[0])


def _parts(batch: Any) -> tuple[Any, Any]:
    if isinstance(batch, Tensor):
        return batch, None
    if isinstance(batch, Mapping):
        images = next((batch[name] for name in _IMAGES if name in batch), None)
        if images is None:
            raise ConfigError(f"the data has batches of {', '.join(map(str, batch))}: name the images 'images'")
        return images, next((batch[name] for name in _LABELS if name in batch), None)
    if isinstance(batch, (tuple, list)) and batch and isinstance(batch[0], Tensor):
        return batch[0], batch[1] if len(batch) > 1 else None
    raise ConfigError(f"the data has batches of type {type(batch).__name__}: give images, or (images, labels)")


def _check_images(x: Tensor, image_shape: tuple[int, ...], first: bool) -> None:
    shape = tuple(x.shape[1:])
    if shape != image_shape:
        if len(shape) == 3 and (shape[2], *shape[:2]) == image_shape:
            raise ConfigError(f"the data has samples of shape {shape}, with the channels last: give (C, H, W)")
        raise ConfigError(
            f"the data has samples of shape {shape}, but the model expects {image_shape}: "
            f"set --model.image_shape=[{','.join(map(str, shape))}] and the channels of its backbone"
        )
    if not x.is_floating_point():
        raise ConfigError(f"the data has samples of type {x.dtype}: give floats in [-1, 1]")
    if first and len(image_shape) == 3:  # the range of other data is not known
        _check_range(x)
    elif first and not bool(x.isfinite().all()):
        raise ConfigError("the data has samples that are not finite: repair or remove them")


def _check_range(x: Tensor) -> None:
    low, high = float(x.min()), float(x.max())
    if not low >= -1 - _SLACK or not high <= 1 + _SLACK:  # NaN too
        scale = "divide by 127.5 and subtract 1" if low >= 0 and high <= 255 else "give finite floats in [-1, 1]"
        raise ConfigError(f"the data has images with values from {low:g} to {high:g}: {scale}")
    if low >= 0 and high > 0.5:
        rank_zero_warn("the first images lie in [0, 1], where [-1, 1] is expected: multiply by 2 and subtract 1")


def _class_numbers(labels: Tensor, n: int, num_classes: int, first: bool) -> Tensor:
    """Whole numbers (B,) from labels in any accepted form."""
    if labels.ndim == 2 and labels.shape[1] == num_classes > 1:
        if first and not bool(((labels == 0) | (labels == 1)).all() and (labels.sum(1) == 1).all()):
            raise ConfigError("the data has labels that are not one-hot: give class indices, (B,)")
        return labels.int().argmax(1)
    if labels.shape not in ((n,), (n, 1)):
        raise ConfigError(f"the data has labels of shape {tuple(labels.shape)}: give class indices, ({n},)")
    if labels.dtype == torch.bool or labels.is_complex():
        raise ConfigError(f"the data has labels of type {labels.dtype}: give class indices, int64")
    if labels.is_floating_point() and first and not bool((labels == labels.floor()).all()):
        raise ConfigError("the data has labels that are not whole numbers: give class indices, int64")
    return labels.reshape(n).long()


def division_of_a_step(trainer: L.Trainer) -> str:
    """The line on the division of a step's images among ranks and batches; empty if there is nothing to divide."""
    batch = getattr(trainer.datamodule, "batch_size", None)  # type: ignore[attr-defined]
    ranks, accumulate = trainer.world_size, trainer.accumulate_grad_batches
    if not batch or ranks * accumulate == 1:
        return ""
    group = trainer.optimizers[0].param_groups[0]
    rate = group.get("initial_lr", group["lr"])  # before the schedule
    return (
        f"a step takes {accumulate * batch} images: {ranks} rank(s) x {accumulate} batch(es) of {batch // ranks}; the "
        f"learning rate stays as given, {rate:g}, because it applies to the whole batch"
    )
