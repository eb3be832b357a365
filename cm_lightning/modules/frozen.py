"""A holder for a network that is not trained: a teacher, a text-to-image base, the VGG of a distance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T", bound=nn.Module)


class Frozen(nn.Module, Generic[T]):
    """A network that moves with its owner without being one of its submodules.

    It is in eval mode and without gradients. It is not part of an optimizer, average or checkpoint, and DDP does not
    see it. A network in a file is read at its first use, so a checkpoint can be sampled without the file.

    Args:
        network: the network to hold, if ``load`` is not given.
        load: called once, without arguments, to read the network. Its error should say where to get the file.
        like: a network of the same size, by which memory is counted before the file is read.
        follows_dtype: whether the network takes the owner's floating-point type as well as its device.
    """

    place: Tensor

    def __init__(
        self,
        network: T | None = None,
        load: Callable[[], T] | None = None,
        like: nn.Module | None = None,
        follows_dtype: bool = False,
    ) -> None:
        super().__init__()
        self.load, self.follows_dtype = load, follows_dtype
        self.register_buffer("place", torch.empty(0), persistent=False)
        # stored in the dictionary itself, where nn.Module does not look for submodules
        self.__dict__["held"] = network
        self.__dict__["like"] = like
        if network is not None:
            network.requires_grad_(False).eval()

    @property
    def network(self) -> T:
        """The network, on the device of its owner. Raises what ``load`` raises."""
        if self.__dict__["held"] is None:
            assert self.load is not None
            # loading may draw weights only to overwrite them: this must not advance the generators of the training
            with torch.random.fork_rng(devices=[]), torch.inference_mode(False):
                self.__dict__["held"] = self.load().requires_grad_(False).eval()
            self._follow()
        held: T = self.__dict__["held"]
        return held

    def outline(self) -> nn.Module | None:
        """The network, or one of the same size, without reading a file."""
        held: nn.Module | None = self.__dict__["held"]
        return self.__dict__["like"] if held is None else held

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.network(*args, **kwargs)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Frozen[T]:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._follow()
        return self

    def _follow(self) -> None:
        held: nn.Module | None = self.__dict__["held"]
        if held is not None and self.place.device.type != "meta":
            held.to(self.place.device, self.place.dtype if self.follows_dtype else None)
