"""What a run would be: its size, its schedule and its memory, without running it."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from cm_lightning.callbacks.ema import EMA
from cm_lightning.core.schedule import RateSchedule
from cm_lightning.modules.base import GenerativeModule
from cm_lightning.modules.distillation import ConsistencyDistillation
from cm_lightning.modules.lpips import LPIPS

_GIB = 2**30


def plan(
    module: GenerativeModule, steps: int, batch_size: int, ranks: int, accumulate: int, callbacks: Iterable[object]
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
    weights = sum(p.numel() * p.element_size() for p in module.backbone.parameters())
    averages = sum(isinstance(callback, EMA) for callback in callbacks)
    copies = {
        "network": 1,
        "gradients": 1,
        "optimizer": _optimizer_copies(module),
        "averages": averages,
        "target": int(getattr(module, "target", None) is not None),
        "teacher": int(isinstance(module, ConsistencyDistillation)),
    }
    image = _activations(module)
    lines = [
        f"{type(module).__name__}, {type(module.backbone).__name__}: "
        f"{sum(p.numel() for p in module.backbone.parameters()):,} parameters",
        f"{steps:,} steps x {accumulate * batch_size:,} images = {steps * accumulate * batch_size:,} images; "
        f"{batch_size // ranks:,} a rank on {ranks} rank(s)",
        f"memory a rank: {sum(copies.values()) * weights / _GIB:.2f} GiB = "
        + " + ".join(f"{n} x {name}" for name, n in copies.items() if n)
        + f" of {weights / _GIB:.2f} GiB",
        f"and activations in float32, half in 16 bits: {image / 2**20:.1f} MiB an image, "
        f"{image * (batch_size // ranks) / _GIB:.1f} GiB a rank's batch"
        + (", LPIPS's own not counted" if isinstance(getattr(module, "distance", None), LPIPS) else ""),
        "step        schedule",
    ]
    lines += [f"{step:<12,}{_schedule(module, step, steps)}" for step in (steps * i // 4 for i in range(5))]
    return "\n".join(lines)


def _schedule(module: GenerativeModule, step: int, total: int) -> str:
    rate = _optimizer(module, nn.Parameter(torch.zeros(1, device="cpu"))).param_groups[0]["lr"]
    if isinstance(module.lr_scheduler, RateSchedule):
        rate *= module.lr_scheduler(step, total)
    shown = {"lr": rate, **module.progress(step, total)}
    return "  ".join(f"{name} {value:.6g}" for name, value in shown.items())


def _optimizer(module: GenerativeModule, parameter: nn.Parameter) -> torch.optim.Optimizer:
    return module.optimizer([parameter]) if module.optimizer else torch.optim.RAdam([parameter], lr=1e-4)


def _optimizer_copies(module: GenerativeModule) -> int:
    """Tensors that the optimizer keeps for each weight, found by a step of it."""
    parameter = nn.Parameter(torch.zeros(2, 2, device="cpu"))
    parameter.grad = torch.zeros_like(parameter)
    optimizer = _optimizer(module, parameter)
    optimizer.step()
    state = optimizer.state[parameter].values()
    return sum(isinstance(value, Tensor) and value.shape == parameter.shape for value in state)


def _activations(module: GenerativeModule) -> int:
    """Bytes that a forward pass of one image keeps for the backward pass, weights aside; nothing is computed."""
    backbone = module.backbone.to("meta").train()
    own = {p.untyped_storage()._cdata for p in backbone.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if (storage := tensor.untyped_storage()._cdata) not in own:
            kept[storage] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), torch.device("meta"):
        labels = torch.zeros(1, dtype=torch.long) if module.num_classes else None
        backbone(torch.zeros(1, *module.image_shape), torch.zeros(1), labels)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
