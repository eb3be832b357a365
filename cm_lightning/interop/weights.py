"""Reading plain tensors from the files of other programs, renaming them, and loading them into networks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from cm_lightning.digest import load_tensors, require_undamaged
from cm_lightning.errors import CheckpointError
from cm_lightning.interop.pickles import read_pickle
from cm_lightning.states import plain_name

Network = TypeVar("Network", bound=nn.Module)


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Read the state dict in a ``.safetensors``, a snapshot ``.pkl`` of EDM, or a file of ``torch.save``, to the CPU.

    It may be nested in the dictionary of a training program, under ``ema``, ``state_dict``, ``model`` or the like, and
    its names may begin with those of a wrapper, ``module.`` or ``_orig_mod.``.

    Raises:
        CheckpointError: the file is missing, damaged, or holds anything other than named tensors of real numbers.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}")
    try:
        state = unwrapped(_read(path))
    except CheckpointError as error:
        raise CheckpointError(str(error) if str(path) in str(error) else f"{path}: {error}") from error
    except Exception as error:  # parsers raise many kinds of errors for a damaged file
        raise CheckpointError(f"{path} cannot be read as plain tensors: is it complete?") from error
    if not isinstance(state, dict) or not state or not all(_is_weight(*item) for item in state.items()):
        raise CheckpointError(f"{path} is not a state dict: it holds things other than named tensors of real numbers")
    return state


def _read(path: Path) -> object:
    if path.suffix == ".safetensors":
        return load_tensors(path)
    if path.suffix == ".pkl":
        return read_pickle(path)
    require_undamaged(path)
    return torch.load(path, map_location="cpu", weights_only=True)


#: Keys under which training programs keep a state dict, and attributes in which they keep a network; averages first.
_WRAPPERS = ("ema", "model_ema", "ema_model", "state_dict", "model", "module", "network", "net", "_orig_mod")


def unwrapped(content: object) -> object:
    """The state dict within the dictionaries of a training program, with names without the network's wrappers."""
    while isinstance(content, dict) and not any(isinstance(value, Tensor) for value in content.values()):
        inner = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), dict) and content[key]), None)
        if inner is None:
            return content
        content = inner
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        return content
    state = {plain_name(name): value for name, value in content.items()}
    while state and {name.partition(".")[0] for name in state} <= set(_WRAPPERS):
        first = next(key for key in _WRAPPERS if any(name.startswith(f"{key}.") or name == key for name in state))
        inner_state = {n.removeprefix(f"{first}."): v for n, v in state.items() if n.startswith(f"{first}.")}
        if not inner_state:
            return state
        state = inner_state
    return state


def _is_weight(name: object, value: object) -> bool:
    """Whether a value is a tensor of real numbers that are all stored; one that repeats values could have any size."""
    if not isinstance(name, str) or not isinstance(value, Tensor) or not value.is_floating_point():
        return False
    return value.numel() * value.element_size() <= value.untyped_storage().nbytes()


def renamed(state: Mapping[str, Tensor], modules: Mapping[str, str]) -> dict[str, Tensor]:
    """Rename the modules of the tensors.

    Raises:
        CheckpointError: the map does not contain the module of a tensor.
    """
    result = {}
    for name, tensor in state.items():
        module, _, parameter = name.rpartition(".")
        if module not in modules:
            raise CheckpointError(f"it has {name}, which is not part of that network")
        result[f"{modules[module]}.{parameter}"] = tensor
    return result


def block_modules(
    ours: Iterable[str], theirs: Iterable[tuple[str, str]], parts: Mapping[str, str], attention: Mapping[str, str]
) -> dict[str, str]:
    """The names of modules, mapped from another program's to those of this suite.

    Args:
        ours: prefix of each block in this suite.
        theirs: prefixes of the same block and of its attention in the other program.
        parts: names of the parts of a block, theirs to ours.
        attention: names of the parts of an attention, theirs to ours.
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


def filled(network: Network, state: Mapping[str, Tensor]) -> Network:
    """Load weights into the network, and return it in eval mode.

    Raises:
        CheckpointError: a tensor is missing, left over, or of another shape; the network must then not be used.
    """
    own = network.state_dict()
    for name in sorted(own.keys() ^ state.keys()):
        raise CheckpointError(f"{name} is {'missing' if name in own else 'left over'}: the file is not complete")
    for name, tensor in state.items():
        if tensor.shape != own[name].shape:
            raise CheckpointError(f"{name} has shape {tuple(tensor.shape)}, but {tuple(own[name].shape)} was expected")
    network.load_state_dict(dict(state))
    return network.eval()
