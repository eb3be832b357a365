"""Pipelines that draw in few steps: a base, optionally LoRA, and a suitable scheduler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoPipelineForImage2Image,
    AutoPipelineForInpainting,
    EulerDiscreteScheduler,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    StableDiffusionInpaintPipeline,
)
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from cm_lightning.domains import FINITE
from cm_lightning.errors import CheckpointError, ConfigError
from cm_lightning.hub import file_on_hub, on_hub, out_of_reach, silence
from cm_lightning.latent.base import load_pipeline
from cm_lightning.latent.few_step import FewStep, Scheduler
from cm_lightning.latent.lora import combine, merge
from cm_lightning.latent.lora_files import load_lora
from cm_lightning.latent.lora_source import CONFIG, NAMES
from cm_lightning.latent.schedulers import few_step_scheduler, make_scheduler
from cm_lightning.latent.unet_files import is_unet, load_unet
from cm_lightning.run import find_export


def few_step_pipeline(
    path: str,
    loras: Mapping[str, float] | None = None,
    scheduler: Scheduler | None = None,
    device: str | torch.device = "cpu",
    dtype: str = "float32",
    option: str | None = None,
    unet: str | None = None,
    how: FewStep | None = None,
) -> Any:
    """Load a pipeline that is ready to draw, with LoRA merged into its weights, so that they take no time.

    Args:
        path: folder or hub name of the base or of a full LCM.
        loras: files, folders or hub names such as ``latent-consistency/lcm-lora-sdv1-5``, and the weight of each. A
            file of a model on the hub is OWNER/MODEL/FILE.
        scheduler: if None, that of ``how``; without it ``lcm`` for a LoRA or a model saved with LCM's scheduler,
            ``own`` for a model saved with Euler's trailing timesteps, and ``trailing`` for any other.
        device: device to draw on.
        dtype: dtype of the weights.
        option: the option by which the user gave base and LoRA, for messages; ``--pipeline`` and ``--lora`` if None.
        unet: a file or folder with another UNet for the pipeline.
        how: how its student is drawn; see :func:`cm_lightning.latent.few_step.only_one`.

    Raises:
        CheckpointError: a file is missing, damaged or unsuitable, or the hub does not answer.
        ConfigError: the device is not available.
    """
    FINITE.check(**{f"the weight of {lora}": weight for lora, weight in (loras or {}).items()})
    names = {f"lora{i}": lora for i, lora in enumerate(loras or {})}
    files = {name: local_file(lora, option or "--lora") for name, lora in names.items()}  # a base takes long to load
    other = Path(local_file(unet, option or "--unet")) if unet else None
    for name, file in files.items():
        if Path(file).exists() and is_unet(Path(file)):
            raise CheckpointError(f"{names[name]} is a whole UNet, not a LoRA: give it by --unet")
    pipe: Any = load_pipeline(path, dtype, option=option or "--pipeline")
    if other:
        load_unet(pipe, other)
    for name, file in files.items():
        load_lora(pipe, file, name)
    if loras:
        combine(pipe, {name: loras[lora] for name, lora in names.items()})
        merge(pipe)
    set_scheduler(pipe, scheduler, list(loras or {}), how)
    try:
        return pipe.to(device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"--device {device} cannot be used here: leave it out, or give cpu") from error


def split_parts(parts: Sequence[str], option: str) -> tuple[list[str], str | None]:
    """Tell the LoRA among the parts that are added to a pipeline from a whole UNet, by what the files hold.

    Args:
        parts: files, folders or names on the hub.
        option: the option by which the user gave them, for messages.

    Raises:
        CheckpointError: a file is missing or damaged, or the hub does not answer.
        ConfigError: there are two UNets.
    """
    places = {part: Path(local_file(part, option)) for part in parts}
    unets = [part for part, place in places.items() if place.exists() and is_unet(place)]
    if len(unets) > 1:
        raise ConfigError(f"{option} {unets[0]} and {unets[1]} are both whole UNets: give one of them")
    return [part for part in parts if part not in unets], unets[0] if unets else None


def local_file(lora: str, option: str) -> str:
    """The file of a name on the hub, possibly from the cache; any other path is returned as it is.

    Raises:
        CheckpointError: it is not in the cache, and the hub does not answer or does not have it.
    """
    lora = find_export(lora)
    model, file = file_on_hub(lora) or (lora, None)
    if not on_hub(model):
        return lora
    cached_only = out_of_reach(model)
    try:
        return str(hf_hub_download(model, file, local_files_only=cached_only)) if file else _fetch(model, cached_only)
    except Exception as error:
        if cached_only:
            raise CheckpointError(silence(option, lora)) from error
        raise CheckpointError(
            f"{option} {lora} is not a file here, and could not be fetched from the hub: give a file or folder, "
            "or OWNER/MODEL/FILE"
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


def set_scheduler(
    pipe: Any, kind: Scheduler | None, loras: list[str] | None = None, how: FewStep | None = None
) -> None:
    """Set another scheduler, with the noise schedule that the model was trained with.

    Args:
        pipe: the pipeline.
        kind: the scheduler that the user chose; if None, see :func:`few_step_pipeline`.
        loras: the LoRA that were merged; one of this suite records the timesteps that it was distilled on.
        how: how its student is drawn. What its network predicts holds for any scheduler.
    """
    config, prediction = pipe.scheduler.config, how.prediction if how else None
    kind = kind or (how.scheduler if how else _usual(pipe, loras or []))
    saved = next((lora for lora in loras or [] if (Path(lora) / "scheduler").is_dir()), None)
    if how and kind == how.scheduler:
        pipe.scheduler = few_step_scheduler(how, config)
    elif kind != "own":
        if kind == "lcm" and saved and not how:
            config = LCMScheduler.load_config(saved, subfolder="scheduler")
        pipe.scheduler = make_scheduler(kind, config, prediction)
    elif prediction:
        pipe.scheduler = type(pipe.scheduler).from_config(config, prediction_type=prediction)


def _usual(pipe: Any, loras: Sequence[str]) -> Scheduler:
    """The scheduler for a model that does not say how it is drawn."""
    if loras or isinstance(pipe.scheduler, LCMScheduler):
        return "lcm"
    trailing = pipe.scheduler.config.get("timestep_spacing") == "trailing"
    return "own" if trailing and isinstance(pipe.scheduler, EulerDiscreteScheduler) else "trailing"


def image_to_image(pipe: Any) -> Any:
    """The same model as a pipeline that starts from an image."""
    return _as(AutoPipelineForImage2Image, pipe)


def inpainting(pipe: Any) -> Any:
    """The same model as a pipeline that keeps the part of an image that a mask does not cover."""
    if isinstance(pipe, LatentConsistencyModelPipeline):  # which the automatic choice does not know
        return _as(StableDiffusionInpaintPipeline, pipe)
    return _as(AutoPipelineForInpainting, pipe)


def _as(kind: Any, pipe: Any) -> Any:
    try:
        changed = kind.from_pipe(pipe)
    except ValueError as error:
        raise ConfigError(
            f"--pipeline: diffusers has no {kind.__name__} of a {type(pipe).__name__}: give another base"
        ) from error
    changed.set_progress_bar_config(disable=True)
    return changed
