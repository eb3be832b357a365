"""Folders of diffusers: the network of a ``UNet2DModel`` or ``ConsistencyModelPipeline``, and its noise levels."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from cm_lightning.backbones.unet2d import DiffusersUNet
from cm_lightning.errors import CheckpointError, ConfigError
from cm_lightning.interop.weights import filled, read_tensors

_PRESENT = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_OLD_ATTENTION = re.compile(r"(?<=attentions\.\d)\.(query|key|value|proj_attn)\.")


def read_folder(path: str | Path) -> tuple[DiffusersUNet, int]:
    """Read the network from the folder of a pipeline or a ``UNet2DModel``, and the side of its images in pixels.

    Raises:
        CheckpointError: the folder does not exist, or its files are damaged or do not fit together.
    """
    folder = Path(path)
    folder = folder / "unet" if (folder / "unet").is_dir() else folder
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder}: a readable config.json of a UNet2DModel is missing") from error
    if not isinstance(config, dict) or config.get("_class_name") != "UNet2DModel":
        raise CheckpointError(f"{folder}: its config.json is not that of a UNet2DModel")
    if not isinstance(side := config.get("sample_size"), int):
        raise CheckpointError(f"{folder}: sample_size in its config.json is not a number of pixels")
    state = _present_names(read_tensors(_weights_file(folder)))
    try:
        network = DiffusersUNet(config)
    except ConfigError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    return filled(network, {f"network.{name}": tensor for name, tensor in state.items()}), side


def _weights_file(folder: Path) -> Path:
    names = [f"diffusion_pytorch_model{ending}" for ending in (".safetensors", ".fp16.safetensors", ".bin")]
    return next((folder / name for name in names if (folder / name).is_file()), folder / names[0])


def _present_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the attention of old files to its present names, as diffusers does."""
    return {_OLD_ATTENTION.sub(lambda m: f".{_PRESENT[m[1]]}.", name): tensor for name, tensor in state.items()}


def read_sigmas(path: str | Path) -> dict[str, float]:
    """``sigma_min``, ``sigma_max`` and ``sigma_data`` of a pipeline's scheduler; empty for the folder of a network.

    Raises:
        CheckpointError: the folder holds another kind of pipeline, or its scheduler cannot be read.
    """
    index, scheduler = Path(path) / "model_index.json", Path(path) / "scheduler/scheduler_config.json"
    if not index.is_file():
        return {}
    try:
        kind, config = json.loads(index.read_text())["_class_name"], json.loads(scheduler.read_text())
        sigmas = {name: float(config[name]) for name in ("sigma_min", "sigma_max", "sigma_data")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: its model_index.json and scheduler cannot be read") from error
    if kind != "ConsistencyModelPipeline":
        raise CheckpointError(
            f"{path} is a {kind}: give a ConsistencyModelPipeline, or the folder of its network alone"
        )
    return sigmas
