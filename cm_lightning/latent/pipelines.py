"""Pipelines that draw in few steps: a base, optionally LoRA, and a suitable scheduler."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from diffusers import AutoPipelineForImage2Image, DDIMScheduler, LCMScheduler
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from cm_lightning.domains import FINITE
from cm_lightning.errors import CheckpointError, ConfigError
from cm_lightning.hub import on_hub, out_of_reach, silence
from cm_lightning.latent.base import load_pipeline
from cm_lightning.latent.lora import combine, merge
from cm_lightning.latent.lora_files import load_lora
from cm_lightning.latent.lora_source import CONFIG, NAMES
from cm_lightning.run import find_export

#: ``lcm`` is multistep consistency sampling; ``trailing`` is DDIM from the last timestep, which a base needs for few
#: steps; ``own`` is the scheduler that the model was saved with.
Scheduler: TypeAlias = Literal["lcm", "trailing", "own"]


def few_step_pipeline(
    path: str,
    loras: Mapping[str, float] | None = None,
    scheduler: Scheduler | None = None,
    device: str | torch.device = "cpu",
    dtype: str = "float32",
    option: str | None = None,
) -> Any:
    """Load a pipeline that is ready to draw, with LoRA merged into its weights, so that they take no time.

    Args:
        path: folder or hub name of the base or of a full LCM.
        loras: files, folders or hub names such as ``latent-consistency/lcm-lora-sdv1-5``, and the weight of each.
        scheduler: if None, ``lcm`` for a LoRA or a model saved with LCM's scheduler, ``trailing`` for any other.
        device: device to draw on.
        dtype: dtype of the weights.
        option: the option by which the user gave base and LoRA, for messages; ``--pipeline`` and ``--lora`` if None.

    Raises:
        CheckpointError: a file is missing, damaged or unsuitable, or the hub does not answer.
        ConfigError: the device is not available.
    """
    FINITE.check(**{f"the weight of {lora}": weight for lora, weight in (loras or {}).items()})
    names = {f"lora{i}": lora for i, lora in enumerate(loras or {})}
    files = {name: _local(lora, option or "--lora") for name, lora in names.items()}  # first: a base takes long to load
    pipe: Any = load_pipeline(path, dtype, option=option or "--pipeline")
    for name, file in files.items():
        load_lora(pipe, file, name)
    if loras:
        combine(pipe, {name: loras[lora] for name, lora in names.items()})
        merge(pipe)
    is_lcm = bool(loras) or isinstance(pipe.scheduler, LCMScheduler)
    set_scheduler(pipe, scheduler or ("lcm" if is_lcm else "trailing"), list(loras or {}))
    try:
        return pipe.to(device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"--device {device} cannot be used here: leave it out, or give cpu") from error


def _local(lora: str, option: str) -> str:
    """The file of a name on the hub, possibly from the cache; any other path is returned as it is."""
    lora = find_export(lora)
    if not on_hub(lora):
        return lora
    cached_only = out_of_reach(lora)
    try:
        return _fetch(lora, cached_only)
    except Exception as error:
        if cached_only:
            raise CheckpointError(silence(option, lora)) from error
        raise CheckpointError(
            f"{option} {lora} is not a file here, and could not be fetched from the hub: give a file or folder"
        ) from error


def _fetch(lora: str, cached_only: bool) -> str:
    """Fetch the first of the usual files of a LoRA, and peft's description of it if there is one."""
    for name in NAMES:
        try:
            file = hf_hub_download(lora, name, local_files_only=cached_only)
        except EntryNotFoundError as error:
            if isinstance(error, LocalEntryNotFoundError) and not cached_only:
                raise  # the network failed, so other names would fail too
            continue
        if name.startswith("adapter_model"):
            hf_hub_download(lora, CONFIG, local_files_only=cached_only)
        return str(file)
    raise FileNotFoundError(f"{lora} has none of {', '.join(NAMES)}")


def set_scheduler(pipe: Any, kind: Scheduler, loras: list[str] | None = None) -> None:
    """Set another scheduler, with the noise schedule that the model was trained with."""
    config = pipe.scheduler.config
    if kind == "lcm":
        saved = next((lora for lora in loras or [] if (Path(lora) / "scheduler").is_dir()), None)
        if saved:  # a LoRA of this suite records the timesteps it was distilled on
            config = LCMScheduler.load_config(saved, subfolder="scheduler")
        pipe.scheduler = LCMScheduler.from_config(config, clip_sample=False)
    elif kind == "trailing":
        pipe.scheduler = DDIMScheduler.from_config(config, timestep_spacing="trailing", clip_sample=False)


def image_to_image(pipe: Any) -> Any:
    """The same model as a pipeline that starts from an image."""
    changed = AutoPipelineForImage2Image.from_pipe(pipe)
    changed.set_progress_bar_config(disable=True)
    return changed
