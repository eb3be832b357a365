"""EDM's networks (Karras et al. 2022): from a state dict or a network snapshot to DDPMpp, NCSNpp or ADM."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import torch
from einops import rearrange
from torch import Tensor

from cm_lightning.backbones.adm import ADM
from cm_lightning.backbones.ddpmpp import DDPMpp
from cm_lightning.backbones.ncsnpp import NCSNpp
from cm_lightning.errors import CheckpointError
from cm_lightning.interop.weights import block_modules, filled, own_blocks, renamed

_PARTS = {
    "norm0": "norm1",
    "conv0": "conv1",
    "affine": "affine",
    "norm1": "norm2",
    "conv1": "conv2",
    "skip": "skip",
}
_ATTENTION = {"norm2": "norm", "qkv": "qkv", "proj": "out"}
_HEAD_WIDTH = 64


def network_from_edm(state: Mapping[str, Tensor]) -> tuple[DDPMpp | NCSNpp | ADM, int]:
    """Build the network from the names and shapes of its tensors; also return the side of its images in pixels.

    ``map_augment``, which sampling does not use, and the fixed filters are left out.

    Raises:
        CheckpointError: the tensors are not those of one complete network.
    """
    known = {name.removeprefix("model."): tensor for name, tensor in state.items()}
    known = {n: t for n, t in known.items() if not n.startswith("map_augment") and not n.endswith("resample_filter")}
    try:
        sides = sorted({int(m[1]) for name in known if (m := re.match(r"enc\.(\d+)x\1_", name))}, reverse=True)
        blocks = sum(bool(re.fullmatch(rf"enc\.{sides[0]}x{sides[0]}_block\d+\.norm0\.weight", n)) for n in known)
        network = _network(known, sides, blocks)
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        raise CheckpointError(f"these are not the tensors of a network of EDM: {error} is missing or wrong") from error
    if (fixed := known.pop("map_noise.freqs", None)) is not None:
        known["map_noise.frequencies"] = fixed
    names = block_modules(own_blocks(len(sides), blocks), _their_blocks(sides, blocks), _PARTS, _ATTENTION)
    ours = renamed(known, {**names, **_rest(sides)})
    return filled(network, _reordered(ours, isinstance(network, ADM))), sides[0]


def _network(state: Mapping[str, Tensor], sides: list[int], blocks: int) -> DDPMpp | NCSNpp | ADM:
    stem = state[f"enc.{sides[0]}x{sides[0]}_conv.weight"]
    kind = _kind(state)
    channels = state["map_layer0.weight"].shape[1] if kind is ADM else stem.shape[0]
    last = [f"enc.{side}x{side}_block{blocks - 1}" for side in sides]
    return kind(
        image_channels=stem.shape[1],
        channels=channels,
        multipliers=[state[f"{name}.conv1.weight"].shape[0] // channels for name in last],
        blocks=blocks,
        attention_levels=[level for level, name in enumerate(last) if f"{name}.qkv.weight" in state],
        num_classes=state["map_label.weight"].shape[1] if "map_label.weight" in state else 0,
    )


def _kind(state: Mapping[str, Tensor]) -> type[DDPMpp] | type[NCSNpp] | type[ADM]:
    if "out_conv.weight" in state:
        return ADM
    return NCSNpp if any("aux_residual" in name for name in state) else DDPMpp


def _their_blocks(sides: list[int], blocks: int) -> Iterator[tuple[str, str]]:
    for name in _stages(sides, blocks):
        yield name, name  # attention is part of the block


def _stages(sides: list[int], blocks: int) -> Iterator[str]:
    for side in sides:
        if side != sides[0]:
            yield f"enc.{side}x{side}_down"
        yield from (f"enc.{side}x{side}_block{i}" for i in range(blocks))
    for side in reversed(sides):
        stages = ("in0", "in1") if side == sides[-1] else ("up",)
        yield from (f"dec.{side}x{side}_{stage}" for stage in stages)
        yield from (f"dec.{side}x{side}_block{i}" for i in range(blocks + 1))


def _rest(sides: list[int]) -> dict[str, str]:
    finest = f"{sides[0]}x{sides[0]}"
    inlets = {f"enc.{s}x{s}_aux_residual": f"pyramid.inlets.{i}.conv" for i, s in enumerate(sides[1:])}
    return {
        "map_noise": "conditioning.noise",
        "map_layer0": "conditioning.mlp.0",
        "map_layer1": "conditioning.mlp.2",
        "map_label": "conditioning.classes",
        f"enc.{finest}_conv": "stem",
        f"dec.{finest}_aux_norm": "head.0",
        f"dec.{finest}_aux_conv": "head.2",
        "out_norm": "head.0",
        "out_conv": "head.2",
        **inlets,
    }


def _reordered(state: dict[str, Tensor], adm: bool) -> dict[str, Tensor]:
    """Bring rows and columns into the order of this suite: q, k and v; for DDPM++ and NCSN++ sines before cosines."""
    result = dict(state)
    for name, tensor in state.items():
        if ".qkv." in name:
            result[name] = _heads_last(tensor, max(1, len(tensor) // 3 // _HEAD_WIDTH) if adm else 1)
    if adm:
        return result
    result["conditioning.mlp.0.weight"] = _halves_swapped(result["conditioning.mlp.0.weight"].T).T
    for name in ("conditioning.classes.weight", "conditioning.classes.bias"):
        if name in result:
            result[name] = _halves_swapped(result[name])
    return result


def _heads_last(qkv: Tensor, heads: int) -> Tensor:
    """Reorder rows from EDM's (head, d, q/k/v) to (q/k/v, head, d), the order of this suite."""
    return rearrange(qkv, "(n c three) ... -> (three n c) ...", three=3, n=heads)


def _halves_swapped(rows: Tensor) -> Tensor:
    first, second = rows.chunk(2)
    return torch.cat([second, first])
