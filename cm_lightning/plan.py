"""The plan of a run: its size, schedule and memory, without running it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from torch import nn

from cm_lightning.activations import Kept
from cm_lightning.core.curriculum import Clock
from cm_lightning.core.schedule import RateSchedule
from cm_lightning.data.base import GenerativeDataModule, share_of_rank
from cm_lightning.data.stream import Stream
from cm_lightning.domains import POSITIVE
from cm_lightning.errors import ConfigError, DataError
from cm_lightning.memory import GIB, Memory
from cm_lightning.modules.lpips import LPIPS
from cm_lightning.modules.trained import TrainedModule
from cm_lightning.sharding import Sharded

#: GiB of common cards.
CARDS = (16.0, 24.0, 40.0, 80.0)
#: Usable share of a card's memory; the rest is for the context, workspaces, gradients of activations and fragmentation.
_USABLE = 0.85


@dataclass(frozen=True)
class Epoch:
    """An epoch: about one pass over the training images, in whole steps.

    Args:
        images: number of images in the training set, including mirror images.
        steps: number of optimizer steps.
    """

    images: int
    steps: int

    @classmethod
    def of(cls, data: GenerativeDataModule, trainer: L.Trainer) -> Epoch:
        """The epoch of a run. Raises DataError if the data cannot be read; nothing is downloaded."""
        images: int = len(data.training_set())  # type: ignore[arg-type]
        share = max(1, data.batch_size // trainer.world_size)
        accumulate = trainer.accumulate_grad_batches
        batches = len(Stream(range(images), share, world_size=trainer.world_size, multiple=accumulate)) // share
        limit = trainer.limit_train_batches
        limited = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
        return cls(images, max(1, limited // accumulate))


def plan_of(module: TrainedModule, data: Any, trainer: L.Trainer, memory: float | None = None) -> str:
    """The plan of a configured run, in lines for the user.

    Args:
        module: see :func:`plan`.
        data: the data module; its images may be missing.
        trainer: the Trainer of the run.
        memory: GiB of a card; common cards if None.

    Raises:
        ConfigError: the length of the run or the batch is not known, the batch cannot be divided among the ranks, or
            memory is not positive.
    """
    if memory is not None:
        POSITIVE.check(**{"--memory": memory})
    batch = getattr(data, "batch_size", None)
    if batch is None:
        raise ConfigError("--dry_run needs a data module with batch_size")
    epoch, unknown = _epoch(data, trainer)
    return plan(
        module, _steps(trainer, epoch, unknown), batch, trainer.world_size, trainer.accumulate_grad_batches,
        trainer.callbacks,  # type: ignore[attr-defined]
        str(trainer.precision), CARDS if memory is None else (memory,), epoch,
        isinstance(trainer.strategy, Sharded),
    )  # fmt: skip


def plan(
    module: TrainedModule,
    steps: int,
    batch_size: int,
    ranks: int,
    accumulate: int,
    callbacks: Iterable[object],
    precision: str = "32-true",
    cards: Sequence[float] = CARDS,
    epoch: Epoch | None = None,
    split: bool = False,
) -> str:
    """The plan of a run in lines for the user.

    Args:
        module: the module on any device; on ``meta`` its weights take no memory.
        steps: optimizer steps of the run.
        batch_size: size of the batch of all ranks together, between two gradients.
        ranks: number of processes.
        accumulate: number of batches in an optimizer step.
        callbacks: callbacks of the Trainer; each EMA keeps a copy of the network.
        precision: precision of the Trainer, such as ``bf16-mixed``.
        cards: GiB of the cards to fill.
        epoch: epoch of the data, if it is known.
        split: whether the trained network is split over the ranks.

    Raises:
        ConfigError: the batch cannot be divided among the ranks.
    """
    memory, share = Memory.of(module, callbacks, precision, ranks if split else 1), share_of_rank(batch_size, ranks)
    lines = [
        f"{type(module).__name__}, {type(module.backbone).__name__}: "
        f"{sum(p.numel() for p in module.backbone.parameters()):,} parameters",
        _images(steps, batch_size, accumulate) + f"; {share:,} per rank on {ranks} rank(s)",
        *([f"{epoch.images:,} training images: {steps / epoch.steps:.1f} epochs"] if epoch else []),
        f"memory per rank: {memory.constant / GIB:.2f} GiB = {memory.terms()}",
        f"and activations in {precision}{_left_out(module)}: {memory.kept.image / 2**20:.1f} MiB per image, "
        f"{memory.kept.image * share / GIB:.1f} GiB for the batch of a rank",
        *_card_lines(cards, memory.constant, memory.kept, batch_size * accumulate, ranks),
        "step        schedule",
    ]
    lines += [f"{step:<12,}{_schedule(module, step, steps)}" for step in (steps * i // 4 for i in range(5))]
    return "\n".join(lines)


def _epoch(data: Any, trainer: L.Trainer) -> tuple[Epoch | None, str]:
    """The epoch, or why it is not known."""
    if not isinstance(data, GenerativeDataModule):
        return None, f"{type(data).__name__} does not give its length"
    try:
        return Epoch.of(data, trainer), ""
    except DataError as error:
        return None, str(error)


def _steps(trainer: L.Trainer, epoch: Epoch | None, unknown: str) -> int:
    """Optimizer steps of the run, by the first limit that it reaches."""
    limits = [trainer.max_steps] if trainer.max_steps > 0 else []
    if trainer.max_epochs is not None and trainer.max_epochs > 0 and epoch is not None:
        limits.append(trainer.max_epochs * epoch.steps)
    if limits:
        return min(limits)
    if trainer.max_epochs is not None and trainer.max_epochs > 0:
        raise ConfigError(f"--dry_run cannot compute the steps of {trainer.max_epochs} epochs: {unknown}; or set "
                          "--trainer.max_steps")  # fmt: skip
    raise ConfigError("--dry_run needs the length of the run: set --trainer.max_steps (or --trainer.max_epochs)")


def _images(steps: int, batch_size: int, accumulate: int) -> str:
    step = accumulate * batch_size
    return f"{steps:,} steps x {step:,} images = {steps * step:,} images"


def _card_lines(cards: Sequence[float], constant: int, kept: Kept, images: int, ranks: int) -> list[str]:
    """For each card the largest batch that fits, and the options that keep the number of images per step.

    Args:
        cards: GiB of memory.
        constant: bytes that do not depend on the batch.
        kept: bytes kept by a forward pass.
        images: images of an optimizer step.
        ranks: number of processes.
    """
    lines = [f"largest batch per rank on a card, with {1 - _USABLE:.0%} left free:"]
    for card in cards:
        most = int((card * _USABLE * GIB - constant) // max(1, kept.image))
        part = max((n for n in range(1, min(most, images // ranks) + 1) if images % (n * ranks) == 0), default=0)
        options = f"--data.batch_size {part * ranks} --trainer.accumulate_grad_batches {images // max(1, part * ranks)}"
        says = f"{most:,} image(s); {options} take {images:,} per step" if part else "not even one image fits"
        lines.append(f"{card:6g} GiB: {says}")
    return lines


def _left_out(module: TrainedModule) -> str:
    """A note about activations that are not counted."""
    parts = [part for network in (module.backbone, *module.frozen_networks().values()) for part in network.modules()]
    left_out = []
    if any(getattr(part, "gradient_checkpointing", False) for part in parts):
        left_out.append("the block that checkpointing computes again")
    if any(isinstance(part, LPIPS) for part in module.modules()):
        left_out.append("LPIPS's own")
    return f" (without {' and '.join(left_out)})" if left_out else ""


def _schedule(module: TrainedModule, step: int, total: int) -> str:
    rate = module.optimizer_of([nn.Parameter(torch.zeros(1, device="cpu"))]).param_groups[0]["lr"]
    if isinstance(module.lr_scheduler, RateSchedule):
        rate *= module.lr_scheduler(step, total)
    shown = {"lr": rate, **module.progress(Clock(step, total))}
    return "  ".join(f"{name} {value:.6g}" for name, value in shown.items())
