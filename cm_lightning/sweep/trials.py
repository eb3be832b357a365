"""Trials of a sweep, each with its own process and a record that survives a kill."""

from __future__ import annotations

import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cm_lightning import lock
from cm_lightning.errors import DataError
from cm_lightning.files import replacing
from cm_lightning.run import RUN_FILE, RunNote
from cm_lightning.sweep.command import Values
from cm_lightning.sweep.definition import Sweep

_GRACE_S = 60.0
_STATES = ("running", "finished", "stopped", "interrupted", "failed")
_NOT_METRICS = ("epoch", "step", "")


@dataclass
class Trial:
    """One trial.

    Args:
        number: number of the trial, from 1.
        values: its parameters.
        state: ``running``, ``finished``, ``stopped`` (early, by the search), ``interrupted``, or ``failed``.
        directory: directory of its run; None until it is known.
        seconds: duration of the trial.
    """

    number: int
    values: Values
    state: str = "running"
    directory: str | None = None
    seconds: float = 0.0

    def history(self, metric: str) -> list[float]:
        """All values of a metric in the run's log, in order."""
        values = []
        for row in self._log():
            with suppress(TypeError, ValueError):  # an empty cell, or one that is being written
                values.append(float(row.get(metric) or ""))
        return values

    def score(self, metric: str | None) -> float | None:
        """The last value of a metric; None if it was not logged."""
        history = self.history(metric) if metric else []
        return history[-1] if history else None

    def logged(self) -> set[str]:
        """The names of the metrics that the run has logged."""
        return {name for row in self._log() for name, cell in row.items() if cell and name not in _NOT_METRICS}

    def _log(self) -> list[dict[str, str]]:
        if self.directory is None or not (path := Path(self.directory) / "metrics.csv").is_file():
            return []
        with open(path, newline="", errors="replace") as file:
            return list(csv.DictReader(file, restkey=""))


def alone(folder: Path) -> AbstractContextManager[None]:
    """Make the folder and lock it; the lock of a process that has ended does not count.

    Raises:
        ConfigError: another process holds it.
    """
    return lock.alone(folder, "another sweep", "give another --output")


class Records:
    """The trials of a sweep on disk: ``trials/0001.json`` and the trial's output in ``trials/0001.log``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, number: int, suffix: str) -> Path:
        return self.folder / "trials" / f"{number:04d}{suffix}"

    def write(self, trial: Trial) -> None:
        with replacing(self.path(trial.number, ".json")) as path:
            path.write_text(json.dumps(asdict(trial), indent=1))

    def read(self) -> list[Trial]:
        """Read all trials in order; one that was running when the sweep was killed counts as interrupted.

        Raises:
            DataError: a record is damaged.
        """
        trials = [_read_trial(path) for path in self.folder.glob("trials/[0-9]*.json")]
        for trial in trials:
            trial.state = "interrupted" if trial.state == "running" else trial.state
        return sorted(trials, key=lambda trial: trial.number)

    def keep_definition(self, sweep: Sweep) -> list[str]:
        """Keep the sweep's definition beside its trials.

        Returns:
            The keys in which it differs from the definition of an earlier start, such as "parameters.x".
        """
        path = self.folder / "sweep.json"
        new = _by_key(sweep.raw)
        old = new
        if path.is_file():
            with suppress(TypeError, ValueError):  # a damaged file is rewritten
                old = dict(json.loads(path.read_text()))
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(new, indent=1))
        return [key for key in {**old, **new} if old.get(key) != new.get(key)]

    def write_results(self, sweep: Sweep) -> list[tuple[Trial, float | None]]:
        """Rank the trials by the last value of the sweep's metric, write ``results.csv``, and return the ranking."""
        scored = [(trial, trial.score(sweep.metric)) for trial in self.read()]
        scored.sort(key=lambda pair: _rank(pair[1], sweep.minimize))
        with replacing(self.folder / "results.csv") as path, open(path, "w", newline="") as file:
            writer = csv.writer(file)
            names = list(sweep.parameters)
            writer.writerow(["rank", "trial", "state", sweep.metric or "metric", *names, "seconds", "directory"])
            for rank, (trial, score) in enumerate(scored, 1):
                shown = "" if score is None else score
                values = [str(trial.values[name]) if name in trial.values else "" for name in names]  # null is None
                record = [rank, trial.number, trial.state, shown, *values, round(trial.seconds, 1), trial.directory]
                writer.writerow(record)
        return scored


def _read_trial(path: Path) -> Trial:
    try:
        trial = Trial(**json.loads(path.read_text()))
        _require_whole(trial, path)
    except (OSError, TypeError, ValueError) as error:
        raise DataError(f"{path} is not a trial's record ({error}): restore it, or remove it and --resume") from error
    return trial


def _require_whole(trial: Trial, path: Path) -> None:
    fits = {
        "number": f"{trial.number:04d}" == path.stem,
        "values": isinstance(trial.values, dict),
        "state": trial.state in _STATES,
        "directory": isinstance(trial.directory, str | None),
        "seconds": isinstance(trial.seconds, int | float),
    }
    if wrong := [key for key, fit in fits.items() if not fit]:
        raise ValueError(f"{wrong[0]} is {getattr(trial, wrong[0])!r}")


def _by_key(raw: Mapping[str, Any]) -> dict[str, str]:
    """A definition as comparable text for each key and parameter."""
    parts = {**raw, **{f"parameters.{name}": parameter for name, parameter in raw["parameters"].items()}}
    return {key: json.dumps(part, sort_keys=True, default=str) for key, part in parts.items() if key != "parameters"}


def _rank(score: float | None, minimize: bool) -> tuple[int, float]:
    """A sort key: finite scores come first, then NaN and infinity, then trials without a score."""
    if score is None or not math.isfinite(score):
        return (2 if score is None else 1), 0.0
    return 0, score if minimize else -score


def run_trial(
    sweep: Sweep, trial: Trial, records: Records, to_stop: Callable[[Trial], bool], poll_s: float = 2
) -> None:
    """Run a trial to its end, updating its record.

    Raises:
        KeyboardInterrupt: after the trial's processes have ended and the record says ``interrupted``.
    """
    note = records.path(trial.number, ".run")
    note.parent.mkdir(parents=True, exist_ok=True)
    note.unlink(missing_ok=True)
    records.write(trial)
    start, stopped = time.monotonic(), False
    with open(records.path(trial.number, ".log"), "wb") as log:
        try:
            process = subprocess.Popen(
                sweep.command_line(trial.values), env=_environment(sweep, note), stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        except (OSError, ValueError) as error:  # the command is too long, or may not be run
            log.write(f"error: {error}\n".encode())
            trial.state = "failed"
            records.write(trial)
            return
        try:
            while process.poll() is None:
                _wait(process, poll_s)
                trial.directory = RunNote.read(note).directory
                if not stopped and to_stop(trial):
                    stopped = True
                    _end(process)
        except BaseException:
            _end(process)
            trial.state = "interrupted"
            raise
        else:
            finished = process.returncode == 0 and RunNote.read(note).finished  # status 0 alone may come too early
            trial.state = "stopped" if stopped else "finished" if finished else "failed"
            if trial.state == "failed":
                log.write(_ending(process.returncode).encode())
        finally:
            trial.directory, trial.seconds = RunNote.read(note).directory, time.monotonic() - start
            records.write(trial)


def _ending(status: int) -> str:
    """A line for what a program cannot report itself: a kill, or an early end without an error."""
    if status < 0:
        memory = ": the system does so when memory is full" if -status == signal.SIGKILL else ""
        return f"\nerror: it was ended by signal {-status} ({signal.strsignal(-status)}){memory}\n"
    return "\nerror: it ended with status 0, but before its run was finished\n" if status == 0 else ""


def _wait(process: subprocess.Popen[Any], seconds: float) -> None:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return


def _end(process: subprocess.Popen[Any]) -> None:
    """Ask the trial and all its ranks to stop, and kill those that have not stopped after a while."""
    with suppress(ProcessLookupError):
        try:
            os.killpg(process.pid, signal.SIGTERM)
            _wait(process, _GRACE_S)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _environment(sweep: Sweep, note: Path) -> dict[str, str]:
    """The environment of a trial: without a W&B account, with this ``python``, and with a file for the run's note."""
    ours = {"PATH": search_path(), "WANDB_MODE": "offline", "WANDB_RUN_GROUP": sweep.name, RUN_FILE: str(note)}
    return {**os.environ, **ours}


def search_path() -> str:
    """The PATH in which a trial's program is searched."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
