"""The diffusion model that a distillation learns from: where it comes from, and whether it fits."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import nn

from cm_lightning.errors import CheckpointError, ConfigError
from cm_lightning.interop.foreign import is_foreign
from cm_lightning.modules.base import GenerativeModule
from cm_lightning.modules.diffusion import DiffusionModule
from cm_lightning.modules.foreign import foreign_teacher
from cm_lightning.modules.frozen import Frozen
from cm_lightning.modules.loading import load_module
from cm_lightning.modules.starting import require_noise_scale
from cm_lightning.states import difference, renamed_like


def frozen_teacher(teacher: str | DiffusionModule, trust: Sequence[str], student: nn.Module) -> Frozen[DiffusionModule]:
    """A teacher that is given, or read from its file when training asks for it; the student's network is as large."""
    if isinstance(teacher, DiffusionModule):
        return Frozen(teacher, follows_dtype=True)
    return Frozen(load=partial(_read, teacher, tuple(trust)), like=student, follows_dtype=True)


def _read(path: str, trust: Sequence[str]) -> DiffusionModule:
    try:
        loaded = foreign_teacher(path) if is_foreign(path) else load_module(path, trust=trust)
    except CheckpointError as error:
        raise CheckpointError(f"{error}: set --model.teacher to a DiffusionModule's checkpoint") from error
    if not isinstance(loaded, DiffusionModule):
        raise ConfigError(f"teacher: {path} holds a {type(loaded).__name__}, not a DiffusionModule")
    return loaded


def check_teacher(student: GenerativeModule, teacher: DiffusionModule) -> None:
    """Raise ConfigError unless both draw the same classes in the same shape."""
    theirs, ours = ((m.num_classes or "no", m.image_shape) for m in (teacher, student))
    if theirs != ours:
        raise ConfigError(
            f"the teacher draws {theirs[0]} classes of shape {theirs[1]}, the student {ours[0]} of {ours[1]}: "
            "set the student's image_shape and num_classes to the teacher's"
        )


def start_as_teacher(student: GenerativeModule, teacher: DiffusionModule) -> None:
    """Give the student the teacher's weights. Raises ConfigError where its network is another one."""
    require_noise_scale(student, teacher.parameterization.noise_scale, "the teacher")
    state = renamed_like(teacher.backbone.state_dict(), own := student.backbone.state_dict())
    if differing := difference(state, own):
        raise ConfigError(
            "the student's backbone differs from the teacher's: set start_from_teacher to false "
            f"({differing.replace('file', 'teacher').replace('network', 'student')})"
        )
    student.load_backbone(state)
