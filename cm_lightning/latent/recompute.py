"""Gradient checkpointing of diffusers UNets, also for networks whose weights are held in some of their passes."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from cm_lightning.core.held import Held
from cm_lightning.latent.base import UNet


def recompute_activations(unet: UNet) -> None:
    """Trade time for memory: keep the inputs of a UNet's blocks only, and compute the rest again in the backward pass.

    diffusers' own checkpointing computes a block again as its weights are then. Weights that are held in a pass, such
    as those of a discriminator in the generator's loss, require gradients again in the backward pass. More tensors
    would then be kept the second time than the first, which torch refuses.
    """
    unet.enable_gradient_checkpointing(_checkpointed)  # type: ignore[operator]


def _checkpointed(block: nn.Module, *inputs: Any) -> Any:
    held = Held(p for p in block.parameters() if not p.requires_grad)
    return checkpoint(block, *inputs, use_reentrant=False, context_fn=lambda: (nullcontext(), held))
