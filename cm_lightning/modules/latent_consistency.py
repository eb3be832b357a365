"""Latent consistency distillation: CM's distillation in latent space, from a teacher under guidance."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, LCMScheduler
from torch import Tensor, nn

from cm_lightning.core.curriculum import TargetRate
from cm_lightning.core.latent import boundary, ddim_timesteps, guided, huber
from cm_lightning.core.noise import expand, unit_noise
from cm_lightning.domains import COUNT, NON_NEGATIVE, POSITIVE
from cm_lightning.errors import ConfigError
from cm_lightning.latent.base import Conditioning, TextToImageBase
from cm_lightning.latent.student import Student, frozen_copy
from cm_lightning.modules.latent import LatentModule
from cm_lightning.modules.target import move_target


class LatentConsistencyDistillation(LatentModule):
    """LCM (Luo et al. 2023, Algorithm 1) and, by its student, LCM-LoRA (Luo et al. 2023b).

    Args:
        base: the teacher. Its autoencoder and text encoders are the student's, too.
        student: what is trained: :class:`WholeUNet` or :class:`LoRA`.
        guidance: w is drawn uniformly from here; w = guidance_scale - 1 of the pipelines, so 0 is no guidance.
        timesteps: of the teacher's DDIM grid; each step of it is a training pair.
        huber_c: of the loss.
        target_rate: of a target network, a running average of the student; None: the student itself.
        scaling: of timesteps in the boundary condition.
        gradient_checkpointing: whether to trade time for memory.
        options: see :class:`LatentModule`.
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
        **options: Any,
    ) -> None:
        if len(guidance) != 2 or any(w not in NON_NEGATIVE for w in guidance) or guidance[0] > guidance[1]:
            raise ConfigError(f"--model.guidance must be two numbers, 0 <= low <= high; got {list(guidance)}")
        COUNT.check(self, timesteps=timesteps)
        POSITIVE.check(self, huber_c=huber_c, scaling=scaling)
        student.attach(base)
        super().__init__(base, student.weights, **options)
        self.student, self.guidance, self.huber_c, self.scaling = student, guidance, huber_c, scaling
        self.target_rate = target_rate
        self.target = frozen_copy(student.weights) if target_rate else None
        self.grid = ddim_timesteps(timesteps, len(base.schedule))
        if gradient_checkpointing:
            student.unet.enable_gradient_checkpointing()  # type: ignore[operator]

    def batch_loss(self, batch: Any, batch_idx: int, generator: torch.Generator | None = None) -> Tensor:
        """Mean Huber d(f(z_t, t, w, c), f_target(z_r, r, w, c)), z_r one guided DDIM step of the teacher from z_t."""
        z_0, c = self.latents_and_conditions(batch)
        device, n = z_0.device, len(z_0)
        t = self.grid.to(device)[torch.randint(len(self.grid), (n,), device=device, generator=generator)]
        r = (t - len(self.base.schedule) // len(self.grid)).clamp(min=0)
        low, high = self.guidance
        w = low + (high - low) * torch.rand(n, device=device, generator=generator)
        epsilon = unit_noise(z_0.shape, generator, device, z_0.dtype)
        z_t = self.base.schedule.add_noise(z_0, t, epsilon)

        f_t = self.consistency_function(z_t, t, c, w)
        with torch.no_grad():
            z_r = self.earlier_point(z_t, t, r, c, w)
            f_r = self.consistency_function(z_r, r, c, w, target=True)
        return huber(f_t, f_r, self.huber_c).mean()

    def earlier_point(self, z_t: Tensor, t: Tensor, r: Tensor, c: Conditioning, w: Tensor) -> Tensor:
        """The teacher's guided DDIM step from t down to r, its two evaluations in one batch. t, r, w (B,)."""
        both = self.student.teacher(
            self.base, torch.cat([z_t, z_t]), torch.cat([t, t]), c.followed_by(self.no_prompt(z_t))
        )
        conditional, unconditional = both.chunk(2)
        return self.base.schedule.ddim_step(guided(conditional, unconditional, w), z_t, t, r)

    def consistency_function(self, z: Tensor, t: Tensor, c: Conditioning, w: Tensor, target: bool = False) -> Tensor:
        """f(z, t, w, c) = c_skip z + c_out x0 with the weights the module holds, or those of the target network."""
        if target and self.target is not None:
            output = self.student.target(self.base, self.target, z, t, c, self.student.embed(w))
        else:
            output = self.network_output(z, t, c, w)
        x0, _ = self.base.schedule.x0_and_epsilon(output, z, t)
        c_skip, c_out = boundary(t, self.scaling)
        return expand(c_skip, z) * z + expand(c_out, z) * x0

    def network_output(self, x: Tensor, t: Tensor, c: Conditioning, w: Tensor) -> Tensor:
        return self.base.output(self.student.unet, x, t, c, self.student.embed(w))

    def frozen_networks(self) -> dict[str, nn.Module]:
        return {"frozen network": self.base.unet}

    def progress(self, step: int, total: int) -> dict[str, float]:
        return {"mu": self.target_rate(step, total)} if self.target_rate else {}

    def load_backbone(self, state: Mapping[str, Tensor]) -> None:
        super().load_backbone(state)
        if self.target is not None:
            self.target.load_state_dict(state)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        clock = self.clock
        super().optimizer_step(*args, **kwargs)
        if self.target is not None and self.target_rate is not None:
            move_target(self.target, self.backbone, self.target_rate(*clock))

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self._move_networks()

    def on_validation_start(self) -> None:
        super().on_validation_start()
        self._move_networks()

    def _move_networks(self) -> None:
        """The teacher, and a network that only its adapter is trained of, are outside of the module."""
        self.base.unet.to(self.device)
        self.student.unet.to(self.device)

    def pipeline(self) -> DiffusionPipeline:
        parts = {**self.base.pipe.components, "unet": self.student.unet, "scheduler": self.scheduler()}
        pipe = type(self.base.pipe)(**parts, **_flags(self.base.pipe))
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def scheduler(self) -> LCMScheduler:
        """The diffusers scheduler of this model."""
        return LCMScheduler.from_config(
            self.base.pipe.scheduler.config,
            original_inference_steps=len(self.grid),
            timestep_scaling=self.scaling,
            clip_sample=False,
        )

    def export(self, directory: Path) -> None:
        self.student.export(directory, self.pipeline())


def _flags(pipe: DiffusionPipeline) -> dict[str, Any]:
    """A pipeline's options besides its components."""
    options = ("requires_safety_checker", "force_zeros_for_empty_prompt")
    return {name: pipe.config[name] for name in options if name in pipe.config}
