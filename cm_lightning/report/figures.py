"""Curves of quality and of losses, and sheets of samples side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import isnan
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt

from cm_lightning.files import replacing
from cm_lightning.metrics.names import has_direction, is_rising
from cm_lightning.report.logs import LOSSES
from cm_lightning.report.runs import Run

#: There are ten colours, and three times as many kinds of lines.
_LINES = ("-", "--", ":")


def curves(runs: Sequence[Run], metric: str, nfe: int, path: Path) -> bool:
    """Plot quality against images and seconds of training, one colour per method; False if nothing was logged."""
    shown = [run for run in runs if run.curve(metric, nfe)]
    if not shown:
        return False
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True, layout="constrained")
    for run, style in styled(shown):
        images, seconds, values = zip(*run.curve(metric, nfe), strict=True)
        for axis, x in zip(axes, (images, seconds), strict=True):
            axis.plot(x, values, marker="o", ms=4, lw=1.5, **style)
    for axis, label in zip(axes, ("images seen", "seconds of training"), strict=True):
        axis.set_xlabel(label)
        axis.set_xlim(left=0)
        axis.grid(alpha=0.3)
        positive = all(value > 0 or isnan(value) for run in shown for *_, value in run.curve(metric, nfe))
        if has_direction(metric) and not is_rising(metric) and positive:
            axis.set_yscale("log")
        if not has_direction(metric) and (real := [run.floor[metric] for run in shown if metric in run.floor]):
            axis.axhline(real[0], color="k", ls=":", lw=1, label="real images")
    axes[0].set_ylabel(f"{metric}, {nfe} evaluation{'s' * (nfe > 1)}")
    axes[1].legend(fontsize=8)
    save_figure(figure, path)
    return True


def losses(runs: Sequence[Run], path: Path) -> bool:
    """Plot the training loss, and the raw error beside it, against images; False if nothing was logged.

    A weight that depends on the error keeps a loss flat while the raw error, the mean square of what the loss makes
    small, still falls. Neither can be compared between methods: each has a difference of its own.
    """
    shown = [run for run in runs if any(map(run.losses_by_images, LOSSES))]
    names = [name for name in LOSSES if any(run.losses_by_images(name) for run in shown)]
    if not names:
        return False
    size = (1.8 + 4.6 * len(names), 4.2)
    figure, axes = plt.subplots(1, len(names), figsize=size, sharex=True, squeeze=False, layout="constrained")
    for axis, name in zip(axes[0], names, strict=True):
        for run, style in styled(shown):
            if points := run.losses_by_images(name):
                axis.plot(*zip(*points, strict=True), lw=1.2, **style)
        axis.set(xlabel="images seen", ylabel=name, xlim=(0, None))
        axis.grid(alpha=0.3)
        negative = any(value < 0 for run in shown for _, value in run.losses_by_images(name))
        axis.set_yscale("symlog" if negative else "log")
    entries = {label: line for axis in axes[0] for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(entries.values(), entries.keys(), loc="outside right center", fontsize=8)
    save_figure(figure, path)
    return True


def styled(runs: Sequence[Run]) -> Iterator[tuple[Run, dict[str, Any]]]:
    """Each run with the style of its line: all runs of one name look alike, and have one entry in the legend."""
    names = list(dict.fromkeys(run.label for run in runs))
    for i, run in enumerate(runs):
        number = names.index(run.label)
        first = all(run.label != other.label for other in runs[:i])
        style = {"color": f"C{number % 10}", "ls": _LINES[number // 10 % len(_LINES)], "alpha": 0.85}
        yield run, {**style, "label": run.label if first else None}


def sheets(runs: Sequence[Run], nfe: int, path: Path) -> bool:
    """Show the last sheet of each method's first run, with the same noise in the same place; False without sheets."""
    first = {run.label: run for run in reversed(runs) if _readable(run.sheet(nfe))}
    shown = [(name, first[name]) for name in dict.fromkeys(run.label for run in runs) if name in first]
    if not shown:
        return False
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4.2 * columns, 4.5 * rows), squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.axis("off")
    for axis, (name, run) in zip(axes.flat, shown, strict=False):
        axis.imshow(plt.imread(str(run.sheet(nfe))))
        axis.set_title(f"{name}, seed {run.seed}", fontsize=10)
    save_figure(figure, path)
    return True


def _readable(path: Path | None) -> bool:
    """Whether there is a complete picture: a killed process or a full disk may have left a part of one."""
    if path is None:
        return False
    try:
        plt.imread(str(path))
    except (OSError, SyntaxError, ValueError):
        return False
    return True


def save_figure(figure: plt.Figure, path: Path) -> None:  # type: ignore[name-defined]
    """Write a figure, and close it."""
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110)
    plt.close(figure)
