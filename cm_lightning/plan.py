"""What a run would be: its size, its schedule and its memory, without running it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from cm_lightning.callbacks.ema import EMA
from cm_lightning.core.schedule import RateSchedule
from cm_lightning.modules.lpips import LPIPS
from cm_lightning.modules.trained import TrainedModule

_GIB = 2**30


def plan(
    module: TrainedModule, steps: int, batch_size: int, ranks: int, accumulate: int, callbacks: Iterable[object]
) -> str:
    """Lines for the user.

    Args:
        module: on any device; on ``meta`` its weights take no memory.
        steps: optimizer steps of the run.
        batch_size: of all ranks together, between two gradients.
        ranks: processes.
        accumulate: batches of an optimizer step.
        callbacks: of the trainer; each EMA keeps a copy of the network.
    """
    weights, frozen = _bytes(module.backbone), module.frozen_networks()
    averages = sum(isinstance(callback, EMA) for callback in callbacks)
    copies = {
        "weights": 1,
        "gradients": 1,
        "optimizer": _optimizer_copies(module),
        "averages": averages,
        "target": int(getattr(module, "target", None) is not None),
    }
    total = sum(copies.values()) * weights + sum(_frozen_bytes(network) for network in frozen.values())
    image = _activations(module)
    lines = [
        f"{type(module).__name__}, {type(module.backbone).__name__}: "
        f"{sum(p.numel() for p in module.backbone.parameters()):,} parameters",
        f"{steps:,} steps x {accumulate * batch_size:,} images = {steps * accumulate * batch_size:,} images; "
        f"{batch_size // ranks:,} a rank on {ranks} rank(s)",
        f"memory a rank: {total / _GIB:.2f} GiB = "
        + " + ".join(f"{n} x {name}" for name, n in copies.items() if n)
        + f" of {weights / _GIB:.2f} GiB"
        + "".join(f" + {name} of {_frozen_bytes(network) / _GIB:.2f} GiB" for name, network in frozen.items()),
        f"and activations in {_precision(module)}: {image / 2**20:.1f} MiB an image, "
        f"{image * (batch_size // ranks) / _GIB:.1f} GiB a rank's batch"
        + (", LPIPS's own not counted" if isinstance(getattr(module, "distance", None), LPIPS) else ""),
        "step        schedule",
    ]
    lines += [f"{step:<12,}{_schedule(module, step, steps)}" for step in (steps * i // 4 for i in range(5))]
    return "\n".join(lines)


class _Fused(torch.autograd.Function):
    """What a fused kernel of attention keeps; the meta device's own would count the matrices that none keeps."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = q.new_empty(*q.shape[:-1], v.shape[-1])
        ctx.save_for_backward(q, k, v, out)
        return out

    @classmethod
    def call(cls, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
        out: Tensor = cls.apply(query, key, value)  # type: ignore[no-untyped-call]
        return out


def _bytes(network: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in network.parameters())


def _frozen_bytes(network: nn.Module) -> int:
    """Without the adapter that may be trained in it."""
    return sum(p.numel() * p.element_size() for p in network.parameters() if not p.requires_grad)


def _precision(module: TrainedModule) -> str:
    """Of the activations that are counted, and what is left out of them."""
    networks = [module.backbone, *module.frozen_networks().values()]
    half = any(p.dtype.itemsize == 2 for network in networks for p in network.parameters())
    parts = [part for network in networks for part in network.modules()]
    again = any(getattr(part, "gradient_checkpointing", False) for part in parts)
    counted = "16 bits" if half else "float32, half in 16 bits"
    return counted + (", without the block that checkpointing computes again" if again else "")


def _schedule(module: TrainedModule, step: int, total: int) -> str:
    rate = _optimizer(module, nn.Parameter(torch.zeros(1, device="cpu"))).param_groups[0]["lr"]
    if isinstance(module.lr_scheduler, RateSchedule):
        rate *= module.lr_scheduler(step, total)
    shown = {"lr": rate, **module.progress(step, total)}
    return "  ".join(f"{name} {value:.6g}" for name, value in shown.items())


def _optimizer(module: TrainedModule, parameter: nn.Parameter) -> torch.optim.Optimizer:
    return module.optimizer([parameter]) if module.optimizer else torch.optim.RAdam([parameter], lr=1e-4)


def _optimizer_copies(module: TrainedModule) -> int:
    """Tensors that the optimizer keeps for each weight, found by a step of it."""
    parameter = nn.Parameter(torch.zeros(2, 2, device="cpu"))
    parameter.grad = torch.zeros_like(parameter)
    optimizer = _optimizer(module, parameter)
    optimizer.step()
    state = optimizer.state[parameter].values()
    return sum(isinstance(value, Tensor) and value.shape == parameter.shape for value in state)


def _activations(module: TrainedModule) -> int:
    """Bytes that a forward pass of one image keeps for the backward pass, weights aside; nothing is computed."""
    networks = [network.to("meta").train() for network in (module.backbone, *module.frozen_networks().values())]
    own = {p.untyped_storage()._cdata for network in networks for p in network.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if (storage := tensor.untyped_storage()._cdata) not in own:
            kept[storage] = tensor
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with hooks, torch.device("meta"), mock.patch.object(nnf, "scaled_dot_product_attention", _Fused.call):
        module.forward_one()
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
