"""Loading the weights of a whole UNet into a pipeline, from a folder of diffusers or a published file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers import UNet2DConditionModel
from torch import Tensor

from cm_lightning.errors import CheckpointError
from cm_lightning.hub import loading
from cm_lightning.latent.lora_keys import bare, split
from cm_lightning.latent.lora_source import contents, find, keys

# options that must fit the rest of the pipeline
_SHARED = (
    "in_channels",
    "out_channels",
    "cross_attention_dim",
    "addition_embed_type",
    "projection_class_embeddings_input_dim",
)

# the first layer of a UNet, in diffusers and in Stability's code
_FIRST = {"conv_in.weight", "input_blocks.0.0.weight"}
# the beginnings of other parts' keys in a checkpoint of a whole model
_OTHER_PARTS = ("conditioner.", "first_stage_model.", "cond_stage_model.", "model.diffusion_model.")


def is_unet(path: Path) -> bool:
    """Whether a path is a whole UNet: its folder, a pipeline's folder, or a file with its keys.

    Raises:
        CheckpointError: a file of tensors is missing or damaged.
    """
    if _folder(path):
        return True
    told = keys(find(path))
    return not any(split(key)[1] for key in told) and not _FIRST.isdisjoint(map(bare, told))


def load_unet(pipe: Any, path: Path) -> None:
    """Replace the pipeline's UNet weights by those of a whole UNet, in the dtype of the pipeline.

    Args:
        pipe: a Stable Diffusion or SDXL pipeline.
        path: a folder of diffusers with the network or with a pipeline that contains it; or a state dict with the names
            of diffusers, as .safetensors or by ``torch.save``. Nothing in a file is executed.

    Raises:
        CheckpointError: it is missing, damaged, not a UNet, or not for this kind of model; the pipeline is unchanged.
    """
    if folder := _folder(path):
        _load_folder(pipe, folder)
    elif path.exists():
        _load_file(pipe, find(path))
    else:
        raise CheckpointError(f"there is no UNet at {path}: give a folder of diffusers, or a file")


def _folder(path: Path) -> Path | None:
    """The folder of a UNet's configuration and weights at a path, if there is one."""
    for folder in (path, path / "unet"):
        try:
            config = json.loads((folder / "config.json").read_text())
        except (OSError, ValueError):
            continue
        if isinstance(config, dict) and config.get("_class_name") == "UNet2DConditionModel":
            return folder
    return None


def _load_folder(pipe: Any, folder: Path) -> None:
    try:
        with loading():
            unet: Any = UNet2DConditionModel.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # diffusers raises many kinds of errors for damaged files
        raise CheckpointError(f"{folder} cannot be loaded as a UNet: {str(error).strip().splitlines()[0]}") from error
    for name in _SHARED:
        ours, theirs = pipe.unet.config.get(name), unet.config.get(name)
        if ours != theirs:
            raise CheckpointError(
                f"{folder} is not a UNet for this kind of model: its {name} is {theirs}, and the pipeline's is {ours}"
            )
    pipe.register_modules(unet=unet.to(pipe.unet.dtype))


def _load_file(pipe: Any, file: Path) -> None:
    content, _ = contents(file)
    state = content if isinstance(content, dict) else {}
    told = [str(key) for key in state]
    tensors = {bare(key): value for key, value in zip(told, state.values(), strict=True)}
    if fault := _wrong_kind(tensors, told) or _misfit(pipe.unet.state_dict(), tensors):
        raise CheckpointError(f"{file} {fault}")
    pipe.unet.load_state_dict(tensors)


def _wrong_kind(tensors: Mapping[str, Any], told: list[str]) -> str | None:
    """The end of the message about a file that is not a state dict of a UNet."""
    if any(split(key)[1] for key in told):
        return "is a LoRA: give it by --lora"
    if any(key.startswith(_OTHER_PARTS) for key in told):
        return "is a checkpoint of a whole model, for ComfyUI: give the file of its UNet alone, ..._unet.safetensors"
    if not tensors or any(not isinstance(value, Tensor) for value in tensors.values()):
        return "is not a state dict of a UNet: give one, or a folder of diffusers"
    return None


def _misfit(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> str | None:
    """The end of the message about a state dict of another UNet, by the first name that differs."""
    start = "is not a UNet for this kind of model:"
    if lacking := [name for name in own if name not in tensors]:
        return f"{start} it lacks {lacking[0]}"
    if foreign := [name for name in tensors if name not in own]:
        return f"{start} its {foreign[0]} does not belong there"
    shapes = {name: (tuple(tensors[name].shape), tuple(own[name].shape)) for name in own}
    if wrong := [name for name, (theirs, ours) in shapes.items() if theirs != ours]:
        theirs, ours = shapes[wrong[0]]
        return f"{start} its {wrong[0]} of shape {theirs} does not fit {ours}"
    return None
