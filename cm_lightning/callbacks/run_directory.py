"""The directory of a run: its path, and its creation once training has taken its first step."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning_utilities.core.rank_zero import rank_zero_info

from cm_lightning.callbacks.rows import Rows
from cm_lightning.checkpoint_io import write_atomically
from cm_lightning.errors import ConfigError
from cm_lightning.files import remove_leftovers
from cm_lightning.lock import Lock, require_unlocked
from cm_lightning.run import FINISHED, claim_version, holds_a_run, version_name, version_number

_FileLogger = CSVLogger | TensorBoardLogger
_BUSY = ("another training", "name another version by trainer.logger.init_args.version")


class RunDirectory(Callback):
    """Gives every run its own ``NAME/version_N``, with any loggers, and leaves nothing behind if the start fails.

    Nothing is written until the first batch is done; earlier calls of file loggers are kept and replayed.
    A version that the configuration names is used only if it is free, or if this run resumes from it.

    Args:
        name: name of the run if its loggers do not have one.
        fits: whether the run trains; a test of a named version leaves that version alone.
    """

    def __init__(self, name: str, fits: bool) -> None:
        self.name, self.fits = name, fits
        #: The directory that the run writes to; None before it does.
        self.path: Path | None = None
        self._named: Path | None = None
        self._roots: list[Path] = []
        self._unplaced: list[ModelCheckpoint] = []
        self._first_step = 0
        self._lock = Lock()

    def prepare(self, trainer: L.Trainer) -> None:
        """Find the directory of the run before a logger takes a version, and make the loggers wait."""
        loggers = _of_files(trainer)
        self._roots = list(dict.fromkeys(Path(logger.root_dir) for logger in loggers)) or [_folder(trainer) / self.name]
        if loggers and loggers[0]._version is not None:
            self._named = self._roots[0] / version_name(loggers[0]._version)
        for logger in loggers:
            logger._experiment = _Waiting()  # type: ignore[assignment]

    def require_free(self, checkpoint: Path | None) -> None:
        """Raise ConfigError if training would overwrite a run that it does not resume."""
        path = self._named
        if path is not None and self.fits:
            require_unlocked(path, *_BUSY)
        if path is None or not self.fits or not holds_a_run(path):
            return
        if checkpoint is None or path.resolve() not in checkpoint.resolve().parents:
            raise ConfigError(
                f"trainer.logger.init_args.version: {path} already holds a run: name another version, leave it out, or "
                f"resume that run with --ckpt_path {path}"
            )

    @property
    def root(self) -> Path:
        """``NAME``, which holds the versions."""
        return self._roots[0]

    @property
    def named(self) -> Path | None:
        """The version that the configuration names."""
        return self._named

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        write_atomically(trainer)
        self._unplaced = [c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint) and not c.dirpath]
        if not os.access(_existing(self.root), os.W_OK):
            raise ConfigError(f"{self.root} cannot be written: set save_dir of trainer.logger to another folder")
        if stage == "fit" and trainer.checkpoint_callbacks and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            _require_space(self.root, sum(tensor.nbytes for tensor in pl_module.state_dict().values()))

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self._first_step = checkpoint.get("trained_steps", checkpoint.get("global_step", 0))

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:  # type: ignore[override]
        self._open(trainer, pl_module)

    def on_validation_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:  # type: ignore[override]
        if not trainer.sanity_checking:
            self._open(trainer, pl_module)

    def on_test_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:  # type: ignore[override]
        self._open(trainer, pl_module)

    def on_predict_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:  # type: ignore[override]
        self._open(trainer, pl_module)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._forget(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._forget(trainer)

    def _open(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.path is not None:
            return
        made = str(self._make(trainer)) if trainer.is_global_zero else ""
        self.path = Path(trainer.strategy.broadcast(made))
        for callback in self._unplaced:
            callback.dirpath = str(self.path / "checkpoints")
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        for logger in _of_files(trainer):
            _release(logger, self.path, self._first_step)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, SaveConfigCallback) and trainer.is_global_zero:
                callback.save_config(trainer, pl_module, str(trainer.state.fn))

    def _make(self, trainer: L.Trainer) -> Path:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return Path(tempfile.mkdtemp(prefix="fast_dev_run-"))
        for root in self._roots:
            remove_leftovers(root)
        if self._named and (self.fits or not holds_a_run(self._named)):
            self._lock.take(self._named, *_BUSY)
            (self._named / FINISHED).unlink(missing_ok=True)
            return self._named
        made = self.root / version_name(claim_version(self._roots))
        self._lock.take(made, *_BUSY)
        return made

    def _forget(self, trainer: L.Trainer) -> None:
        self._lock.release()
        if self.path is not None and trainer.fast_dev_run and trainer.is_global_zero:  # type: ignore[attr-defined]
            shutil.rmtree(self.path, ignore_errors=True)
            rank_zero_info("fast_dev_run: nothing was kept")


def run_directory(trainer: L.Trainer) -> Path:
    """The directory that this run writes to; unlike ``trainer.log_dir`` it does not synchronise ranks.

    It is the version that the command line made, else the CSV logger's directory, else the trainer's root.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, RunDirectory) and callback.path is not None:
            return callback.path
    for logger in trainer.loggers:
        if isinstance(logger, CSVLogger):
            return Path(logger.log_dir)
    return Path(trainer.default_root_dir)


class _Waiting:
    """Stands in for a logger's file until there is one, and keeps the calls."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Any, Any]] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: self.told.append((name, args, kwargs))


def _release(logger: _FileLogger, path: Path, first_step: int) -> None:
    """Have a logger write into a run's directory, beginning with the calls that were kept."""
    waiting, number = logger._experiment, version_number(path)
    logger._version = path.name if number is None else number
    logger._experiment = None
    if not isinstance(waiting, _Waiting):
        return  # the logger of another rank, which writes nothing
    if isinstance(logger, CSVLogger):
        logger._experiment = Rows(logger.log_dir, first_step)
    for name, args, kwargs in waiting.told:
        getattr(logger.experiment, name)(*args, **kwargs)


def _of_files(trainer: L.Trainer) -> list[_FileLogger]:
    """The loggers that write into ``NAME/version_N``; the first is the one with the run's directory."""
    found = [logger for logger in trainer.loggers if isinstance(logger, (CSVLogger, TensorBoardLogger))]
    return sorted(found, key=lambda logger: not isinstance(logger, CSVLogger))


def _folder(trainer: L.Trainer) -> Path:
    """The directory of runs without such a logger."""
    folder = Path(trainer.default_root_dir)
    return Path("runs") if folder == Path.cwd() else folder


def _require_space(root: Path, needed: int) -> None:
    """Raise ConfigError if a checkpoint, which is at least as large as the weights, does not fit on the disk."""
    free = shutil.disk_usage(_existing(root)).free
    if free < needed:
        raise ConfigError(
            f"{root}: the disk has {free / 2**20:,.0f} MiB left, and the weights take {needed / 2**20:,.0f}: free "
            "space there, or set save_dir of trainer.logger to another disk"
        )


def _existing(path: Path) -> Path:
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
