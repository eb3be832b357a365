"""OpenAI's ``UNetModel`` of consistency_models, from a plain state dict to :class:`ADM`.

The files are ``cd_*.pt``, ``ct_*.pt`` and ``edm_*_ema.pt`` of ImageNet 64 x 64 and LSUN 256 x 256. In them the 3C
channels of attention are ordered (q/k/v, head, d), as in this suite. Older files of guided-diffusion order them
(head, q/k/v, d), and the shapes do not show the difference.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor

from cm_lightning.backbones.adm import ADM
from cm_lightning.errors import CheckpointError
from cm_lightning.interop.weights import block_modules, filled, own_blocks, renamed

#: The networks take 250 ln sigma.
NOISE_SCALE = 250.0

#: The number of groups of the norms, at every width.
_GROUPS = 32

_PARTS = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "affine",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "skip",
}
_ATTENTION = {"norm": "norm", "qkv": "qkv", "proj_out": "out"}
_REST = {
    "time_embed.0": "conditioning.mlp.0",
    "time_embed.2": "conditioning.mlp.2",
    "label_emb": "conditioning.classes",
    "input_blocks.0.0": "stem",
    "out.0": "head.0",
    "out.2": "head.2",
}


def adm_from_openai(state: Mapping[str, Tensor]) -> ADM:
    """Build the network from the shapes of its tensors; heads are 64 channels wide, as in all published files.

    Raises:
        CheckpointError: the tensors are not those of one complete network.
    """
    try:
        levels, blocks = _shape(state)
        network = _network(state, levels, blocks)
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        raise CheckpointError(
            f"these are not the tensors of OpenAI's UNetModel: {error} is missing or wrong"
        ) from error
    names = block_modules(own_blocks(levels, blocks), _their_blocks(state, levels, blocks), _PARTS, _ATTENTION)
    ours = renamed(state, {**names, **_REST})
    if "conditioning.classes.weight" in ours:
        ours["conditioning.classes.weight"] = ours["conditioning.classes.weight"].T
    # the attention is a 1-D or a 2-D convolution of one pixel, depending on the version
    shaped = {name: _as_2d(tensor) if ".attention." in name else tensor for name, tensor in ours.items()}
    return filled(network, shaped)


def _as_2d(weight: Tensor) -> Tensor:
    return weight[..., None] if weight.ndim == 3 else weight


def _count(state: Mapping[str, Tensor], pattern: str, limit: int = 1000) -> int:
    """The number of prefixes pattern.format(0), pattern.format(1), ... that occur."""
    return next(i for i in range(limit) if pattern.format(i) not in state)


def _shape(state: Mapping[str, Tensor]) -> tuple[int, int]:
    """The numbers of levels, and of blocks in a level: a doubling block follows another in its stage."""
    stages = _count(state, "output_blocks.{}.0.in_layers.0.weight")
    ups = sum(f"output_blocks.{i}.{j}.in_layers.0.weight" in state for i in range(stages) for j in (1, 2))
    return ups + 1, stages // (ups + 1) - 1


def _network(state: Mapping[str, Tensor], levels: int, blocks: int) -> ADM:
    channels = state["time_embed.0.weight"].shape[1]
    last = [(level + 1) * (blocks + 1) - 1 for level in range(levels)]  # input block that ends a level
    widths = [state[f"input_blocks.{i}.0.out_layers.3.weight"].shape[0] for i in last]
    return ADM(
        image_channels=state["input_blocks.0.0.weight"].shape[1],
        channels=channels,
        multipliers=[width // channels for width in widths],
        blocks=blocks,
        attention_levels=[level for level, i in enumerate(last) if f"input_blocks.{i}.1.qkv.weight" in state],
        num_classes=state["label_emb.weight"].shape[0] if "label_emb.weight" in state else 0,
        scale_shift=state["input_blocks.1.0.emb_layers.1.weight"].shape[0] == 2 * widths[0],
        norm_groups=_GROUPS,
    )


def _their_blocks(state: Mapping[str, Tensor], levels: int, blocks: int) -> Iterator[tuple[str, str]]:
    yield from ((f"input_blocks.{i}.0", f"input_blocks.{i}.1") for i in range(1, levels * (blocks + 1)))
    yield "middle_block.0", "middle_block.1"
    yield "middle_block.2", "middle_block.none"
    for i in range(levels * (blocks + 1)):
        stage = f"output_blocks.{i}"
        yield f"{stage}.0", f"{stage}.1"
        if i % (blocks + 1) == blocks and i + 1 < levels * (blocks + 1):
            attends = f"{stage}.1.qkv.weight" in state
            yield f"{stage}.{2 if attends else 1}", f"{stage}.none"
