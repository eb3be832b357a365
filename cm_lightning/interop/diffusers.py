"""diffusers' folders: ``UNet2DModel`` and ``ConsistencyModelPipeline``, in and out."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from cm_lightning.backbones.adm import ADM
from cm_lightning.backbones.attention import SelfAttention
from cm_lightning.backbones.embedding import PositionalEmbedding
from cm_lightning.backbones.pyramid import PyramidBlock
from cm_lightning.backbones.unet2d import DiffusersUNet
from cm_lightning.errors import CheckpointError, ConfigError
from cm_lightning.interop.blocks import block_modules, own_blocks
from cm_lightning.interop.weights import filled, read_tensors, renamed

_PARTS = {
    "norm1": "norm1",
    "conv1": "conv1",
    "time_emb_proj": "affine",
    "norm2": "norm2",
    "conv2": "conv2",
    "conv_shortcut": "skip",
}
_ATTENTION = {"group_norm": "norm", "to_qkv": "qkv", "to_out.0": "out"}
_REST = {
    "time_embedding.linear_1": "conditioning.mlp.0",
    "time_embedding.linear_2": "conditioning.mlp.2",
    "class_embedding": "conditioning.classes",
    "conv_in": "stem",
    "conv_norm_out": "head.0",
    "conv_out": "head.2",
}


def read_folder(path: str | Path) -> tuple[DiffusersUNet, int]:
    """The network of a pipeline's folder, or of a ``UNet2DModel``'s own, and the side of its images in pixels.

    Raises:
        CheckpointError: there is no such folder, or its files are damaged or do not fit each other.
    """
    folder = Path(path)
    folder = folder / "unet" if (folder / "unet").is_dir() else folder
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder}: no readable config.json of a UNet2DModel") from error
    if not isinstance(config, dict) or config.get("_class_name") != "UNet2DModel":
        raise CheckpointError(f"{folder}: its config.json is not that of a UNet2DModel")
    if not isinstance(side := config.get("sample_size"), int):
        raise CheckpointError(f"{folder}: sample_size in its config.json is no number of pixels")
    state = read_tensors(folder / "diffusion_pytorch_model.safetensors")
    try:
        network = DiffusersUNet(config)
    except ConfigError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    return filled(network, {f"network.{name}": tensor for name, tensor in state.items()}), side


def read_sigmas(path: str | Path) -> dict[str, float]:
    """``sigma_min``, ``sigma_max`` and ``sigma_data`` of a pipeline's scheduler; none for a network's own folder.

    Raises:
        CheckpointError: the folder is of another kind of pipeline, or its scheduler cannot be read.
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


def unet2d_from(backbone: nn.Module, side: int) -> nn.Module:
    """The network as a ``diffusers.UNet2DModel`` with the same weights, for images of ``side`` pixels.

    Raises:
        ConfigError: diffusers has no such network.
    """
    if isinstance(backbone, DiffusersUNet):
        network: Any = copy.deepcopy(backbone.network)
        network.register_to_config(sample_size=side)
        return cast(nn.Module, network)
    if not isinstance(backbone, ADM):
        raise ConfigError(
            f"--format diffusers: diffusers has no {type(backbone).__name__}: it has ADM and its own UNet2DModel"
        )
    levels = backbone.pyramid.factor.bit_length()
    blocks = (len(backbone.pyramid.encoder) + 1) // levels - 1
    theirs = block_modules(own_blocks(levels, blocks), _their_blocks(levels, blocks), _PARTS, _ATTENTION)
    state = renamed(backbone.state_dict(), {own: their for their, own in {**theirs, **_REST}.items()})
    try:
        wrapped = filled(DiffusersUNet(_config(backbone, side, levels, blocks)), _as_theirs(state))
    except CheckpointError as error:
        raise ConfigError(f"--format diffusers: its UNet2DModel differs from this ADM: {error}") from error
    return wrapped.network


def write_pipeline(unet: nn.Module, sigma_data: float, sigma_min: float, sigma_max: float, folder: Path) -> None:
    """A folder that ``diffusers.ConsistencyModelPipeline.from_pretrained`` reads."""
    from diffusers import CMStochasticIterativeScheduler, ConsistencyModelPipeline

    make_scheduler: Any = CMStochasticIterativeScheduler
    make_pipeline: Any = ConsistencyModelPipeline
    scheduler = make_scheduler(sigma_min=sigma_min, sigma_max=sigma_max, sigma_data=sigma_data)
    make_pipeline(unet, scheduler).save_pretrained(folder)


def _config(network: ADM, side: int, levels: int, blocks: int) -> dict[str, Any]:
    encoder = network.pyramid.encoder
    last = [cast(PyramidBlock, encoder[level * (blocks + 1) + blocks - 1]) for level in range(levels)]
    widths = [block.conv2.out_channels for block in last]
    attends = [isinstance(block.attention, SelfAttention) for block in last]
    groups = {module.num_groups for module in network.modules() if isinstance(module, nn.GroupNorm)}
    heads = {m.qkv.in_channels // m.heads for m in network.modules() if isinstance(m, SelfAttention)}
    embedding = network.conditioning.noise
    if len(groups) > 1 or len(heads) > 1:
        raise ConfigError("--format diffusers: its norms and heads are alike everywhere: channels of at least 128 fit")
    if not isinstance(embedding, PositionalEmbedding) or 2 * len(embedding.frequencies) != widths[0]:
        raise ConfigError("--format diffusers: the noise embedding must be positional and multipliers begin with 1")
    return {
        "sample_size": side,
        "in_channels": network.stem.in_channels,
        "out_channels": network.stem.in_channels,
        "block_out_channels": widths,
        "layers_per_block": blocks,
        "down_block_types": ["AttnDownBlock2D" if a else "ResnetDownsampleBlock2D" for a in attends],
        "up_block_types": ["AttnUpBlock2D" if a else "ResnetUpsampleBlock2D" for a in reversed(attends)],
        "downsample_type": "resnet",
        "upsample_type": "resnet",
        "attention_head_dim": heads.pop(),
        "norm_num_groups": (norm_groups := groups.pop()),
        "attn_norm_num_groups": norm_groups,  # or the attention in the middle has no norm
        "dropout": last[0].style.dropout,
        "resnet_time_scale_shift": "scale_shift" if last[0].style.scale_shift else "default",
        "num_class_embeds": network.num_classes or None,
    }


def _their_blocks(levels: int, blocks: int) -> Iterator[tuple[str, str]]:
    for level in range(levels):
        if level > 0:
            yield f"down_blocks.{level - 1}.downsamplers.0", "none"
        for i in range(blocks):
            yield f"down_blocks.{level}.resnets.{i}", f"down_blocks.{level}.attentions.{i}"
    yield "mid_block.resnets.0", "mid_block.attentions.0"
    yield "mid_block.resnets.1", "none"
    for level in range(levels):
        if level > 0:
            yield f"up_blocks.{level - 1}.upsamplers.0", "none"
        for i in range(blocks + 1):
            yield f"up_blocks.{level}.resnets.{i}", f"up_blocks.{level}.attentions.{i}"


def _as_theirs(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Linear maps in place of convolutions of one pixel, q, k and v apart, classes as rows."""
    result: dict[str, Tensor] = {}
    for name, tensor in state.items():
        linear = ".attentions." in name and tensor.ndim == 4
        shaped = tensor[..., 0, 0] if linear else tensor.T if name == "class_embedding.weight" else tensor
        parts = shaped.chunk(3) if ".to_qkv." in name else [shaped]
        names = [name.replace("to_qkv", f"to_{part}") for part in ("qkv" if len(parts) == 3 else "q")]
        result |= {f"network.{part}": third for part, third in zip(names, parts, strict=True)}
    return result
