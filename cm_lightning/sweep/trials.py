"""Trials of a sweep: one process each, and a record that outlives whatever kills it."""

from __future__ import annotations

import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cm_lightning.files import replacing
from cm_lightning.run import RUN_FILE, RunNote
from cm_lightning.sweep.command import Values
from cm_lightning.sweep.definition import Sweep

_GRACE_S = 60.0


@dataclass
class Trial:
    """One trial.

    Args:
        number: from 1 on.
        values: its parameters.
        state: ``running``, ``finished``, ``stopped`` (early, by the search), ``interrupted``, or ``failed``.
        directory: of its run; None until it is known.
        seconds: it took.
    """

    number: int
    values: Values
    state: str = "running"
    directory: str | None = None
    seconds: float = 0.0

    def history(self, metric: str) -> list[float]:
        """All values of a metric in the run's log, in order."""
        if self.directory is None or not (path := Path(self.directory) / "metrics.csv").is_file():
            return []
        with open(path, newline="") as file:
            return [float(row[metric]) for row in csv.DictReader(file) if row.get(metric)]


class Records:
    """The trials of a sweep on disc: ``trials/0001.json`` and the trial's output in ``trials/0001.log``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, number: int, suffix: str) -> Path:
        return self.folder / "trials" / f"{number:04d}{suffix}"

    def write(self, trial: Trial) -> None:
        with replacing(self.path(trial.number, ".json")) as path:
            path.write_text(json.dumps(asdict(trial), indent=1))

    def read(self) -> list[Trial]:
        """All trials in order; one that was running when everything was killed has been interrupted."""
        trials = [Trial(**json.loads(path.read_text())) for path in sorted(self.folder.glob("trials/*.json"))]
        for trial in trials:
            trial.state = "interrupted" if trial.state == "running" else trial.state
        return trials

    def write_results(self, sweep: Sweep) -> list[tuple[Trial, float | None]]:
        """Rank the trials by the last value of the sweep's metric, write ``results.csv``, and return the ranking."""
        scored = [(trial, _score(trial, sweep)) for trial in self.read()]
        scored.sort(key=lambda pair: _rank(pair[1], sweep.minimize))
        with replacing(self.folder / "results.csv") as path, open(path, "w", newline="") as file:
            writer = csv.writer(file)
            names = list(sweep.parameters)
            writer.writerow(["rank", "trial", "state", sweep.metric or "metric", *names, "seconds", "directory"])
            for rank, (trial, score) in enumerate(scored, 1):
                shown = "" if score is None else score
                values = [trial.values.get(name) for name in names]
                record = [rank, trial.number, trial.state, shown, *values, round(trial.seconds, 1), trial.directory]
                writer.writerow(record)
        return scored


def _score(trial: Trial, sweep: Sweep) -> float | None:
    history = trial.history(sweep.metric) if sweep.metric else []
    return history[-1] if history else None


def _rank(score: float | None, minimize: bool) -> tuple[bool, float]:
    if score is None or math.isnan(score):
        return True, 0.0
    return False, score if minimize else -score


def run_trial(
    sweep: Sweep, trial: Trial, records: Records, to_stop: Callable[[Trial], bool], poll_s: float = 2
) -> None:
    """Run a trial to its end, and keep its record up to date.

    Raises:
        KeyboardInterrupt: after the trial's processes have ended and the record says ``interrupted``.
    """
    note = records.path(trial.number, ".run")
    note.parent.mkdir(parents=True, exist_ok=True)
    note.unlink(missing_ok=True)
    records.write(trial)
    start, stopped = time.monotonic(), False
    with open(records.path(trial.number, ".log"), "wb") as log:
        process = subprocess.Popen(
            sweep.command_line(trial.values), env=_environment(sweep, note), stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
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
            finished = process.returncode == 0 and RunNote.read(note).finished  # a terminated run exits with 0 too
            trial.state = "stopped" if stopped else "finished" if finished else "failed"
        finally:
            trial.directory, trial.seconds = RunNote.read(note).directory, time.monotonic() - start
            records.write(trial)


def _wait(process: subprocess.Popen[Any], seconds: float) -> None:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return


def _end(process: subprocess.Popen[Any]) -> None:
    """Ask the trial and all its ranks to stop; whoever has not after a while is made to."""
    with suppress(ProcessLookupError):
        try:
            os.killpg(process.pid, signal.SIGTERM)
            _wait(process, _GRACE_S)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _environment(sweep: Sweep, note: Path) -> dict[str, str]:
    """No W&B account is needed, ``python`` is this one, and the run says where it lies."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    ours = {"PATH": path, "WANDB_MODE": "offline", "WANDB_RUN_GROUP": sweep.name, RUN_FILE: str(note)}
    return {**os.environ, **ours}
