"""A grid of measurements: one cell, and one file, for each model, number of steps and guidance scale."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import isfinite, nan
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from cm_lightning.errors import DataError
from cm_lightning.files import replacing
from cm_lightning.metrics.names import is_rising


@dataclass(frozen=True)
class Cell:
    """The measurements of one model at one setting.

    ``model`` is its name, the same for all its seeds; ``weights`` identifies the files of a seed and their contents.
    ``way`` describes the measurement: the data, the number of samples and all else that cells must share to be
    compared. ``nfe`` are evaluations of the network for an image, ``seconds`` the time of one at ``batch_size``.
    """

    model: str
    weights: str
    steps: int
    guidance: float
    way: dict[str, Any]
    nfe: int
    seconds: float
    batch_size: int
    scores: dict[str, float]

    @property
    def path(self) -> str:
        """The name of its file, the same for the same measurement."""
        return cell_path(self.model, self.weights, self.steps, self.guidance)

    def write(self, folder: Path) -> None:
        with replacing(folder / "cells" / self.path) as path:
            path.write_text(json.dumps(asdict(self), indent=1))


def cell_path(model: str, weights: str, steps: int, guidance: float) -> str:
    """The file of a measurement."""
    digest = hashlib.sha256(weights.encode()).hexdigest()[:8]
    return f"{model}_steps{steps}_guidance{guidance:g}_{digest}.json"


def read_cells(folder: Path) -> list[Cell]:
    """Read all cells below a folder.

    Raises:
        DataError: a cell is damaged, or the cells were not measured in the same way.
    """
    cells = [_read(path) for path in sorted((folder / "cells").glob("*.json"))]
    for cell in cells:
        require_same_way(cells[0], cell.way, folder)
    return cells


def require_same_way(cell: Cell, way: dict[str, Any], folder: Path) -> None:
    """Raise DataError, naming the first difference, if a cell was measured in another way."""
    for name in sorted({*cell.way, *way}):
        if cell.way.get(name) != way.get(name):
            raise DataError(
                f"{folder} holds measurements with {name} {cell.way.get(name)}, not {way.get(name)}: "
                "give another --output, or remove its cells"
            )


def _read(path: Path) -> Cell:
    try:
        cell = Cell(**json.loads(path.read_text()))
        numbers = (cell.steps, cell.guidance, cell.nfe, cell.seconds, cell.batch_size, *cell.scores.values())
        if not all(isinstance(number, int | float) for number in numbers) or not isinstance(cell.way, dict):
            raise TypeError("a value of another type")
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is not a measurement: remove it, and it is made again") from error
    return cell


@dataclass(frozen=True)
class Setting:
    """The seeds of one model at one setting."""

    model: str
    steps: int
    guidance: float
    cells: tuple[Cell, ...]

    @property
    def nfe(self) -> int:
        return self.cells[0].nfe

    @property
    def seconds(self) -> float:
        """The time for an image, as a mean over seeds."""
        return mean(cell.seconds for cell in self.cells)

    def value(self, metric: str) -> float:
        """The mean of a metric over seeds."""
        return mean(cell.scores[metric] for cell in self.cells)

    def spread(self, metric: str) -> float | None:
        """The standard deviation of a metric over seeds; None for a single seed."""
        values = [cell.scores[metric] for cell in self.cells]
        if len(values) < 2:
            return None
        return stdev(values) if all(map(isfinite, values)) else nan


def settings(cells: Sequence[Cell]) -> list[Setting]:
    """Group the cells by model and setting, with models in the order of their names."""
    groups: dict[tuple[str, int, float], list[Cell]] = {}
    for cell in sorted(cells, key=lambda c: (c.model, c.steps, c.guidance, c.weights)):
        groups.setdefault((cell.model, cell.steps, cell.guidance), []).append(cell)
    return [Setting(*key, tuple(group)) for key, group in groups.items()]


def best(found: Sequence[Setting], metric: str, latency: float | None = None) -> Setting | None:
    """The setting with the best mean of a metric, among those that take at most ``latency`` seconds per image."""
    allowed = [setting for setting in found if latency is None or setting.seconds <= latency]
    allowed = [setting for setting in allowed if isfinite(setting.value(metric))]
    sign = -1 if is_rising(metric) else 1
    return min(allowed, key=lambda setting: sign * setting.value(metric), default=None)
