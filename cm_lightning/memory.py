"""The bytes that a training step holds, by what they are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cm_lightning.activations import Kept, held_at_once, kept_for_backward
from cm_lightning.callbacks.ema import EMA
from cm_lightning.modules.critic import WithCritic
from cm_lightning.modules.trained import TrainedModule

GIB = 2**30
#: What copies of the network do, where their names in a module do not tell.
_ROLES = {"before": "teacher"}
_TYPES = {"16": torch.float16, "bf16": torch.bfloat16, "32": torch.float32, "64": torch.float64}


@dataclass(frozen=True)
class Memory:
    """The bytes that a training step holds on a rank at its peak, just before the backward pass.

    It is within 15 % of what the tensors of a step hold on a CPU, where dropout, LPIPS and gradient checkpointing do
    not take part; LSD, whose gradient passes through a derivative, holds more. What a kernel needs for itself is not
    counted, nor what a pass without gradients needs beside the activations of the one with them, except where that is
    a forward-mode derivative or a pass of twice the batch. Two networks are counted as if both trained in one step.

    Args:
        weights: bytes of the trained network.
        copies: how many tensors of its size there are, by their roles.
        critic: bytes of the network that it is trained against, 0 if there is none.
        frozen: bytes of the networks that are not trained, by their roles.
        kept: bytes of activations.
        ranks: ranks that the trained network is split over.
    """

    weights: int
    copies: dict[str, int]
    critic: int
    frozen: dict[str, int]
    kept: Kept
    ranks: int = 1

    @classmethod
    def of(
        cls, module: TrainedModule, callbacks: Iterable[object], precision: str = "32-true", ranks: int = 1
    ) -> Memory:
        """Count; the networks of the module are moved to the meta device. The arguments are those of
        :func:`~cm_lightning.plan.plan`.
        """
        plain, autocast = _types(precision)
        if plain != torch.float32:
            module.to(plain)
        weights, frozen = _bytes(module.backbone), module.frozen_networks()
        critic = module.critic if isinstance(module, WithCritic) else None
        following = [follower.network for follower in module.followers]
        copies = {
            "weights": 1,
            "gradients": 1,
            "optimizer": _optimizer_copies(module),
            "averages": sum(isinstance(callback, EMA) for callback in callbacks),
            **{_ROLES.get(name, name): 1 for name, part in module.named_children() if part in following},
        }
        sizes = {
            # a teacher that is not read yet has the size of the network that it teaches
            name: _bytes(network) if network is module.backbone else _frozen_bytes(network)
            for name, network in frozen.items()
        }
        critic_size = _bytes(critic) if critic else 0
        networks = {module.backbone, *frozen.values(), *([critic] if critic else [])}
        kept = kept_for_backward(networks, module.forward_one, plain, autocast)
        beside = held_at_once(networks, module.pass_beside, plain)
        return cls(weights, copies, critic_size, sizes, kept._replace(image=kept.image + beside), ranks)

    @property
    def constant(self) -> int:
        """Bytes that do not depend on the batch."""
        copies = sum(self.copies.values()) * self.weights + self._trained * self.critic
        return copies // self.ranks + sum(self.frozen.values()) + self.kept.weights

    @property
    def _trained(self) -> int:
        return sum(self.copies[name] for name in ("weights", "gradients", "optimizer"))

    def terms(self) -> str:
        """What the bytes are that do not depend on the batch."""
        split = f" / {self.ranks} ranks" if self.ranks > 1 else ""
        terms = [
            " + ".join(f"{n} x {name}" for name, n in self.copies.items() if n) + f" of {gib(self.weights)}{split}",
            *([f"{self._trained} x critic of {gib(self.critic)}"] if self.critic else []),
            *(f"{name} of {gib(size)}" for name, size in self.frozen.items()),
            *([f"weights in 16 bits of {gib(self.kept.weights)}"] if self.kept.weights else []),
        ]
        return " + ".join(terms)


def gib(size: int) -> str:
    """Bytes as text in GiB."""
    return f"{size / GIB:.2f} GiB"


def _bytes(network: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in network.parameters())


def _frozen_bytes(network: nn.Module) -> int:
    """Bytes of a frozen network, without those of an adapter that is trained in it."""
    return sum(p.numel() * p.element_size() for p in network.parameters() if not p.requires_grad)


def _types(precision: str) -> tuple[torch.dtype, torch.dtype | None]:
    """The type of weights and inputs, and the type that autocast computes in, if any."""
    number, _, kind = precision.partition("-")
    dtype = _TYPES.get(number, torch.bfloat16)  # other plugins compute in 16 bits or fewer
    return (dtype, None) if kind == "true" else (torch.float32, dtype)


def _optimizer_copies(module: TrainedModule) -> int:
    """The number of tensors that the optimizer keeps for each weight, found by one step."""
    parameter = nn.Parameter(torch.zeros(2, 2, device="cpu"))
    parameter.grad = torch.zeros_like(parameter)
    optimizer = module.optimizer_of([parameter])
    optimizer.step()
    state = optimizer.state[parameter].values()
    return sum(isinstance(value, Tensor) and value.shape == parameter.shape for value in state)
