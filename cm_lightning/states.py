"""State dicts: names without the wrappers of networks, and the differences between two of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor


def plain_name(name: str) -> str:
    """A tensor's name without the prefix of ``torch.compile``."""
    return name.replace("_orig_mod.", "")


def renamed_like(state: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """Rename tensors to the given names, which may differ only by the prefix of a compiled network."""
    due = {plain_name(name): name for name in names}
    return {due.get(plain_name(name), name): tensor for name, tensor in state.items()}


def difference(found: Mapping[str, Tensor], due: Mapping[str, Tensor]) -> str:
    """The differences between the tensors of a file and of a network, in one line; "" if they fit."""
    shared = [name for name in due if name in found]
    odd = [name for name in shared if found[name].shape != due[name].shape]
    missing, left = [n for n in due if n not in found], [n for n in found if n not in due]
    told = []
    if odd:
        first = f"{tuple(found[odd[0]].shape)} in the file, {tuple(due[odd[0]].shape)} in the network"
        told.append(f"{_count(odd)} of another shape, first {odd[0]}: {first}")
    groups = {"missing": missing, "left over": left}
    told += [f"{_count(names)} {what}, first {names[0]}" for what, names in groups.items() if names]
    return "; ".join(told)


def are_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether all values in these tensors are finite, read from the device once; of sharded ones this rank's part."""
    numbers = [_own(tensor.detach()) for tensor in tensors if tensor.is_floating_point()]
    short, wide = [t for t in numbers if t.element_size() < 4], [t for t in numbers if t.element_size() >= 4]
    norms = [*torch._foreach_norm(wide)] if wide else []
    if short:  # a norm in 16 bits could overflow
        norms += torch._foreach_norm(short, 2, dtype=torch.float32)
    return not norms or bool(torch.stack([norm.isfinite() for norm in norms]).all())


def _own(tensor: Tensor) -> Tensor:
    """The part of a tensor that this rank holds; the class of sharded tensors takes long to import."""
    own: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return own


def _count(names: list[str]) -> str:
    return f"{len(names)} tensor{'s' if len(names) > 1 else ''}"
