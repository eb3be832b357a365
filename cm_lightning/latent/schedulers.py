"""The schedulers of diffusers that draw in few steps, with the noise schedule that a model was trained with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusers import DDIMScheduler, EulerDiscreteScheduler, LCMScheduler

from cm_lightning.core.latent import Prediction
from cm_lightning.latent.few_step import FewStep

# a base may have been saved with other noise levels than those of its timesteps
_PLAIN_SIGMAS = {
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "interpolation_type": "linear",
    "final_sigmas_type": "zero",
    "timestep_type": "discrete",
}


def few_step_scheduler(how: FewStep, config: Mapping[str, Any]) -> Any:
    """The scheduler with which plain diffusers samples a student, at guidance 0 and ``how.steps`` steps.

    Args:
        how: how the student is sampled. If it has timesteps, every call of the pipeline needs them:
            ``timesteps=[399]``.
        config: the configuration of the base's scheduler, ``pipe.scheduler.config``.
    """
    if how.scheduler == "lcm" and not how.timesteps:  # this grid holds only the trailing timesteps
        return make_scheduler("lcm", config, how.prediction, original_inference_steps=how.steps)
    return make_scheduler(how.scheduler, config, how.prediction)


def make_scheduler(kind: str, config: Mapping[str, Any], prediction: Prediction | None = None, **changes: Any) -> Any:
    """The scheduler ``euler``, ``lcm`` or ``trailing``.

    Args:
        kind: its name, as in :data:`cm_lightning.latent.few_step.CLASSES`.
        config: the configuration of another scheduler with the same noise schedule.
        prediction: what the network predicts; as in the configuration if None.
        changes: more options of the scheduler.
    """
    if prediction:
        changes["prediction_type"] = prediction
    make: Any = {"euler": EulerDiscreteScheduler, "lcm": LCMScheduler, "trailing": DDIMScheduler}[kind]
    options: dict[str, Any] = {"clip_sample": False} if kind != "euler" else dict(_PLAIN_SIGMAS)
    if kind != "lcm":
        options["timestep_spacing"] = "trailing"
    return make.from_config(config, **{**options, **changes})
