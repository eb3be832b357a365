"""A run as its directory tells it: config.yaml, metrics.csv, samples and the checkpoint."""

from __future__ import annotations

import csv
import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from cm_lightning.errors import CheckpointError, DataError

_SCORE = re.compile(r"(?P<stage>val|test)/(?P<metric>\w+)_nfe(?P<nfe>\d+)")
_SHEET = re.compile(r"step_(?P<step>\d+)_nfe(?P<nfe>\d+)\.png")


@dataclass(frozen=True)
class Score:
    """``value`` of ``metric`` at ``nfe`` evaluations, by a solver for a diffusion model.

    ``stage`` is ``val``, with the step of the training it was measured at, or ``test``, which knows no step.
    """

    stage: str
    step: int
    metric: str
    nfe: int
    value: float
    sampler: str = ""


@dataclass
class Run:
    """One training run, with what later tests said of it.

    Args:
        directory: of the run; the last one if it was resumed.
        config: as saved by the command line.
        progress: (step, images seen, seconds of training) as logged.
        scores: in the order they were measured.
    """

    directory: Path
    config: dict[str, Any]
    progress: list[tuple[int, float, float]] = field(default_factory=list)
    scores: list[Score] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The logger's name, or the directory's."""
        loggers = self.config.get("trainer", {}).get("logger") or []
        for logger in loggers if isinstance(loggers, list) else [loggers]:
            if isinstance(logger, dict) and (name := logger.get("init_args", {}).get("name")):
                return str(name)
        return self.directory.name

    @property
    def method(self) -> str:
        """The module's class."""
        return str(self.config.get("model", {}).get("class_path", "?")).rpartition(".")[2]

    @property
    def seed(self) -> Any:
        """What ``seed_everything`` was."""
        return self.config.get("seed_everything")

    @property
    def checkpoint(self) -> Path | None:
        """The checkpoint that the run started from or tested."""
        path = self.config.get("ckpt_path")
        return Path(path) if path else None

    @property
    def origin(self) -> str:
        """The run whose checkpoint taught it or started it: what it cost comes on top."""
        options = self.config.get("model", {}).get("init_args", {})
        path = options.get("teacher") or options.get("start_from")
        return "/".join(Path(path).parts[-4:-2]) if isinstance(path, str) else ""

    @property
    def images(self) -> float | None:
        """Seen in training."""
        return self.progress[-1][1] if self.progress else None

    @property
    def seconds(self) -> float | None:
        """Spent on training."""
        return self.progress[-1][2] if self.progress else None

    @cached_property
    def parameters(self) -> int | None:
        """Of the network, by the last checkpoint; None where there is none."""
        from cm_lightning.checkpoint import read_checkpoint, weights

        try:
            backbone = weights(read_checkpoint(self.directory / "checkpoints/last.ckpt"), "raw")
        except CheckpointError:
            return None
        return sum(tensor.numel() for tensor in backbone.values())

    def spent(self, step: int) -> tuple[float, float]:
        """(images, seconds) after a step, on the line between the logged ones."""
        steps = [entry[0] for entry in self.progress]
        right = min(bisect_left(steps, step), len(steps) - 1)
        (s0, i0, t0), (s1, i1, t1) = self.progress[max(right - 1, 0)], self.progress[right]
        part = (step - s0) / (s1 - s0) if s1 > s0 else 1.0
        return i0 + part * (i1 - i0), t0 + part * (t1 - t0)

    def curve(self, metric: str, nfe: int) -> list[tuple[float, float, float]]:
        """(images, seconds, value) of a metric while it trained."""
        found = [s for s in self.scores if (s.stage, s.metric, s.nfe, s.sampler) == ("val", metric, nfe, "")]
        return [(*self.spent(score.step), score.value) for score in found] if self.progress else []

    def final(self, metric: str, nfe: int) -> float | None:
        """The last value of a metric."""
        values = [s.value for s in self.scores if s.metric == metric and s.nfe == nfe]
        return values[-1] if values else None

    def sheet(self, nfe: int) -> Path | None:
        """The last sheet of samples."""
        found = [(int(m["step"]), p) for p in self.directory.glob("samples/*.png") if (m := _SHEET.fullmatch(p.name))
                 and int(m["nfe"]) == nfe]  # fmt: skip
        return max(found)[1] if found else None


def read_runs(directories: Sequence[str | Path]) -> list[Run]:
    """The runs of these directories; resumed ones are joined to what they went on from, and tests to what they tested.

    Raises:
        DataError: a directory that holds no run.
    """
    read = [_read(Path(directory)) for directory in directories]
    known = {_key(run.directory): run for run in read}
    for run in list(known.values()):  # what a resumed run went on from is looked up even if it was not named
        _add_ancestors(run, known)
    trained: dict[Path, Run] = {}
    for run in known.values():
        parent = known.get(_parent(run)) if run.checkpoint and _parent(run) != _key(run.directory) else None
        if run.progress and parent is not None:
            first = run.progress[0][0]
            run.progress = [entry for entry in parent.progress if entry[0] < first] + run.progress
            run.scores = [score for score in parent.scores if score.step < first] + run.scores
            trained.pop(_key(parent.directory), None)
        elif parent is not None:
            parent.scores += run.scores
            continue
        trained[_key(run.directory)] = run
    return list(trained.values())


def _add_ancestors(run: Run, known: dict[Path, Run]) -> None:
    """Put the runs that this one builds on before it, oldest first."""
    key = _key(run.directory)
    if run.checkpoint and (parent := _parent(run)) not in known and (parent / "metrics.csv").is_file():
        known[parent] = _read(parent)
        _add_ancestors(known[parent], known)
    if run.checkpoint:
        known[key] = known.pop(key)


def _key(directory: Path) -> Path:
    return directory.resolve()


def _parent(run: Run) -> Path:
    assert run.checkpoint is not None
    return _key(run.checkpoint.parent.parent)


def _read(directory: Path) -> Run:
    try:
        config = yaml.safe_load((directory / "config.yaml").read_text())
        with open(directory / "metrics.csv", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, yaml.YAMLError) as error:
        raise DataError(
            f"{directory} is no run: expected config.yaml and metrics.csv, as in runs/NAME/version_0"
        ) from error
    run = Run(directory, config)
    sampler = str(config["model"].get("init_args", {}).get("sampler", {}) or "")
    solver = re.search(r"class_path': '[\w.]*?(\w+)'", sampler)
    for row in rows:
        step = int(row["step"] or 0)
        if row.get("train/seconds"):
            run.progress.append((step, float(row["train/images"]), float(row["train/seconds"])))
        for name, value in row.items():
            if value and (match := _SCORE.fullmatch(name)):
                by = (solver[1] if solver else "Heun") if run.method == "DiffusionModule" else ""
                run.scores.append(Score(match["stage"], step, match["metric"], int(match["nfe"]), float(value), by))
    return run
