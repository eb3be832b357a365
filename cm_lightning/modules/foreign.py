"""Modules for networks that other programs trained."""

from __future__ import annotations

from pathlib import Path

from cm_lightning.core.noise import SIGMA_MAX
from cm_lightning.core.parameterization import EDM, BoundaryShifted
from cm_lightning.interop.foreign import Foreign, read_foreign
from cm_lightning.modules.base import GenerativeModule
from cm_lightning.modules.diffusion import DiffusionModule
from cm_lightning.modules.training import ConsistencyTraining


def foreign_module(path: str | Path) -> GenerativeModule:
    """Load another program's file as its format suggests: a consistency model or EDM's diffusion model, in eval mode.

    Raises:
        CheckpointError: see :func:`~cm_lightning.interop.foreign.read_foreign`.
    """
    foreign = read_foreign(path)
    if not foreign.consistency:
        return _diffusion(foreign)
    own = {name: foreign.sigmas[name] for name in ("sigma_min", "sigma_data") if name in foreign.sigmas}
    parameterization = BoundaryShifted(noise_scale=foreign.noise_scale, **own)
    top = foreign.sigmas.get("sigma_max", SIGMA_MAX)
    return ConsistencyTraining(
        foreign.backbone, _shape(foreign), parameterization=parameterization, sigma_max=top
    ).eval()


def foreign_teacher(path: str | Path) -> DiffusionModule:
    """Load a diffusion model with EDM's scalings, such as OpenAI's ``edm_*_ema.pt``, in eval mode. Raises as above."""
    return _diffusion(read_foreign(path))


def _diffusion(foreign: Foreign) -> DiffusionModule:
    return DiffusionModule(foreign.backbone, _shape(foreign), EDM(noise_scale=foreign.noise_scale)).eval()


def _shape(foreign: Foreign) -> tuple[int, int, int]:
    return foreign.channels, foreign.side, foreign.side
