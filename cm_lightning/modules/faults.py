"""Messages about values that are not finite: where they come from, and what helps in this run."""

from __future__ import annotations

import os

import lightning as L
import torch
from torch import Tensor

#: The number of images that a line lists.
_NAMED = 8


def of_the_loss(trainer: L.Trainer, step: int) -> str:
    """The line for a loss that has not been finite since a step."""
    said = f"the loss has not been finite since step {step}"
    images = _not_finite(trainer, "train", _images_of_step(trainer, step))
    if images:
        return f"{said}, whose batch has training images that are not finite, {_numbers(images)}: repair or remove them"
    return f"{said}: {_remedy(trainer)}; {_checkpoint_before(trainer)}"


def of_a_step_left_out(trainer: L.Trainer, step: int, count: int) -> str:
    """The line for a step whose gradients are not finite, the last of ``count`` such steps."""
    said = f"step {step} is left out because its gradients are not finite ({count} so far)"
    images = _not_finite(trainer, "train", _images_of_step(trainer, step))
    return f"{said}: training images are not finite, {_numbers(images)}: repair or remove them" if images else said


def of_the_weights(trainer: L.Trainer, step: int, part: str = "backbone") -> str:
    """The line for weights of a network, such as ``critic``, that are not finite at a step."""
    weights = "the weights" if part == "backbone" else f"the weights of {part}"
    return (
        f"{weights} are not finite at step {step}, so no checkpoint of them is written: {_remedy(trainer)}; "
        f"{_checkpoint_before(trainer)}"
    )


def of_a_validation(trainer: L.Trainer, batch: int, size: int) -> str:
    """The line for a validation loss that is not finite.

    Args:
        trainer: the Trainer.
        batch: number of the first such batch of this rank.
        size: images of a batch.
    """
    places = range(batch * size, (batch + 1) * size)
    images = [trainer.global_rank + trainer.world_size * place for place in places]
    found = _not_finite(trainer, "val", images)
    said = f"val/loss is not finite, first in batch {batch}"
    if found:
        return f"{said}, which has validation images that are not finite, {_numbers(found)}: repair or remove them"
    return f"{said}, whose images are finite: {_remedy(trainer)}"


def _images_of_step(trainer: L.Trainer, step: int) -> list[int]:
    images_of_step = getattr(trainer.datamodule, "images_of_step", None)  # type: ignore[attr-defined]
    return images_of_step(step) if images_of_step else []


def _not_finite(trainer: L.Trainer, split: str, images: list[int]) -> list[int]:
    """The numbers of those images that are not finite; none if the data module does not give its images."""
    data = trainer.datamodule  # type: ignore[attr-defined]
    if not images or not hasattr(data, "split"):
        return []
    source = data.training_set() if split == "train" else data.split(split)
    return [i for i in images if i < len(source) and not _is_finite(source[i])]


def _is_finite(sample: object) -> bool:
    first = sample[0] if isinstance(sample, tuple | list) else sample
    return not isinstance(first, Tensor) or bool(torch.isfinite(first).all())


def _numbers(images: list[int]) -> str:
    shown = ", ".join(map(str, images[:_NAMED]))
    return f"numbers {shown}" + (f" and {len(images) - _NAMED} more" if len(images) > _NAMED else "")


def _remedy(trainer: L.Trainer) -> str:
    clip = trainer.gradient_clip_val
    if not trainer.lightning_module.automatic_optimization:  # which the Trainer does not clip
        return "lower the learning rate"
    if clip:
        return f"lower the learning rate, or --trainer.gradient_clip_val, which is {clip:g}"
    return "lower the learning rate, or set --trainer.gradient_clip_val=1"


def _checkpoint_before(trainer: L.Trainer) -> str:
    """What there is to resume from; a checkpoint is not written once the loss has failed."""
    names = [getattr(callback, "last_model_path", "") for callback in trainer.checkpoint_callbacks]
    written = [name for name in (*names, trainer.ckpt_path) if name and os.path.isfile(name)]
    return f"{written[0]} is from before that step" if written else "a checkpoint from before that step does not exist"
