"""Gradient checkpointing of diffusers UNets, also for networks whose weights are held in some of their passes."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from cm_lightning.core.adversarial import held
from cm_lightning.latent.base import UNet


def recompute_activations(unet: UNet) -> None:
    """Trade time for memory: keep the inputs of a UNet's blocks only, and compute the rest again in the backward pass.

    diffusers' own checkpointing computes a block again as its weights are then. In the generator's loss the weights of
    a discriminator do not ask for gradients (:func:`~cm_lightning.core.adversarial.held`), in the backward pass they
    do again, so that more tensors would be kept the second time than the first.
    """
    unet.enable_gradient_checkpointing(_checkpointed)  # type: ignore[operator]


def _checkpointed(block: nn.Module, *inputs: Any) -> Any:
    again = partial(held, [p for p in block.parameters() if not p.requires_grad])
    return checkpoint(block, *inputs, use_reentrant=False, context_fn=lambda: (nullcontext(), again()))
