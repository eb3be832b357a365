"""A run as recorded in its directory: config.yaml, metrics.csv, samples and the checkpoint."""

from __future__ import annotations

import re
import time
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from cm_lightning.errors import CheckpointError, DataError
from cm_lightning.report.configs import class_name, inner, options, origin, read_config
from cm_lightning.report.logs import Note, Score, read_log

_SHEET = re.compile(r"step_(?P<step>\d+)_nfe(?P<nfe>\d+)\.png")
# the options that distinguish data sets of one class
_DATA = ("source", "shape", "shards", "root")


@dataclass
class Run:
    """One training run, with the results of later tests.

    Args:
        directory: directory of the run; the last one if it was resumed.
        config: the configuration as saved by the command line.
        progress: (step, images seen, seconds of training) as logged.
        losses: (step, value) as logged, by the names in :data:`~cm_lightning.report.logs.LOSSES`.
        scores: the scores in the order of measurement.
        floor: the last scores of real images, by metric.
        label: its name in tables and figures, shared by all seeds of one configuration.
    """

    directory: Path
    config: dict[str, Any]
    progress: list[tuple[int, float, float]] = field(default_factory=list)
    losses: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    scores: list[Score] = field(default_factory=list)
    floor: dict[str, float] = field(default_factory=dict)
    label: str = ""

    @property
    def name(self) -> str:
        """The logger's name, or the directory's."""
        loggers = inner(self.config, "trainer", "logger")
        for logger in loggers if isinstance(loggers, list) else [loggers]:
            if name := inner(logger, "init_args", "name"):
                return str(name)
        return self.directory.name

    @property
    def method(self) -> str:
        """The module's class."""
        return class_name(self.config.get("model")) or "?"

    @property
    def data(self) -> str:
        """The class of the data module, and the data set that it was set to."""
        arguments = inner(self.config, "data", "init_args")
        which = next((str(inner(arguments, name)) for name in _DATA if inner(arguments, name)), "")
        return f"{class_name(self.config.get('data'))} {which}".strip()

    @property
    def date(self) -> str:
        """The time when its metrics were last written."""
        return time.strftime("%Y-%m-%d %H:%M", time.localtime((self.directory / "metrics.csv").stat().st_mtime))

    @property
    def seed(self) -> Any:
        """The value of ``seed_everything``."""
        return self.config.get("seed_everything")

    @property
    def checkpoint(self) -> Path | None:
        """The checkpoint that the run was resumed from, or that it tested."""
        path = self.config.get("ckpt_path")
        return Path(path) if path and isinstance(path, str) else None

    @property
    def origin(self) -> str:
        """The run that supplied its teacher or its first weights; the cost of that run is additional."""
        arguments = inner(self.config, "model", "init_args")
        return origin(inner(arguments, "teacher") or inner(arguments, "start_from"))

    @property
    def images(self) -> float | None:
        """The number of images seen in training."""
        return self.progress[-1][1] if self.progress else None

    @property
    def seconds(self) -> float | None:
        """The seconds spent on training."""
        return self.progress[-1][2] if self.progress else None

    @cached_property
    def parameters(self) -> int | None:
        """The number of parameters of the network in the last checkpoint; None without a checkpoint."""
        from cm_lightning.checkpoint import read_checkpoint, weights

        try:
            backbone = weights(read_checkpoint(self.directory / "checkpoints/last.ckpt"), "raw")
        except CheckpointError:
            return None
        return sum(tensor.numel() for tensor in backbone.values())

    def spent(self, step: int) -> tuple[float, float]:
        """(images, seconds) after a step, interpolated linearly between the logged ones."""
        steps = [entry[0] for entry in self.progress]
        right = min(bisect_left(steps, step), len(steps) - 1)
        (s0, i0, t0), (s1, i1, t1) = self.progress[max(right - 1, 0)], self.progress[right]
        part = (step - s0) / (s1 - s0) if s1 > s0 else 1.0
        return i0 + part * (i1 - i0), t0 + part * (t1 - t0)

    def curve(self, metric: str, nfe: int) -> list[tuple[float, float, float]]:
        """(images, seconds, value) of a metric during training."""
        found = [s for s in self.scores if (s.stage, s.metric, s.nfe, s.sampler) == ("val", metric, nfe, "")]
        return [(*self.spent(score.step), score.value) for score in found] if self.progress else []

    def losses_by_images(self, name: str) -> list[tuple[float, float]]:
        """(images, value) of a loss during training."""
        return [(self.spent(step)[0], value) for step, value in self.losses.get(name, ())] if self.progress else []

    def final(self, metric: str, nfe: int) -> float | None:
        """The last value of a metric."""
        values = [s.value for s in self.scores if s.metric == metric and s.nfe == nfe]
        return values[-1] if values else None

    def sheet(self, nfe: int) -> Path | None:
        """The last sheet of samples."""
        found = [(int(m["step"]), p) for p in self.directory.glob("samples/*.png") if (m := _SHEET.fullmatch(p.name))
                 and int(m["nfe"]) == nfe]  # fmt: skip
        return max(found)[1] if found else None


def read_runs(directories: Sequence[str | Path], note: Note = str) -> list[Run]:
    """Read the runs of these directories; resumed runs are joined to their predecessors, and tests to tested runs.

    Args:
        directories: directories of runs, ``runs/NAME/version_0``, or of all versions of a run, ``runs/NAME``.
        note: takes a line on what is skipped: directories that are not runs, and parts that cannot be read.

    Raises:
        DataError: none of these directories holds a run.
    """
    versions = [version for given in directories for version in _versions(Path(given))]
    found = {_key(version): _run_or_problem(version, note) for version in versions}
    known = {key: run for key, run in found.items() if isinstance(run, Run)}
    problems = [problem for problem in found.values() if isinstance(problem, str)]
    if not known:
        raise DataError(problems[0] if len(problems) == 1 else f"none of these is a run: {'; '.join(problems)}")
    for problem in problems:
        note(f"skipped: {problem}")
    for run in list(known.values()):  # the predecessor of a resumed run is looked up even if it was not named
        _add_ancestors(run, known, note)
    return _labelled(_joined(known))


def _run_or_problem(directory: Path, note: Note) -> Run | str:
    try:
        return _read(directory, note)
    except DataError as error:
        return str(error)


def _versions(directory: Path) -> list[Path]:
    """The directory itself if it is that of a run, otherwise the runs in it, the oldest version first."""
    if _is_run(directory) or not directory.is_dir():
        return [directory]
    return sorted(filter(_is_run, directory.iterdir()), key=_in_order) or [directory]


def _is_run(directory: Path) -> bool:
    return (directory / "config.yaml").exists() or (directory / "metrics.csv").exists()


def _in_order(directory: Path) -> list[int | str]:
    """A sort key by which version_2 comes before version_10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", directory.name)]


def _joined(known: dict[Path, Run]) -> list[Run]:
    """The training runs, each joined with its predecessors and with the results of its tests."""
    trained: dict[Path, Run] = {}
    for run in known.values():
        parent = known.get(_parent(run)) if run.checkpoint else None
        if parent is run:  # resumed into its own directory
            parent = None
        if run.progress and parent is not None:
            first = run.progress[0][0]
            run.progress = [entry for entry in parent.progress if entry[0] < first] + run.progress
            run.losses = {
                name: [entry for entry in parent.losses[name] if not entries or entry[0] < entries[0][0]] + entries
                for name, entries in run.losses.items()
            }
            run.scores = [score for score in parent.scores if score.step < first] + run.scores
            trained.pop(_key(parent.directory), None)
        elif parent is not None:
            parent.scores += run.scores
            continue
        trained[_key(run.directory)] = run
    return list(trained.values())


def _labelled(runs: list[Run]) -> list[Run]:
    """The same runs, with directories in the labels if runs of one name have different configurations."""
    for name in {run.name for run in runs}:
        groups: list[list[Run]] = []
        for run in (run for run in runs if run.name == name):
            alike = next((group for group in groups if options(group[0].config) == options(run.config)), None)
            if alike is None:
                groups.append([run])
            else:
                alike.append(run)
        for group, label in zip(groups, _labels(name, [group[0].directory for group in groups]), strict=True):
            for run in group:
                run.label = label
    return runs


def _labels(name: str, directories: Sequence[Path]) -> Iterable[str]:
    if len(directories) == 1:
        return [name]
    short = [f"{name}/{directory.name}" for directory in directories]
    return short if len(set(short)) == len(short) else map(str, directories)


def _add_ancestors(run: Run, known: dict[Path, Run], note: Note) -> None:
    """Add the runs that this one builds on, oldest first."""
    key = _key(run.directory)
    if run.checkpoint and (parent := _parent(run)) not in known and (parent / "metrics.csv").is_file():
        try:
            known[parent] = _read(parent, note)
        except DataError as error:
            note(f"{run.directory} is shown without the run that it resumed: {error}")
        else:
            _add_ancestors(known[parent], known, note)
    if run.checkpoint:
        known[key] = known.pop(key)


def _key(directory: Path) -> Path:
    return directory.resolve()


def _parent(run: Run) -> Path:
    assert run.checkpoint is not None
    return _key(run.checkpoint.parent.parent)


def _read(directory: Path, note: Note) -> Run:
    if not _is_run(directory):
        raise DataError(f"{directory} is not a run: expected config.yaml and metrics.csv, as in runs/NAME/version_0")
    run = Run(directory, read_config(directory / "config.yaml"))
    solver = class_name(inner(run.config, "model", "init_args", "sampler")) or "Heun"
    log = read_log(directory / "metrics.csv", solver if run.method == "DiffusionModule" else "", note)
    run.progress, run.losses, run.scores, run.floor = log.progress, log.losses, log.scores, log.floor
    return run
