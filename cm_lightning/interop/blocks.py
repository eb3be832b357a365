"""Which blocks of a pyramid are which of another program's network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from einops import rearrange
from torch import Tensor


def block_modules(
    ours: Iterable[str], theirs: Iterable[tuple[str, str]], parts: Mapping[str, str], attention: Mapping[str, str]
) -> dict[str, str]:
    """Names of modules, theirs -> ours.

    Args:
        ours: prefix of each block.
        theirs: prefixes of the same block and of its attention.
        parts: of a block, theirs -> ours.
        attention: of an attention, theirs -> ours.
    """
    result: dict[str, str] = {}
    for own, (block, attends) in zip(ours, theirs, strict=True):
        result |= {f"{block}.{part}": f"{own}.{name}" for part, name in parts.items()}
        result |= {f"{attends}.{part}": f"{own}.attention.{name}" for part, name in attention.items()}
    return result


def own_blocks(levels: int, blocks: int) -> Iterator[str]:
    """The prefixes of a pyramid's blocks: the encoder's, then the decoder's."""
    yield from (f"pyramid.encoder.{i}" for i in range(levels * blocks + levels - 1))
    yield from (f"pyramid.decoder.{i}" for i in range(2 + levels * (blocks + 1) + levels - 1))


def heads_last(qkv: Tensor, heads: int) -> Tensor:
    """Rows ordered (head, d, q/k/v), as EDM has them, -> (q/k/v, head, d), as ours."""
    return rearrange(qkv, "(n c three) ... -> (three n c) ...", three=3, n=heads)
