"""The beginning and end of a run of the Trainer: its checkpoint, its directory, and the marks that it leaves."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_only

from cm_lightning.callbacks.missed_validation import MissedValidation, is_missing
from cm_lightning.callbacks.resumed import Resumed
from cm_lightning.callbacks.run_directory import RunDirectory
from cm_lightning.callbacks.stopping import REQUEUE, exit_status
from cm_lightning.checkpoint import read_checkpoint
from cm_lightning.errors import CheckpointError, ConfigError
from cm_lightning.failures import INTERRUPTED, is_out_of_memory
from cm_lightning.files import replacing
from cm_lightning.interop.foreign import is_foreign
from cm_lightning.modules.trained import TrainedModule
from cm_lightning.parts import begin_anew, require_parts
from cm_lightning.resume import allowed_changes, at_its_end
from cm_lightning.run import FINISHED, RunNote, find_checkpoint, last_checkpoint
from cm_lightning.slurm import begun_by_this_job
from cm_lightning.steps import steps_taken
from cm_lightning.trainer_options import require_one_run

_INSTEAD = {
    "fit": "leave the option out to start a new run",
    "validate": "train first with fit, or name the file or run of a checkpoint",
}


def name_checkpoints(config: Any) -> None:
    """Replace a run's folder by its checkpoint in the model's options, so that the saved configuration names the file.

    A folder without a checkpoint stays, because only the module knows whether it needs the file.
    """
    options = config.model.get("init_args") or {}
    for name in ("teacher", "start_from"):
        if isinstance(options.get(name), str) and Path(options[name]).is_dir():
            with suppress(CheckpointError):
                found = str(find_checkpoint(options[name]))
                rank_zero_info(f"model.{name} {options[name]}: {found}")
                options[name] = found


def trainer_options(config: Any) -> dict[str, Any]:
    """The Trainer's options that differ from the suite's: the Trainer validates after batches, not steps."""
    interval, accumulate = config.val_check_interval, config.accumulate_grad_batches
    if isinstance(interval, int) and not isinstance(interval, bool) and isinstance(accumulate, int):
        return {"val_check_interval": interval * max(1, accumulate)}
    return {}


class Start:
    """The beginning and the end of one call of the Trainer.

    Args:
        subcommand: ``fit``, ``validate``, ``test`` or ``predict``.
        trainer: the Trainer, with loggers that have not written yet.
        run: the callback for the run's directory, one of the Trainer's.
        ckpt_path: the option as given: ``last``, a file, or the folder of a run or of one of its versions.

    Raises:
        CheckpointError: the checkpoint does not exist, or is damaged.
        ConfigError: a test is not given weights, or the version already holds another run.
    """

    def __init__(self, subcommand: str, trainer: L.Trainer, run: RunDirectory, ckpt_path: str | None) -> None:
        self.trainer, self.run = trainer, run
        require_one_run(trainer.world_size)
        run.prepare(trainer)
        #: The file, in the form that Lightning takes.
        self.checkpoint = _checkpoint(subcommand, run, ckpt_path)
        self._file = Path(self.checkpoint) if self.checkpoint and ckpt_path not in ("best", "hpc") else None
        self._content = read_checkpoint(self._file) if self._file else None  # reports a damaged file in one line
        self._at_its_end = False
        run.require_free(self._file)

    def compare(self, config: Mapping[str, Any]) -> None:
        """Find the changes of a resumed run; exit if there is nothing left to train.

        Raises:
            ConfigError: an option has changed that a resumed run must keep.
        """
        if self._file is None or self._content is None:
            return
        changes = allowed_changes(self._content, self._file, config)
        require_parts(self._content, self._file)
        missed = is_missing(self._content, self._file, self.trainer)
        line = at_its_end(self._content, self.trainer.max_steps, self.trainer.max_epochs)
        self._at_its_end = line is not None
        if line and not missed:
            self._say_nothing_is_left(line)
        if anew := begin_anew(self._content, self.trainer.world_size):
            rank_zero_info(f"{self._file} does not hold all of a run, so these are reset: {', '.join(anew)}")
        self.trainer.callbacks.insert(0, Resumed(changes))  # type: ignore[attr-defined]
        if missed:
            self.trainer.callbacks.append(MissedValidation())  # type: ignore[attr-defined]
        self._content = None

    def fit(self, **options: Any) -> None:
        """Train; afterwards mark the run as finished, or print how to resume it."""
        handler = signal.getsignal(signal.SIGINT)
        if self.checkpoint is None:  # else Lightning takes any hpc_ckpt_*.ckpt in the working folder
            self.trainer._checkpoint_connector._user_managed = True
        try:
            self.trainer.fit(**options)
        except SystemExit as stop:
            if isinstance(stop.__context__, KeyboardInterrupt):
                self._say_how_to_go_on()
                raise SystemExit(exit_status(self.trainer, INTERRUPTED)) from None
            if isinstance(stop, SIGTERMException):
                self._say_how_to_go_on()
                rank_zero_only(sys.stderr.write)(f"exit status {REQUEUE}: it is not finished, so queue it again\n")
                raise SystemExit(exit_status(self.trainer, REQUEUE)) from None
            raise
        except (RuntimeError, MemoryError) as error:
            batch = getattr(self.trainer.datamodule, "batch_size", 0)  # type: ignore[attr-defined]
            if is_out_of_memory(error) and batch // 2 >= self.trainer.world_size:
                raise ConfigError(_smaller(batch, self.trainer)) from error
            raise
        finally:
            if handler is not None:  # Lightning leaves Ctrl-C switched off
                signal.signal(signal.SIGINT, handler)
        if self.run.path and not (self.trainer.received_sigterm or self.trainer.fast_dev_run):  # type: ignore[attr-defined]
            self._keep_checkpoint(self.run.path)
            _mark_as_finished(self.run.path, steps_taken(self.trainer))
            self._say_what_there_is(self.run.path)

    @rank_zero_only  # type: ignore[untyped-decorator]
    def _keep_checkpoint(self, run: Path) -> None:
        """Copy the checkpoint into the directory of a run that only made up for the last validation."""
        if self._file is None or not self._at_its_end or (run / "checkpoints").exists():
            return
        with replacing(run / "checkpoints/last.ckpt") as path:
            shutil.copyfile(self._file, path)

    @rank_zero_only  # type: ignore[untyped-decorator]
    def _say_what_there_is(self, run: Path) -> None:
        for what, path in {"pictures": "samples", "checkpoint": "checkpoints", "curves": "metrics.csv"}.items():
            if (run / path).exists():
                print(f"{what + ':':<12}{(find_checkpoint(run) if what == 'checkpoint' else run / path)}")
        module = self.trainer.lightning_module
        arguments = module.sample_arguments(run) if isinstance(module, TrainedModule) else None
        if arguments:
            print(f"to draw: {shlex.join(['cm-lightning', 'sample', *arguments])}")

    @rank_zero_only  # type: ignore[untyped-decorator]
    def _say_how_to_go_on(self) -> None:
        try:
            checkpoint = find_checkpoint(self.run.path) if self.run.path else None
        except CheckpointError:
            checkpoint = None
        if checkpoint is None:
            sys.stderr.write("interrupted before there was a checkpoint: start again\n")
            return
        command = shlex.join(["cm-lightning", *_without_checkpoint(sys.argv[1:]), "--ckpt_path", str(self.run.path)])
        sys.stderr.write(f"interrupted at step {steps_taken(self.trainer)}; to resume: {command}\n")

    def _say_nothing_is_left(self, line: str) -> None:
        assert self._file is not None
        version = self._file.parent.parent
        if self._file.parent.name == "checkpoints" and self._content:
            _mark_as_finished(version, self._content["global_step"])
        rank_zero_only(print)(f"nothing to do: {self._file} {line}")
        raise SystemExit(0)


def _smaller(batch: int, trainer: L.Trainer) -> str:
    """The line for a batch that does not fit into memory: smaller batches that make the same steps."""
    accumulate = trainer.accumulate_grad_batches
    part = next(size for size in range(batch // 2, 0, -1) if batch % size == 0 and size % trainer.world_size == 0)
    return (
        f"out of memory with --data.batch_size {batch}: try --data.batch_size {part} "
        f"--trainer.accumulate_grad_batches {accumulate * (batch // part)}, which take the same images per step; "
        "fit --dry_run prints what a recipe needs"
    )


def _checkpoint(subcommand: str, run: RunDirectory, ckpt_path: str | None) -> str | None:
    if ckpt_path is None and subcommand != "fit":
        raise ConfigError(f"{subcommand} needs weights: give --ckpt_path FILE, the folder of a run, or last")
    if ckpt_path is None:
        found = begun_by_this_job(run.root) if subcommand == "fit" else None
        return str(found) if found else None
    if ckpt_path in ("best", "hpc"):
        return ckpt_path
    if ckpt_path != "last":
        if is_foreign(str(ckpt_path)):
            raise ConfigError(
                f"--ckpt_path {ckpt_path}: {subcommand} takes a checkpoint of this suite; training starts from other "
                f"weights by --model.start_from {ckpt_path}"
            )
        return str(find_checkpoint(ckpt_path))
    try:
        return str(last_checkpoint(run.named or run.root))
    except CheckpointError as error:
        raise CheckpointError(f"--ckpt_path last: {error}; {_INSTEAD.get(subcommand, _INSTEAD['validate'])}") from error


@rank_zero_only  # type: ignore[untyped-decorator]
def _mark_as_finished(version: Path, step: int) -> None:
    with replacing(version / FINISHED) as path:
        path.write_text(json.dumps({"step": step}) + "\n")
    RunNote(str(version), finished=True).leave()


def _without_checkpoint(arguments: Sequence[str]) -> list[str]:
    """The command line without ``--ckpt_path FILE`` or ``--ckpt_path=FILE``."""
    kept, skip = [], False
    for argument in arguments:
        if not skip and not argument.startswith("--ckpt_path="):
            kept.append(argument)
        skip = argument == "--ckpt_path"
    return [argument for argument in kept if argument != "--ckpt_path"]
