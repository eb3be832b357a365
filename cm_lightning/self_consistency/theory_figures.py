"""Figures of the proof: trajectories, stochastic paths, CT's pairs, and the Lipschitz constant."""

from __future__ import annotations

from pathlib import Path

import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from torch import Tensor

from cm_lightning.core.ideal import reverse_sde
from cm_lightning.core.lipschitz import ball_bound, smooth_bound
from cm_lightning.core.noise import SIGMA_MIN, karras_sigmas
from cm_lightning.core.oracle import MixtureOracle
from cm_lightning.self_consistency.drawing import colours, save
from cm_lightning.self_consistency.ode import trajectory
from cm_lightning.self_consistency.plane import RADIUS, STD, line
from cm_lightning.self_consistency.right_side import steepness_curves

#: The figures show 0 < t < TOP and |x| < SIDE; paths start at START.
TOP, SIDE, START = 1.6, 2.6, 0.35


def draw_trajectories(path: Path, generator: torch.Generator) -> None:
    """Draw, on the line, the ODE's trajectories and their ends, the SDE's paths, and CT's pairs."""
    oracle = line()
    figure, axes = plt.subplots(1, 3, figsize=(12.5, 4.3), sharey=True, layout="constrained")
    for axis in axes:
        axis.set(xlim=(TOP, 0), ylim=(-SIDE, SIDE), xlabel="noise level t   (noise → data)")
    axes[0].set_ylabel("x")
    _ode(axes[0], oracle)
    _sde(axes[1], oracle, generator)
    _same_noise(axes[2], oracle, generator)
    save(figure, path)


def _levels() -> Tensor:
    return torch.linspace(TOP, SIGMA_MIN, 81, dtype=torch.float64)


def _ode(axis: Axes, oracle: MixtureOracle) -> None:
    levels = _levels()
    x = torch.linspace(-SIDE, SIDE, 161, dtype=torch.float64)
    ends = oracle.consistency(x.repeat(len(levels))[:, None], levels.repeat_interleave(len(x)))
    image = colours(oracle, ends).reshape(len(levels), len(x), 3).swapaxes(0, 1)
    axis.imshow(image, extent=(TOP, 0, -SIDE, SIDE), origin="lower", aspect="auto", alpha=0.35)
    starts = torch.linspace(-2.4, 2.4, 25, dtype=torch.float64)[:, None]
    paths = trajectory(oracle.denoiser, starts, levels.tolist())
    for curve, colour in zip(paths.squeeze(2).T, colours(oracle, paths[-1]), strict=True):
        axis.plot(levels, curve, color=0.8 * colour, lw=1.1)
    axis.set_title("ODE: each point lies on one trajectory;\ncolour: where it ends", fontsize=10)


def _through(oracle: MixtureOracle, axis: Axes, x: Tensor, label: str) -> None:
    levels = _levels()
    axis.plot(levels, trajectory(oracle.denoiser, x, levels.tolist())[:, 0, 0], "k", lw=2.5, label=label)


def _sde(axis: Axes, oracle: MixtureOracle, generator: torch.Generator) -> None:
    x, levels = torch.tensor([[START]], dtype=torch.float64), _levels()
    fine = karras_sigmas(300, SIGMA_MIN, TOP)
    paths = reverse_sde(oracle.denoiser, x.repeat(24, 1), fine, generator)
    for curve, colour in zip(paths.squeeze(2).T, colours(oracle, paths[-1]), strict=True):
        axis.plot(fine, curve, color=colour, lw=0.8, alpha=0.8)
    _through(oracle, axis, x, "the ODE: one end")
    mean = oracle.denoiser(x, levels[:1]).item()
    axis.plot(0, mean, "kD", ms=8, mfc="w", zorder=5, clip_on=False, label="mean of the ends: D(x, t)")
    axis.set_title("SDE: from one point, many ends;\nf would have to be their mean", fontsize=10)
    axis.legend(loc="lower left", fontsize=8)


def _same_noise(axis: Axes, oracle: MixtureOracle, generator: torch.Generator) -> None:
    x, levels = torch.tensor([[START]], dtype=torch.float64), _levels()
    x0 = oracle.posterior(x.repeat(24, 1), levels[:1].expand(24)).sample(generator)
    for end, colour in zip(x0[:, 0].tolist(), colours(oracle, x0), strict=True):
        axis.plot([TOP, 0], [x.item(), end], color=colour, lw=0.8, alpha=0.8)
    _through(oracle, axis, x, "the trajectory")
    mean = oracle.denoiser(x, levels[:1]).item()
    axis.plot([TOP, 0], [x.item(), mean], "k--", lw=1.8, label="mean of the lines: Euler's step")
    axis.set_title(
        "CT's pair x0 + t z, x0 + r z: on a line, off the trajectory;\nright on average to first order", fontsize=10
    )
    axis.legend(loc="lower left", fontsize=8)


def draw_steepness(path: Path) -> None:
    """Draw the measured Lipschitz constant of the right side against its bounds."""
    t, points, smooth = steepness_curves()
    figure, axis = plt.subplots(figsize=(6.5, 4.2), layout="constrained")
    axis.loglog(t, ball_bound(RADIUS, t), "--", color="C3", label="bound: data in a ball")
    axis.loglog(t, points, "o", color="C3", ms=4, label="measured: four points")
    axis.loglog(t, smooth_bound(RADIUS, STD, t), "--", color="C0", label="bound: ball plus N(0, s²)")
    axis.loglog(t, smooth, "o", color="C0", ms=4, label="measured: four Gaussians")
    axis.set(xlabel="noise level t", ylabel="largest |dv/dx| over x")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=9)
    save(figure, path)
