"""Latent consistency distillation: consistency distillation in latent space, from a teacher under guidance."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from diffusers import LCMScheduler
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from cm_lightning.core.curriculum import Clock
from cm_lightning.core.distance import ElementwiseHuber
from cm_lightning.core.latent import ScaledBoundary, Timesteps
from cm_lightning.core.objective import Chord
from cm_lightning.core.schedule import RateSchedule
from cm_lightning.core.target_rate import TargetRate
from cm_lightning.core.trajectory import Teacher
from cm_lightning.core.weighting import Uniform
from cm_lightning.domains import COUNT, NON_NEGATIVE, POSITIVE
from cm_lightning.errors import ConfigError
from cm_lightning.latent.base import Conditioning, TextToImageBase
from cm_lightning.latent.student import Student
from cm_lightning.modules.latent_student import StudentModule
from cm_lightning.modules.target import TargetNetwork


class Guided(NamedTuple):
    """The condition of a latent consistency function: B captions and the guidance w (B,)."""

    captions: Conditioning
    w: Tensor


class LatentConsistencyDistillation(StudentModule):
    """LCM (Luo et al. 2023, Algorithm 1), or LCM-LoRA (Luo et al. 2023b) if the student is :class:`LoRA`.

    The loss is the chord of :class:`ConsistencyDistillation` in latents, on the path of Stable Diffusion. The teacher
    takes DDIM steps under guidance.

    Args:
        base: the teacher. The student uses its autoencoder and text encoders, too.
        student: the trained part: :class:`WholeUNet` or :class:`LoRA`.
        guidance: the range that w is drawn from uniformly; w = guidance_scale - 1 of the pipelines, so 0 is no
            guidance.
        timesteps: number of timesteps of the teacher's DDIM grid; each step of it is a training pair.
        huber_c: constant c of the loss.
        target_rate: rate mu of a target network, a running average of the student; if None, the student itself is the
            target.
        scaling: factor on the timesteps in the boundary condition.
        gradient_checkpointing: whether to trade time for memory.
        cache, offload_encoders: see :class:`LatentModule`; optimizer, lr_scheduler, start_from: see
            :class:`TrainedModule`.
    """

    def __init__(
        self,
        base: TextToImageBase,
        student: Student,
        guidance: tuple[float, float] = (5.0, 15.0),
        timesteps: int = 50,
        huber_c: float = 0.001,
        target_rate: TargetRate | None = None,
        scaling: float = 10.0,
        gradient_checkpointing: bool = False,
        cache: str | None = None,
        offload_encoders: bool = False,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: RateSchedule | LRSchedulerCallable | None = None,
        start_from: str | None = None,
    ) -> None:
        if len(guidance) != 2 or any(w not in NON_NEGATIVE for w in guidance) or guidance[0] > guidance[1]:
            raise ConfigError(f"--model.guidance must be two numbers, 0 <= low <= high; got {list(guidance)}")
        COUNT.check(self, timesteps=timesteps)
        POSITIVE.check(self, huber_c=huber_c, scaling=scaling)
        super().__init__(
            base, student, gradient_checkpointing, cache, offload_encoders, optimizer, lr_scheduler, start_from
        )
        self.guidance = guidance
        self.boundary, self.timesteps = ScaledBoundary(scaling), Timesteps(timesteps, len(base.schedule))
        self.objective = Chord(
            self.timesteps, Teacher(self.denoised, base.schedule, "euler"), ElementwiseHuber(huber_c), Uniform()
        )
        self.target_network = TargetNetwork(student.weights, target_rate, self.timesteps) if target_rate else None
        self.target = self.target_network.network if self.target_network else None
        self.followers = (self.target_network,) if self.target_network else ()

    def batch_loss(self, batch: Any, batch_idx: int, generator: torch.Generator | None = None) -> Tensor:
        z_0, captions = self.latents_and_conditions(batch)
        low, high = self.guidance
        w = low + (high - low) * torch.rand(len(z_0), device=z_0.device, generator=generator)
        target = self.map if self.target is None else self.target_map
        return self.objective.loss(self.map, target, z_0, Guided(captions, w), self.clock, generator)

    def denoised(self, z_t: Tensor, t: Tensor, c: Guided) -> Tensor:
        """The teacher's guided estimate of z_0 at t (B,)."""
        return self.guided_teacher(z_t, t, c.captions, c.w)

    def map(self, z_t: Tensor, t: Tensor, r: Tensor, c: Guided) -> Tensor:
        """f(z_t, t, w, c) with the weights that the module holds; r is the clean end."""
        return self.consistency_function(z_t, t, c.captions, c.w)

    def target_map(self, z_t: Tensor, t: Tensor, r: Tensor, c: Guided) -> Tensor:
        """f(z_t, t, w, c) with the weights of the target network."""
        assert self.target is not None
        output = self.student.target(self.base, self.target, z_t, t, c.captions, self.student.embed(c.w))
        return self.boundary(z_t, t, self.base.schedule.clean(output, z_t, t))

    def consistency_function(self, z: Tensor, t: Tensor, c: Conditioning, w: Tensor) -> Tensor:
        """f(z, t, w, c) = c_skip z + c_out z_0 (LCM, section 4.1): z (B, C, h, w), t and w (B,)."""
        output = self.network_output(z, t, c, w)
        return self.boundary(z, t, self.base.schedule.clean(output, z, t))

    def progress(self, clock: Clock) -> dict[str, float]:
        return {"mu": self.target_network.mu(clock)} if self.target_network else {}

    def scheduler(self) -> LCMScheduler:
        """The diffusers scheduler of this model."""
        return LCMScheduler.from_config(
            self.base.pipe.scheduler.config,
            original_inference_steps=len(self.timesteps.grid),
            timestep_scaling=self.boundary.scaling,
            clip_sample=False,
        )
