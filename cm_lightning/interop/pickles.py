"""Tensors from EDM's network snapshots, which are pickles that carry source code. None of it is run."""

from __future__ import annotations

import io
import math
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cm_lightning.errors import CheckpointError


class Inert:
    """A placeholder for any object of the pickle: it only keeps the object's arguments and state."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments
        self.state: Any = None

    def __new__(cls, *arguments: Any) -> Inert:
        made = super().__new__(cls)
        made.arguments, made.state = arguments, None
        return made

    def __setstate__(self, state: Any) -> None:
        self.state = state


class InertDict(dict[Any, Any]):
    """A placeholder for a dictionary of another class."""


def _storage(data: bytes) -> Any:
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _tensor(storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    data = storage._untyped_storage  # the public name warns that typed storages are deprecated
    if math.prod(size) * storage.dtype.itemsize > data.nbytes():
        raise CheckpointError("it has a tensor that is larger than its data")
    return torch.empty(0, dtype=storage.dtype).set_(data, offset, size, stride)


def _parameter(data: Tensor, *_: Any) -> Tensor:
    return data


def _reconstructor(cls: type, *_: Any) -> Inert:
    if cls is not Inert:
        raise CheckpointError("it rebuilds an object that is not part of a network")
    return Inert()


#: All names that a snapshot may use, and their replacements.
_STANDS_FOR: dict[tuple[str, str], Any] = {
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch.storage", "_load_from_bytes"): _storage,
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): Inert,
    ("dnnlib.util", "EasyDict"): InertDict,
    ("collections", "OrderedDict"): InertDict,
    ("builtins", "set"): set,
    ("builtins", "object"): object,
    ("copyreg", "_reconstructor"): _reconstructor,
    ("torch.nn.modules.container", "ModuleDict"): Inert,
    ("torch.nn.modules.container", "ModuleList"): Inert,
    ("numpy", "dtype"): Inert,
    ("numpy.core.multiarray", "scalar"): Inert,
    ("numpy._core.multiarray", "scalar"): Inert,
}


class _Unpickler(pickle._Unpickler):  # in Python, because the one in C allocates memory for any index that a file names
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _STANDS_FOR:
            raise CheckpointError(f"it names {module}.{name}, which is not part of a network; none of it was run")
        return _STANDS_FOR[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise CheckpointError("it refers to something outside of itself")


def read_pickle(path: Path) -> dict[str, Tensor]:
    """Read the state dict of the averaged network in a snapshot: parameters and buffers, by name.

    Raises:
        CheckpointError: the pickle names anything that is not part of a network, or does not hold a network. A damaged
            file may raise other errors.
    """
    with path.open("rb") as file:
        content = _Unpickler(file).load()
    network = content.get("ema") if isinstance(content, dict) else content
    if not isinstance(network, Inert):
        raise CheckpointError("it does not hold a network under 'ema'")
    meta = network.arguments[0] if network.arguments and isinstance(network.arguments[0], dict) else {}
    if meta.get("class_name", "EDMPrecond") != "EDMPrecond":
        raise CheckpointError(f"its network is scaled by {meta['class_name']}: only EDM's own scalings are known here")
    return _tensors(network)


def _tensors(module: Inert, prefix: str = "") -> dict[str, Tensor]:
    """The tensors of a module, as in ``nn.Module.state_dict``."""
    attributes = _attributes(module)
    found: dict[str, Tensor] = {}
    for kind in ("_parameters", "_buffers"):
        found |= {f"{prefix}{name}": value for name, value in attributes.get(kind, {}).items() if value is not None}
    for name, child in attributes.get("_modules", {}).items():
        if isinstance(child, Inert):
            found |= _tensors(child, f"{prefix}{name}.")
    return found


def _attributes(module: Inert) -> dict[str, Any]:
    """The attributes of an object, pickled by reference to its class or with its source by EDM's ``persistence``."""
    state = module.state
    if state is None and module.arguments and isinstance(module.arguments[0], dict):
        state = module.arguments[0].get("state")
    return state if isinstance(state, dict) else {}
