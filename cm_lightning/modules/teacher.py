"""The diffusion model that is distilled: its source, and checks that it fits."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor

from cm_lightning.errors import CheckpointError, ConfigError
from cm_lightning.interop.foreign import is_foreign
from cm_lightning.modules.base import GenerativeModule
from cm_lightning.modules.diffusion import DiffusionModule
from cm_lightning.modules.foreign import foreign_teacher
from cm_lightning.modules.frozen import Frozen
from cm_lightning.modules.loading import load_module
from cm_lightning.modules.starting import require_noise_scale
from cm_lightning.states import difference, renamed_like


class Distilled(GenerativeModule):
    """The base of distillations: a frozen teacher supplies the trajectory and, if requested, the initial weights.

    A checkpoint holds only the teacher's path: training needs the file again, but sampling does not.
    """

    frozen_teacher: Frozen[DiffusionModule]
    start_from_teacher: bool

    def hold_teacher(self, teacher: str | DiffusionModule, trust: Sequence[str], start_from_teacher: bool) -> None:
        """Keep a given teacher, or the way to read it when training needs it.

        Raises:
            ConfigError: the student would start both from the teacher and from another file.
        """
        if start_from_teacher and self.start_from:
            raise ConfigError("start_from and start_from_teacher cannot be combined: set start_from_teacher to false")
        self.start_from_teacher = start_from_teacher
        if isinstance(teacher, DiffusionModule):
            self.frozen_teacher = Frozen(teacher, follows_dtype=True)
        else:  # the student's network has the same size
            read = partial(_read, teacher, tuple(trust))
            self.frozen_teacher = Frozen(load=read, like=self.backbone, follows_dtype=True)

    @property
    def teacher(self) -> DiffusionModule:
        """The teacher, read from its file at first use. Raises CheckpointError or ConfigError."""
        return self.frozen_teacher.network

    def denoised(self, x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        """The teacher's estimate of the clean image at x (B, ...), sigma (B,)."""
        return self.teacher.denoiser(x, sigma, labels)

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage in ("fit", "validate"):  # sampling does not need the teacher
            check_teacher(self, self.teacher)
        if stage == "fit" and self.start_from_teacher:
            start_as_teacher(self, self.teacher)


def _read(path: str, trust: Sequence[str]) -> DiffusionModule:
    try:
        loaded = foreign_teacher(path) if is_foreign(path) else load_module(path, trust=trust)
    except CheckpointError as error:
        raise CheckpointError(f"{error}: set --model.teacher to a DiffusionModule's checkpoint") from error
    if not isinstance(loaded, DiffusionModule):
        raise ConfigError(f"teacher: {path} holds a {type(loaded).__name__}, not a DiffusionModule")
    return loaded


def check_teacher(student: GenerativeModule, teacher: DiffusionModule) -> None:
    """Raise ConfigError unless both have the same classes and shape."""
    theirs, ours = ((m.num_classes or "no", m.image_shape) for m in (teacher, student))
    if theirs != ours:
        raise ConfigError(
            f"the teacher draws {theirs[0]} classes of shape {theirs[1]}, the student {ours[0]} of shape {ours[1]}: "
            "set the student's image_shape and num_classes to the teacher's"
        )


def start_as_teacher(student: GenerativeModule, teacher: DiffusionModule) -> None:
    """Give the student the teacher's weights. Raises ConfigError if their networks differ."""
    require_noise_scale(student, teacher.parameterization.noise_scale, "the teacher")
    state = renamed_like(teacher.backbone.state_dict(), own := student.backbone.state_dict())
    if differing := difference(state, own):
        raise ConfigError(
            "the student's backbone differs from the teacher's: set start_from_teacher to false "
            f"({differing.replace('file', 'teacher').replace('network', 'student')})"
        )
    student.load_backbone(state)
