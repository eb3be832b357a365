"""Figures that compare what was learned with the exact f."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from numpy.typing import NDArray

from cm_lightning.core.noise import SIGMA_DATA, SIGMA_MAX, SIGMA_MIN
from cm_lightning.self_consistency.comparison import Comparison
from cm_lightning.self_consistency.drawing import colours, save
from cm_lightning.self_consistency.plane import mixture

#: Runge-Kutta steps of the exact f in a figure.
STEPS = 128


def draw_regions(path: Path, comparisons: Sequence[Comparison], side: int) -> None:
    """Draw where each point of the plane ends, exactly and as learned, and the distance: a row for each noise level."""
    oracle, levels = mixture(steps=STEPS), (SIGMA_MAX, 1.0, 0.3)
    columns = 1 + 2 * len(comparisons)
    figure, axes = plt.subplots(3, columns, figsize=(2.35 * columns, 6.3), layout="constrained")
    axis = torch.linspace(-2, 2, side, dtype=torch.float64)
    unit = torch.cartesian_prod(axis, axis)
    for row, t in zip(axes, levels, strict=True):
        scale = (t**2 + SIGMA_DATA**2) ** 0.5
        x, sigma = scale * unit, unit.new_full((len(unit),), t)
        exact = oracle.consistency(x, sigma)
        _plane(row[0], colours(oracle, exact), scale)
        row[0].set_ylabel(f"t = {t:g}", fontsize=11)
        for i, comparison in enumerate(comparisons):
            learned = comparison.f(x, sigma)
            _plane(row[1 + 2 * i], colours(oracle, learned), scale)
            image = _plane(row[2 + 2 * i], (learned - exact).norm(dim=1).numpy(), scale)
    axes[0, 0].set_title("exact f", fontsize=10)
    for i, comparison in enumerate(comparisons):
        axes[0, 1 + 2 * i].set_title(f"learned by {comparison.method}", fontsize=10)
        axes[0, 2 + 2 * i].set_title(f"error of {comparison.method}", fontsize=10)
    figure.colorbar(image, ax=axes, label="|learned f - exact f|", shrink=0.5)
    save(figure, path)


def _plane(axis: Axes, values: NDArray[np.float64], scale: float) -> AxesImage:
    """Values (side^2, ...) on the square of half-width 2 scale; values without colours use the scale of the errors."""
    side = round(len(values) ** 0.5)
    image = values.reshape(side, side, *values.shape[1:]).swapaxes(0, 1)
    half = 2 * scale
    axis.tick_params(labelsize=7)
    return axis.imshow(image, extent=(-half, half, -half, half), origin="lower", cmap="magma", vmin=0, vmax=0.6)


def draw_errors(path: Path, comparisons: Sequence[Comparison], side: int) -> None:
    """Draw the error against the number of levels, and its map over (x, t) along a line through the plane."""
    figure, axes = plt.subplots(
        1, 1 + len(comparisons), figsize=(13, 4.2), layout="constrained", width_ratios=[1.2] + [1] * len(comparisons)
    )
    _error_by_levels(axes[0], comparisons)
    _error_maps(axes[1:], comparisons, side)
    save(figure, path)


def _error_by_levels(axis: Axes, comparisons: Sequence[Comparison]) -> None:
    for i, c in enumerate(comparisons):
        axis.loglog(c.levels, c.errors, "o-", color=f"C{i}", label=f"{c.method}, trained")
        axis.loglog(c.levels, c.ideal, "--", color=f"C{i}", label=f"{c.method}, a network without error")
    axis.set(xlabel="number of levels N", ylabel="mean |learned f - exact f| from t = T")
    axis.set_xticks(comparisons[0].levels, [str(n) for n in comparisons[0].levels])
    axis.set_yticks([0.02, 0.05, 0.1, 0.2, 0.5], ["0.02", "0.05", "0.1", "0.2", "0.5"])
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)


def _error_maps(axes: Sequence[Axes], comparisons: Sequence[Comparison], side: int) -> None:
    """Draw the errors at all levels on a line through the plane that widens with the noise."""
    u = torch.linspace(-2, 2, side, dtype=torch.float64)
    t = torch.linspace(math.log(SIGMA_MIN), math.log(SIGMA_MAX), side, dtype=torch.float64).exp()
    sigma = t.repeat_interleave(side)
    scale = (sigma**2 + SIGMA_DATA**2).sqrt()
    x = torch.stack([scale * u.repeat(side), 0.1 * scale], 1)
    exact = mixture(steps=STEPS).consistency(x, sigma)
    grid = u.numpy(), t.numpy()
    for axis, c in zip(axes, comparisons, strict=True):
        error = (c.f(x, sigma) - exact).norm(dim=1).reshape(side, side)
        image = axis.pcolormesh(
            *grid, error.numpy(), cmap="magma", vmin=0, vmax=0.6, shading="nearest", rasterized=True
        )
        axis.set(yscale="log", xlabel="x / sqrt(t² + 0.5²), along a line", title=f"error of {c.method} over (x, t)")
    axes[0].set_ylabel("noise level t")
    axes[-1].figure.colorbar(image, ax=axes[-1], label="|learned f - exact f|")
