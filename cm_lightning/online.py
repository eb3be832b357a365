"""Runs of Weights & Biases: how they end, and whether the server can be reached, which is checked before they begin."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from lightning_utilities.core.rank_zero import rank_zero_only, rank_zero_warn

from cm_lightning.errors import ConfigError
from cm_lightning.failures import describe

_ADDRESS = "https://api.wandb.ai"
#: Seconds after which a server counts as out of reach.
TIMEOUT_S = 10.0
#: Seconds that the end of a run waits for a server that no longer answers; W&B itself would wait for days.
FINISH_S = 60


def wandb_logger(loggers: Sequence[Logger], mode: str) -> WandbLogger:
    """A logger whose files are beside those of a run's CSV log. See :func:`goes_offline` for the mode."""
    csv = next((logger for logger in loggers if isinstance(logger, CSVLogger)), None)
    root = csv.root_dir if csv else "runs"
    Path(root).mkdir(parents=True, exist_ok=True)
    offline = goes_offline(mode, root)
    if mode == "required":
        return WandbLogger(project="cm_lightning", save_dir=root)
    os.environ.setdefault("WANDB_FINISH_TIMEOUT", str(FINISH_S))
    os.environ.setdefault("WANDB_FINISH_TIMEOUT_RAISES", "true")
    logging.raiseExceptions = False  # else on a full disk each line of W&B's own log becomes a traceback on the screen
    return ExpendableWandbLogger(project="cm_lightning", save_dir=root, offline=offline)


class ExpendableWandbLogger(WandbLogger):
    """A logger whose failures do not end the training: the first one is reported in a line, and the run continues."""

    _failed = False

    def log_metrics(self, *args: Any, **options: Any) -> None:
        self._attempt(super().log_metrics, *args, **options)

    def log_image(self, *args: Any, **options: Any) -> None:
        self._attempt(super().log_image, *args, **options)

    def log_hyperparams(self, *args: Any, **options: Any) -> None:
        self._attempt(super().log_hyperparams, *args, **options)

    def finalize(self, status: str) -> None:
        self._attempt(super().finalize, status)

    def _attempt(self, log: Callable[..., Any], *args: Any, **options: Any) -> None:
        if self._failed and self._experiment is None:  # the W&B run could not begin
            return
        try:
            log(*args, **options)
            if self.save_dir and not self._failed and shutil.disk_usage(self.save_dir).free == 0:
                self._report(f"{self.save_dir}: no space left on device")  # W&B does not report this
        except Exception as error:  # W&B raises many kinds of errors
            self._report(describe(error))

    def _report(self, reason: str) -> None:
        if not self._failed:
            rank_zero_warn(f"W&B does not receive the whole log ({reason}); training continues")
        self._failed = True


@contextmanager
def wandb_run_ends() -> Iterator[None]:
    """End the W&B run that the block begins; otherwise a second run in this process would be logged as a part of it."""
    before, status = _wandb_run(), 1
    try:
        yield
        status = 0
    except SystemExit as stop:
        status = int(bool(stop.code))
        raise
    finally:
        run = _wandb_run()
        if run is not None and run is not before:
            _finish(run, status)


def _finish(run: Any, status: int) -> None:
    try:
        run.finish(exit_code=status)
    except TimeoutError:
        folder = Path(run.dir).parent
        rank_zero_warn(f"W&B did not take the rest of the log in time; to upload it: wandb sync {folder}")


def _wandb_run() -> Any:
    """The W&B run of this process, found without importing W&B."""
    return getattr(sys.modules.get("wandb"), "run", None)


def goes_offline(mode: str, folder: str) -> bool:
    """Whether a run logs only to files, by request or because the server cannot be reached.

    Args:
        mode: ``offline``; ``online``, which goes offline with a warning; or ``required``.
        folder: folder of the files, for the warning.

    Raises:
        ConfigError: W&B is required but cannot be reached.
    """
    if mode == "offline" or rank_zero_only.rank:  # type: ignore[attr-defined]  # other ranks do not log
        return True
    reason = why_unreachable()
    if reason and mode == "required":
        raise ConfigError(f"--wandb required: {reason}: give --wandb online, which then goes offline")
    if reason:
        rank_zero_warn(f"{reason}, so the run is logged offline; to upload it: wandb sync {folder}/wandb/offline-run-*")
    return reason is not None


def why_unreachable(timeout_s: float = TIMEOUT_S) -> str | None:
    """Why W&B cannot be used, in a few words; None if it can."""
    if not _key():
        return "there is no API key of W&B (run 'wandb login')"
    address = os.environ.get("WANDB_BASE_URL") or _ADDRESS
    problem = _within(timeout_s, lambda: _problem(address, timeout_s))
    return f"W&B at {address} cannot be reached ({problem})" if problem else None


def _key() -> str | None:
    import wandb

    return os.environ.get("WANDB_API_KEY") or wandb.api.api_key


def _problem(address: str, timeout_s: float) -> str | None:
    try:
        urllib.request.urlopen(address, timeout=timeout_s).close()
    except urllib.error.HTTPError as error:  # it answers
        return f"it answers {error.code}" if error.code >= 500 else None
    except (OSError, ValueError) as error:
        return str(getattr(error, "reason", error))
    return None


def _within(seconds: float, ask: Callable[[], Any]) -> Any:
    """What a function returns unless it takes too long: name resolution does not have a timeout of its own."""
    answers = ["there was no answer"]
    thread = Thread(target=lambda: answers.append(ask()), daemon=True)
    thread.start()
    thread.join(seconds)
    return answers[-1]
