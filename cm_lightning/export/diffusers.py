"""Networks for diffusers: a ``UNet2DModel`` in a folder of ``ConsistencyModelPipeline``."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from cm_lightning.backbones.adm import ADM
from cm_lightning.backbones.attention import SelfAttention
from cm_lightning.backbones.pyramid import PyramidBlock
from cm_lightning.backbones.unet2d import DiffusersUNet
from cm_lightning.core.noise import SIGMA_MIN
from cm_lightning.errors import CheckpointError, ConfigError
from cm_lightning.export.noise_label import refitted
from cm_lightning.interop.openai import NOISE_SCALE
from cm_lightning.interop.weights import block_modules, filled, own_blocks, renamed
from cm_lightning.modules.consistency import ConsistencyModule

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


def write_pipeline(module: ConsistencyModule, folder: Path) -> None:
    """Write a folder that ``diffusers.ConsistencyModelPipeline.from_pretrained`` reads.

    Raises:
        ConfigError: diffusers does not have such a network, or a pipeline for such images.
    """
    from diffusers import CMStochasticIterativeScheduler, ConsistencyModelPipeline

    own, shape = module.parameterization, module.image_shape
    if len(shape) != 3 or shape[1] != shape[2]:
        raise ConfigError(
            f"--format diffusers: its pipeline draws squares, but this module draws {shape}: give --format onnx"
        )
    if module.contrast:
        raise ConfigError(
            "--format diffusers: its pipeline cannot apply the contrast of this module: give --format "
            "onnx, or --format safetensors"
        )
    levels = (max(own.sigma_min, SIGMA_MIN), module.sigma_max)
    unet = _unet2d_from(module.backbone, shape[-1], own.noise_scale, levels)
    make_scheduler: Any = CMStochasticIterativeScheduler
    make_pipeline: Any = ConsistencyModelPipeline
    scheduler = make_scheduler(sigma_min=own.sigma_min, sigma_max=module.sigma_max, sigma_data=own.sigma_data)
    make_pipeline(unet, scheduler).save_pretrained(folder)


def _unet2d_from(backbone: nn.Module, side: int, noise_scale: float, sigmas: tuple[float, float]) -> nn.Module:
    """Convert the network to a ``diffusers.UNet2DModel`` that takes 250 ln sigma.

    Args:
        backbone: ADM or DiffusersUNet.
        side: side of its images, in pixels.
        noise_scale: the backbone takes noise_scale * ln sigma.
        sigmas: the lowest and the highest noise level of its inputs, both above 0.

    Returns:
        A network with the same weights. If ``noise_scale`` is not 250, those of the first layer after the noise
        embedding differ: they are fitted so that the output is the same to about 1e-6.

    Raises:
        ConfigError: diffusers does not have such a network.
    """
    _require_counterpart(backbone)
    network: Any = _wrapped(backbone, side) if isinstance(backbone, ADM) else copy.deepcopy(backbone.network)
    network.register_to_config(sample_size=side)
    if isinstance(backbone, ADM):
        conditioning: Any = backbone.conditioning
        old, first = conditioning.noise, conditioning.mlp[0]
    else:
        old, first = network.time_proj, network.time_embedding.linear_1
        if noise_scale != NOISE_SCALE and network.config.time_embedding_type != "positional":
            raise ConfigError("--format diffusers: a time_embedding_type other than positional needs noise_scale 250")
    if noise_scale == NOISE_SCALE and _alike(old, network.time_proj):
        return cast(nn.Module, network)
    layer = network.time_embedding.linear_1
    weight, bias = refitted(
        first, lambda logs: old(noise_scale * logs), lambda logs: network.time_proj(NOISE_SCALE * logs), *sigmas
    )
    layer.load_state_dict({"weight": weight, "bias": bias})
    return cast(nn.Module, network)


def _require_counterpart(backbone: nn.Module) -> None:
    """Raise ConfigError if diffusers does not have a network of this class."""
    if not isinstance(backbone, ADM | DiffusersUNet):
        raise ConfigError(
            f"--format diffusers: diffusers has no {type(backbone).__name__}: networks of the classes ADM and "
            "DiffusersUNet can be written; for this one give --format onnx or --format safetensors"
        )


def _alike(ours: nn.Module, theirs: nn.Module) -> bool:
    """Whether two embeddings give the same vectors."""
    if ours is theirs:
        return True
    labels = torch.linspace(-1500, 1100, 27)
    one, other = ours(labels), theirs(labels)
    return one.shape == other.shape and torch.allclose(one, other, atol=1e-3)


def _wrapped(backbone: ADM, side: int) -> nn.Module:
    levels = backbone.pyramid.factor.bit_length()
    blocks = (len(backbone.pyramid.encoder) + 1) // levels - 1
    theirs = block_modules(own_blocks(levels, blocks), _their_blocks(levels, blocks), _PARTS, _ATTENTION)
    weights = {n: t for n, t in backbone.state_dict().items() if not n.startswith("conditioning.noise.")}
    state = _as_theirs(renamed(weights, {own: their for their, own in {**theirs, **_REST}.items()}))
    try:
        wrapped = DiffusersUNet(_config(backbone, side, levels, blocks))
        first = "network.time_embedding.linear_1.weight"
        if state[first].shape != wrapped.state_dict()[first].shape:
            state[first] = wrapped.state_dict()[first]  # it has another width, and is fitted later
        return filled(wrapped, state).network
    except CheckpointError as error:
        raise ConfigError(f"--format diffusers: its UNet2DModel differs from this ADM: {error}") from error


def _config(network: ADM, side: int, levels: int, blocks: int) -> dict[str, Any]:
    encoder = network.pyramid.encoder
    last = [cast(PyramidBlock, encoder[level * (blocks + 1) + blocks - 1]) for level in range(levels)]
    widths = [block.conv2.out_channels for block in last]
    attends = [isinstance(block.attention, SelfAttention) for block in last]
    groups = {module.num_groups for module in network.modules() if isinstance(module, nn.GroupNorm)}
    heads = {m.qkv.in_channels // m.heads for m in network.modules() if isinstance(m, SelfAttention)}
    if len(groups) > 1:
        raise ConfigError(
            "--format diffusers: all its norms have the same number of groups: set norm_groups, or channels of "
            "at least 128"
        )
    if len(heads) > 1:
        raise ConfigError(
            "--format diffusers: all its heads have 64 channels: widths with attention must be multiples of 64"
        )
    return {
        "sample_size": side,
        "in_channels": network.stem.in_channels,
        "out_channels": network.stem.in_channels,
        "block_out_channels": widths,
        "time_embedding_dim": last[0].style.condition,
        "layers_per_block": blocks,
        "down_block_types": ["AttnDownBlock2D" if a else "ResnetDownsampleBlock2D" for a in attends],
        "up_block_types": ["AttnUpBlock2D" if a else "ResnetUpsampleBlock2D" for a in reversed(attends)],
        "downsample_type": "resnet",
        "upsample_type": "resnet",
        "attention_head_dim": heads.pop(),
        "norm_num_groups": (norm_groups := groups.pop()),
        "attn_norm_num_groups": norm_groups,  # otherwise the attention in the middle does not have a norm
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
    """Convert to linear maps in place of 1 x 1 convolutions, to separate q, k and v, and to classes as rows."""
    result: dict[str, Tensor] = {}
    for name, tensor in state.items():
        linear = ".attentions." in name and tensor.ndim == 4
        shaped = tensor[..., 0, 0] if linear else tensor.T if name == "class_embedding.weight" else tensor
        parts = shaped.chunk(3) if ".to_qkv." in name else [shaped]
        names = [name.replace("to_qkv", f"to_{part}") for part in ("qkv" if len(parts) == 3 else "q")]
        result |= {f"network.{part}": third for part, third in zip(names, parts, strict=True)}
    return result
