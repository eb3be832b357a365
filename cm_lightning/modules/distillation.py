"""Consistency distillation: a diffusion teacher supplies the trajectory."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

from torch import Tensor, nn

from cm_lightning.core.curriculum import ConstantLevels, Curriculum, GridCurriculum
from cm_lightning.core.distance import L2, Distance
from cm_lightning.core.noise import SIGMA_MIN
from cm_lightning.core.solver import euler_step, heun_step
from cm_lightning.core.weighting import Uniform, Weighting
from cm_lightning.errors import CheckpointError, ConfigError
from cm_lightning.interop.foreign import is_foreign
from cm_lightning.modules.consistency import ConsistencyModule
from cm_lightning.modules.diffusion import DiffusionModule
from cm_lightning.modules.foreign import foreign_teacher
from cm_lightning.modules.loading import load_module
from cm_lightning.modules.starting import require_noise_scale
from cm_lightning.states import difference, renamed_like

_STEPS = {"euler": euler_step, "heun": heun_step}


class ConsistencyDistillation(ConsistencyModule):
    """CD (CM, Algorithm 2): the earlier point is one step of the teacher's probability-flow ODE from x_t.

    By default as on CIFAR-10: 18 levels, l2, uniform weights, Heun, target = student.

    The teacher is frozen, in eval mode, and no part of the module's parameters, averages or checkpoints: a checkpoint
    remembers only the teacher's path, and training needs the file again, while sampling does not.

    Args:
        teacher: a diffusion module that has its weights, or a checkpoint of one, of which the averaged weights are
            taken; or ``openai:FILE``, ``edm:FILE``, ``diffusers:FOLDER``.
        solver: of the teacher's step.
        trust: packages besides this one that the teacher's checkpoint may take classes from.
        start_from_teacher: whether the student starts with the teacher's weights.
        backbone, image_shape, curriculum, distance, weighting, options: see :class:`ConsistencyModule`.
    """

    def __init__(
        self,
        backbone: nn.Module,
        image_shape: Sequence[int],
        teacher: str | DiffusionModule,
        solver: Literal["euler", "heun"] = "heun",
        start_from_teacher: bool = True,
        trust: Sequence[str] = (),
        curriculum: Curriculum | None = None,
        distance: Distance | None = None,
        weighting: Weighting | None = None,
        **options: Any,
    ) -> None:
        super().__init__(
            backbone,
            image_shape,
            curriculum or GridCurriculum(ConstantLevels(18)),
            distance or L2(),
            weighting or Uniform(),
            **options,
        )
        if start_from_teacher and self.start_from:
            raise ConfigError("start_from and start_from_teacher exclude each other: set start_from_teacher to false")
        self.teacher_path = teacher if isinstance(teacher, str) else None
        self.trust = tuple(trust)
        self.step, self.start_from_teacher = _STEPS[solver], start_from_teacher
        # in a list, where nn.Module does not look for submodules
        self._teacher: list[DiffusionModule] = [] if isinstance(teacher, str) else [teacher]

    @property
    def teacher(self) -> DiffusionModule:
        """The teacher, read from its file when first asked for. Raises CheckpointError or ConfigError."""
        if not self._teacher:
            assert self.teacher_path is not None
            try:
                path = self.teacher_path
                loaded = foreign_teacher(path) if is_foreign(path) else load_module(path, trust=self.trust)
            except CheckpointError as error:
                raise CheckpointError(f"{error}: set --model.teacher to a DiffusionModule's checkpoint") from error
            if not isinstance(loaded, DiffusionModule):
                raise ConfigError(f"teacher: {self.teacher_path} holds a {type(loaded).__name__}, no DiffusionModule")
            self._teacher.append(loaded)
        return self._teacher[0]

    def frozen_networks(self) -> dict[str, nn.Module]:
        return {"teacher": copy.deepcopy(self.backbone).requires_grad_(False)}  # as large, and not read yet

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage not in ("fit", "validate"):
            return  # sampling needs no teacher
        self.teacher.requires_grad_(False).eval()
        theirs, ours = ((m.num_classes or "no", m.image_shape) for m in (self.teacher, self))
        if theirs != ours:
            raise ConfigError(
                f"the teacher draws {theirs[0]} classes of shape {theirs[1]}, the student {ours[0]} of {ours[1]}: "
                "set the student's image_shape and num_classes to the teacher's"
            )
        if stage == "fit" and self.start_from_teacher:
            require_noise_scale(self, self.teacher.parameterization.noise_scale, "the teacher")
            state = renamed_like(self.teacher.backbone.state_dict(), own := self.backbone.state_dict())
            if differing := difference(state, own):
                raise ConfigError(
                    "the student's backbone differs from the teacher's: set start_from_teacher to false "
                    f"({differing.replace('file', 'teacher').replace('network', 'student')})"
                )
            self.load_backbone(state)

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self.teacher.to(self.device, self.dtype)

    def on_validation_start(self) -> None:
        self.teacher.to(self.device, self.dtype)

    def earlier_point(self, x: Tensor, z: Tensor, x_t: Tensor, t: Tensor, r: Tensor, labels: Tensor | None) -> Tensor:
        """One step of dx/dt = (x - D(x, t)) / t by the teacher, from t down to r, or to sigma_min where r is 0."""
        return self.step(partial(self.teacher.denoiser, labels=labels), x_t, t, r.clamp(min=SIGMA_MIN))
