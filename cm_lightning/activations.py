"""The memory that tensors of a training step hold, counted on the meta device: nothing is computed."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

# The functions that autocast computes in 16 bits, and those in float32; all others take their inputs unchanged.
_SHORT = {
    "__matmul__", "__rmatmul__", "addbmm", "addmm", "addmv", "addr", "baddbmm", "bilinear", "bmm", "conv1d", "conv2d",
    "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "einsum", "linear", "matmul", "mm", "mv",
    "prelu", "scaled_dot_product_attention",
}  # fmt: skip
_LONG = {
    "__pow__", "__rpow__", "cosine_similarity", "cross_entropy", "cumprod", "cumsum", "exp", "expm1", "group_norm",
    "kl_div", "l1_loss", "layer_norm", "log", "log10", "log1p", "log2", "log_softmax", "logsumexp", "mse_loss", "norm",
    "pow", "prod", "reciprocal", "rms_norm", "rsqrt", "smooth_l1_loss", "softmax", "softplus", "sum", "tan",
}  # fmt: skip

_NORMALISES = ("group_norm", "layer_norm")
#: How many passes the present one stands for.
_times: ContextVar[int] = ContextVar("times", default=1)


class Kept(NamedTuple):
    """Bytes that a forward pass keeps.

    Attributes:
        image: bytes kept for the backward pass of each image.
        weights: copies of weights in 16 bits, which autocast makes once for a whole batch.
    """

    image: int
    weights: int


def kept_for_backward(
    networks: Iterable[nn.Module],
    run: Callable[[], None],
    dtype: torch.dtype = torch.float32,
    autocast: torch.dtype | None = None,
) -> Kept:
    """Count the bytes that networks keep, besides their weights, when they run on one image.

    Args:
        networks: all networks in ``run``; they are moved to the meta device, in training mode.
        run: a forward pass of one image.
        dtype: dtype of new tensors.
        autocast: the type that mixed precision computes in; if None, the types are those of weights and inputs.
    """
    parts = [network.to("meta").train() for network in networks]
    owned = {_storage(p) for network in parts for p in network.parameters()}
    kept: dict[int, tuple[Tensor, int]] = {}

    def pack(tensor: Tensor) -> Tensor:
        if _storage(tensor) not in owned and _storage(tensor) not in accelerator.copies:
            kept[_storage(tensor)] = tensor, _times.get()
        return tensor

    accelerator, hooks = _Accelerator(autocast, owned), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t)
    with _default_dtype(dtype), hooks, torch.device("meta"), accelerator:
        run()
    image = sum(times * _bytes([tensor]) for tensor, times in kept.values())
    return Kept(image, _bytes(accelerator.copies.values()))


@contextmanager
def repeated(times: int) -> Iterator[None]:
    """A context in which :func:`kept_for_backward` counts what is kept this many times, for passes that are alike."""
    token = _times.set(times)
    try:
        yield
    finally:
        _times.reset(token)


def held_at_once(networks: Iterable[nn.Module], run: Callable[[], None], dtype: torch.dtype = torch.float32) -> int:
    """The most bytes that a pass without gradients holds at once, besides the weights of its networks.

    Args:
        networks: all networks in ``run``; they are moved to the meta device, in training mode.
        run: a pass of one image.
        dtype: dtype of new tensors.
    """
    parts = [network.to("meta").train() for network in networks]
    owned = {_storage(p) for network in parts for p in network.parameters()}
    held = Held(owned)
    with held, _default_dtype(dtype), torch.no_grad(), torch.device("meta"), _Accelerator(None, owned):
        run()
    return held.most


class Held(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes that tensors hold which operations make in this context; what a kernel itself needs is not seen.

    Attributes:
        now: bytes held at present.
        most: the most bytes held at once since it was last set.

    Args:
        owned: storages that do not count.
    """

    def __init__(self, owned: Container[int] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.most = 0
        self.owned = owned
        self._known = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in tree_leaves(out):
            if isinstance(value, Tensor) and _storage(value) not in self.owned:
                self._note(value.untyped_storage())
        return out

    def _note(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
        self._known[storage] = True
        self.now += storage.nbytes()
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._freed, storage.nbytes())

    def _freed(self, size: int) -> None:
        self.now -= size


class _Accelerator(TorchFunctionMode):
    """Imitates an accelerator on the meta device: autocast, fused attention, and dropout with masks of one byte.

    Normalisation takes no operations: those of the meta device are slow.

    Args:
        autocast: see :func:`kept_for_backward`.
        owned: storages of the weights; autocast keeps one copy of each.
    """

    def __init__(self, autocast: torch.dtype | None, owned: set[int]) -> None:
        super().__init__()
        self.autocast, self.owned = autocast, owned
        self.copies: dict[int, Tensor] = {}
        self._copy_of: dict[int, Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        wanted = self.autocast if name in _SHORT else torch.float32 if name in _LONG else None
        if self.autocast is not None and wanted is not None:
            args = tuple(self._cast(value, wanted) for value in args)
            kwargs = {key: self._cast(value, wanted) for key, value in kwargs.items()}
        if name == "scaled_dot_product_attention":
            return _Fused.call(*args, **kwargs)
        if name == "dropout":
            return _dropout(*args, **kwargs)
        if name in _NORMALISES and torch.is_grad_enabled():
            return _Normalised.call(*args, **kwargs)
        return func(*args, **kwargs)

    def _cast(self, value: Any, wanted: torch.dtype) -> Any:
        if not isinstance(value, Tensor) or value.dtype not in (torch.float16, torch.bfloat16, torch.float32):
            return value
        if value.dtype == wanted or _storage(value) not in self.owned:
            return value.to(wanted)
        if _storage(value) not in self._copy_of:
            copy = self._copy_of[_storage(value)] = value.to(wanted)
            self.copies[_storage(copy)] = copy
        return self._copy_of[_storage(value)].reshape(value.shape)


class _Fused(torch.autograd.Function):
    """Keeps what a fused attention kernel keeps; the kernel of the meta device would keep whole matrices."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = q.new_empty(*q.shape[:-1], v.shape[-1])
        ctx.save_for_backward(q, k, v, out)
        return out

    @classmethod
    def call(cls, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
        out: Tensor = cls.apply(query, key, value)  # type: ignore[no-untyped-call]
        return out


class _Normalised(torch.autograd.Function):
    """Keeps what a normalisation's kernel keeps: its input, and a mean and a deviation for each group or place."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, groups: int, *weights: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, x.new_empty(2, groups))
        return torch.empty_like(x)

    @classmethod
    def call(
        cls, x: Tensor, size: int | Sequence[int], weight: Any = None, bias: Any = None, eps: Any = None
    ) -> Tensor:
        groups = len(x) * size if isinstance(size, int) else x.numel() // math.prod(size)
        out: Tensor = cls.apply(x, groups, weight, bias)  # type: ignore[no-untyped-call]
        return out


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    return torch.native_dropout(input, p, training)[0] if training and p else input


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors)
