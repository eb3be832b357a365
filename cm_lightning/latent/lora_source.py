"""The tensors of a LoRA file of any origin, found and read without executing anything."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from cm_lightning.errors import CheckpointError
from cm_lightning.latent.lora_keys import split

#: The name that ``pipe.load_lora_weights(directory)`` looks for.
WEIGHTS = "pytorch_lora_weights.safetensors"
#: The file with peft's description of ``adapter_model``, in the same folder.
CONFIG = "adapter_config.json"
#: The files of a folder that take precedence, in this order.
NAMES = (WEIGHTS, "adapter_model.safetensors", "pytorch_lora_weights.bin", "adapter_model.bin")

_METADATA = "lora_adapter_metadata"
_ENDINGS = ("safetensors", "bin", "pt", "pth", "ckpt")
# initialisations of a LoRA that remove a part of the base's weights, and so do not fit an unchanged base
_CHANGES_THE_BASE = ("pissa", "corda", "olora", "loftq", "lora_ga")
_DEFAULTS = {
    "r": 8,
    "lora_alpha": 8,
    "rank_pattern": {},
    "alpha_pattern": {},
    "use_rslora": False,
    "init_lora_weights": True,
}


def find(path: Path) -> Path:
    """The file of a path: the path itself, or in a folder one of ``NAMES`` or the only file of tensors.

    Raises:
        CheckpointError: there is none, or there are several.
    """
    if path.is_file():
        return path
    for name in NAMES:
        if (path / name).is_file():
            return path / name
    for endings in (_ENDINGS[:1], _ENDINGS[1:]):
        files = sorted(file for ending in endings for file in path.glob(f"[!.]*.{ending}"))
        if len(files) > 1:
            raise CheckpointError(f"{path} holds several LoRAs: choose one of {', '.join(file.name for file in files)}")
        if files:
            return files[0]
    raise CheckpointError(f"there is no LoRA at {path}")


def read(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read tensors by key, and diffusers' metadata; alphas in peft's description become tensors too.

    Raises:
        CheckpointError: the file is damaged, or does not hold a LoRA.
    """
    content, metadata = contents(file)
    if not content or not isinstance(content, dict) or not isinstance(metadata, dict):
        raise CheckpointError(f"{file} holds no LoRA")
    tensors = {str(key): _tensor(str(key), value, file) for key, value in content.items()}
    peft = file.with_name(CONFIG)
    # a file that holds its alphas was not written by peft
    told = metadata or any(split(key)[1] == "alpha" for key in tensors)
    if peft.is_file() and not told and any(".lora_A." in key for key in tensors):
        tensors |= _described(tensors, peft)
    return tensors, metadata


def contents(file: Path) -> tuple[object, object]:
    """Read what a file holds, without executing any of it, and diffusers' metadata.

    Raises:
        CheckpointError: the file is damaged, or holds objects of classes.
    """
    try:
        return _safetensors(file) if _is_safetensors(file) else (_saved(file), {})
    except Exception as error:  # parsers raise many kinds of errors for a damaged file
        raise CheckpointError(
            f"{file} is damaged, or does not hold tensors alone: give a .safetensors, or a state dict by torch.save"
        ) from error


def keys(file: Path) -> list[str]:
    """The keys of a file; only those of a .safetensors are read without its tensors.

    Raises:
        CheckpointError: the file is damaged.
    """
    try:
        if _is_safetensors(file):
            with safe_open(file, "pt") as opened:
                return list(opened.keys())
    except Exception as error:
        raise CheckpointError(f"{file} is damaged: fetch it again") from error
    content, _ = contents(file)
    return [str(key) for key in content] if isinstance(content, dict) else []


def _is_safetensors(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(9)[8:] == b"{"  # the header follows its length; the file's name does not matter


def _safetensors(file: Path) -> tuple[object, object]:
    with safe_open(file, "pt") as opened:
        tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 - it is not a dict
        return tensors, json.loads((opened.metadata() or {}).get(_METADATA, "{}"))


def _saved(file: Path) -> object:
    with file.open("rb") as opened:  # given a path, torch would decide by its suffix
        content = torch.load(opened, map_location="cpu", weights_only=True)
    inner = content.get("state_dict") if isinstance(content, dict) else None
    return content if inner is None else inner


def _tensor(key: str, value: object, file: Path) -> Tensor:
    if isinstance(value, int | float):  # an alpha that is not a tensor
        return torch.tensor(value)
    if not isinstance(value, Tensor):
        raise CheckpointError(f"{file} holds no LoRA: its {key} is not a tensor")
    return value.detach()


def _described(tensors: Mapping[str, Tensor], file: Path) -> dict[str, Tensor]:
    try:
        config = json.loads(file.read_text())
        given = {key: value for key, value in config.items() if value is not None}
        return _alphas(tensors, {**_DEFAULTS, **given}, file)
    except (OSError, ValueError, AttributeError, TypeError, re.error) as error:
        raise CheckpointError(f"{file} is damaged: fetch it again, or remove it for alpha = rank") from error


def _alphas(tensors: Mapping[str, Tensor], config: Mapping[str, Any], file: Path) -> dict[str, Tensor]:
    """The alpha of each layer, for which alpha / rank is the scale."""
    start = str(config["init_lora_weights"]).lower()
    if start.startswith(_CHANGES_THE_BASE):
        raise CheckpointError(
            f"{file}: its LoRA was initialised as {start}, which changes the base: save it as a plain LoRA, by peft's "
            "path_initial_model_for_weight_conversion"
        )
    found = {}
    for key, tensor in tensors.items():
        layer, half = split(key)
        if half != "down" or not tensor.ndim:
            continue
        rank, name = len(tensor), layer.removeprefix("base_model.model.")
        told = _of_layer(config, "rank_pattern", "r", name)
        if told != rank:
            raise CheckpointError(
                f"{file} does not belong to this LoRA: it gives rank {told} for {name}, but the rank is {rank}"
            )
        alpha = _of_layer(config, "alpha_pattern", "lora_alpha", name)
        correction = rank**0.5 if config["use_rslora"] else 1.0
        found[f"{layer}.alpha"] = torch.tensor(alpha * correction, dtype=torch.float64)
    return found


def _of_layer(config: Mapping[str, Any], patterns: str, default: str, layer: str) -> Any:
    """The value of the first pattern that matches the layer's name or its end."""
    own = config[patterns].items()
    return next((value for key, value in own if re.match(rf"(.*\.)?({key})$", layer)), config[default])
