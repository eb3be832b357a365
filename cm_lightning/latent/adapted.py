"""A whole network with a LoRA in it, for methods in stages, each of which trains one of the two."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from cm_lightning.core.held import Held
from cm_lightning.domains import COUNT
from cm_lightning.latent.base import TextToImageBase, UNet
from cm_lightning.latent.lora import TARGETS, add_lora, merge_and_restart, switch_adapters
from cm_lightning.latent.student import WholeUNet

_NAME = "stage"


class AdaptedUNet(WholeUNet):
    """A copy of the network with a LoRA in it (SDXL-Lightning, Lin et al. 2024).

    A stage trains the LoRA or the rest of the network. When it ends, the LoRA is merged into the network, and a new one
    takes its place. What comes out is a whole network without a LoRA. Training can start from the weights of a whole
    network, too.

    Args:
        rank: rank of the LoRA, whose alpha is the rank.
        targets: names of the layers that it adapts; the published ones of LCM-LoRA if None.
    """

    parts = ("lora", "whole")

    def __init__(self, rank: int = 64, targets: Sequence[str] | None = None) -> None:
        COUNT.check(self, rank=rank)
        super().__init__(guidance_width=None)
        self.rank, self.targets = rank, tuple(targets or TARGETS)

    def attach(self, base: TextToImageBase) -> None:
        super().attach(base)
        add_lora(self.unet, self.rank, None, self.targets, _NAME)
        self.unet.requires_grad_(True).train()
        self._frozen: dict[str | None, list[nn.Parameter]] = {}

    def only(self, part: str | None) -> AbstractContextManager[None]:
        # B is 0 while the whole network trains. The switch outlasts the context, because a backward pass that computes
        # activations again must find it as the forward pass did.
        switch_adapters(self.unet, part != "whole" or not torch.is_grad_enabled())
        return Held(self.frozen(part)) if part == "lora" else nullcontext()

    def frozen(self, part: str | None) -> Sequence[nn.Parameter]:
        if part not in self._frozen:  # each step asks for it, and to walk through SDXL's modules takes 15 ms
            named = self.unet.named_parameters()
            self._frozen[part] = [p for name, p in named if (".lora_" in name) == (part == "whole")]
        return self._frozen[part]

    def merge(self, seed: int) -> None:
        merge_and_restart(self.unet, _NAME, seed)

    def adopted(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        own = self.unet.state_dict()
        plain = {name.replace(".base_layer.", "."): name for name in own if ".lora_" not in name}
        if state.keys() != plain.keys():
            return state
        return {**own, **{plain[name]: tensor for name, tensor in state.items()}}

    def plain(self) -> UNet:
        unet = copy.deepcopy(self.unet)
        unet.fuse_lora()
        unet.unload_lora()
        return unet
