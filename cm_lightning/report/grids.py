"""A grid of measurements as a table, heat maps and a list of the best settings."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from cm_lightning.metrics.names import decimals, is_rising
from cm_lightning.report.cells import Setting, best
from cm_lightning.report.figures import save_figure
from cm_lightning.report.tables import Table


def guidance_table(found: Sequence[Setting], metrics: Sequence[str]) -> Table:
    """One row for each model and number of steps, one column for each guidance scale."""
    scales = sorted({s.guidance for s in found})
    cells = {(s.model, s.steps, s.guidance): " / ".join(_shown(s, metric) for metric in metrics) for s in found}
    rows = [
        [model, str(steps), *[cells.get((model, steps, scale), "") for scale in scales]]
        for model, steps in dict.fromkeys((s.model, s.steps) for s in found)
    ]
    heads = ["model", "steps", *[f"guidance {scale:g}" for scale in scales]]
    return Table(f"{' / '.join(metrics)} by guidance scale", heads, rows)


def grid_table(found: Sequence[Setting], metrics: Sequence[str]) -> Table:
    """One row for each setting, with its evaluations and time."""
    heads = ["model", "steps", "guidance", "evaluations", "seeds", *metrics, "ms per image"]
    rows = [
        [s.model, str(s.steps), f"{s.guidance:g}", str(s.nfe), str(len(s.cells)),
         *[_shown(s, metric) for metric in metrics], f"{1000 * s.seconds:.3g}"]
        for s in found
    ]  # fmt: skip
    return Table("All settings", heads, rows)


def best_table(found: Sequence[Setting], metrics: Sequence[str], latency: float | None) -> Table:
    """The best setting of each model by each metric, also within a time per image if one is given."""
    bounds = [None] if latency is None else [None, latency]
    rows = []
    for model in dict.fromkeys(setting.model for setting in found):
        own = [setting for setting in found if setting.model == model]
        for metric in metrics:
            for bound in bounds:
                chosen = best(own, metric, bound)
                within = "" if bound is None else f"{1000 * bound:.3g} ms"
                if chosen is None:
                    rows.append([model, metric, within, "none", "", "", ""])
                else:
                    rows.append([model, metric, within, str(chosen.steps), f"{chosen.guidance:g}", str(chosen.nfe),
                                 _shown(chosen, metric)])  # fmt: skip
    heads = ["model", "best by", "within", "steps", "guidance", "evaluations", "value"]
    return Table("Best settings", heads, rows)


def heat_maps(found: Sequence[Setting], metrics: Sequence[str], path: Path) -> None:
    """Plot steps against guidance, with one map for each model and metric; brighter is better."""
    models = list(dict.fromkeys(setting.model for setting in found))
    figure, axes = plt.subplots(
        len(metrics), len(models), figsize=(0.6 + 3.1 * len(models), 0.4 + 2.7 * len(metrics)), squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for row, metric in zip(axes, metrics, strict=True):
        values = [setting.value(metric) for setting in found if isfinite(setting.value(metric))] or [1.0]
        for axis, model in zip(row, models, strict=True):
            _heat_map(axis, [s for s in found if s.model == model], metric, min(values), max(values))
            axis.set_title(f"{model}\n{metric}", fontsize=9)
    save_figure(figure, path)


def sample_sheet(found: Sequence[Setting], folder: Path, path: Path) -> None:
    """Samples of each model from the same noise: one row for each guidance scale, one column for each step number."""
    rows = sorted({(s.model, s.guidance) for s in found})
    steps = sorted({s.steps for s in found})
    sheets = [plt.imread(folder / Path(s.cells[0].path).with_suffix(".png")) for s in found]
    images = [sheet[: -(-sheet.shape[0] * 2 // 5)] for sheet in sheets]  # two rows of its five
    height, width = images[0].shape[:2]
    size = (3.4 * len(steps), 0.3 + (3.2 * height / width + 0.12) * len(rows))
    figure, axes = plt.subplots(len(rows), len(steps), figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
        axis.spines[:].set_visible(False)
    for (model, guidance), row in zip(rows, axes, strict=True):
        row[0].set_ylabel(f"{model}\n{guidance:g}", fontsize=8, rotation=0, ha="right", va="center")
    for axis, number in zip(axes[0], steps, strict=True):
        axis.set_title(f"{number} step{'s' * (number > 1)}", fontsize=9)
    for setting, image in zip(found, images, strict=True):
        axis = axes[rows.index((setting.model, setting.guidance)), steps.index(setting.steps)]
        axis.imshow(image)
    save_figure(figure, path)


def _heat_map(axis: Axes, own: Sequence[Setting], metric: str, low: float, high: float) -> None:
    steps, guidance = (sorted({getattr(s, name) for s in own}) for name in ("steps", "guidance"))
    table = np.full((len(guidance), len(steps)), np.nan)
    for setting in own:
        table[guidance.index(setting.guidance), steps.index(setting.steps)] = setting.value(metric)
    rising = is_rising(metric)
    shown, limits = (
        (table, (low, high)) if rising else (-np.log(np.maximum(table, 1e-6)), (-np.log(high), -np.log(low)))
    )
    axis.imshow(shown, cmap="viridis", vmin=limits[0], vmax=limits[1], origin="lower", aspect="auto")
    axis.set_xticks(range(len(steps)), steps)
    axis.set_yticks(range(len(guidance)), [f"{g:g}" for g in guidance])
    axis.set_xlabel("steps", fontsize=8)
    axis.set_ylabel("guidance", fontsize=8)
    middle = sum(limits) / 2
    for (i, j), value in np.ndenumerate(table):
        if not np.isnan(value):
            text = f"{value:.3f}" if rising and high <= 1 else f"{value:.1f}"
            axis.text(j, i, text, ha="center", va="center", fontsize=8, color="k" if shown[i, j] > middle else "w")


def _shown(setting: Setting, metric: str) -> str:
    value, spread = setting.value(metric), setting.spread(metric)
    digits = f".{decimals(metric, value)}f"
    return format(value, digits) + (f" ± {format(spread, digits)}" if spread is not None else "")
