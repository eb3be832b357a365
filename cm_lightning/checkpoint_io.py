"""Writing and reading the Trainer's checkpoints so that a killed process leaves the previous one intact."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.plugins.io import AsyncCheckpointIO

from cm_lightning.errors import CheckpointError
from cm_lightning.files import make_durable, replacing


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its path, makes it durable, and renames it: the path never holds a part of a file.

    Lightning's own plugin writes to ``$TMPDIR``; if that is another device, its last step truncates the previous
    checkpoint and copies the new one over it. Paths that are not local, such as ``s3://...``, are left to Lightning.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write a checkpoint.

        Raises:
            CheckpointError: the disk is full, or the path cannot be written.
        """
        if "://" in str(path) or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        try:
            with replacing(path) as temporary, open(temporary, "wb") as file:
                torch.save(checkpoint, file)
                make_durable(file)
            _make_folder_durable(Path(path).parent)
        except OSError as error:
            raise CheckpointError(
                f"{path} cannot be written ({error.strerror}): free space there or set save_dir of trainer.logger to "
                "another disk; the previous checkpoint is kept"
            ) from error


def write_atomically(trainer: L.Trainer) -> None:
    """Have a Trainer write its checkpoints by :class:`AtomicCheckpointIO`, unless it was given a plugin of its own."""
    plugin = trainer.strategy.checkpoint_io
    if type(plugin) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = AtomicCheckpointIO()
    elif isinstance(plugin, AsyncCheckpointIO) and type(plugin.checkpoint_io) is TorchCheckpointIO:
        plugin._checkpoint_io = AtomicCheckpointIO()


def _make_folder_durable(folder: Path) -> None:
    """Wait until the names in a folder are on the disk; some file systems cannot."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)
