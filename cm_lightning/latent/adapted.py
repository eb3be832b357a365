"""A whole network with a LoRA in it, for methods that train first the one and then the other in each stage."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from torch import nn

from cm_lightning.domains import COUNT
from cm_lightning.latent.base import TextToImageBase, UNet
from cm_lightning.latent.lora import TARGETS, add_lora, merge_and_restart, merged
from cm_lightning.latent.student import WholeUNet

_NAME = "stage"


class AdaptedUNet(WholeUNet):
    """A copy of the network with a LoRA in it (SDXL-Lightning, Lin et al. 2024).

    A stage trains the LoRA or the rest of the network. When it ends, the LoRA is merged into the network, and a new one
    takes its place. What comes out is a whole network without a LoRA.

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
        network = list(self.unet.parameters())
        adapter = list(add_lora(self.unet, self.rank, None, self.targets, _NAME).values())
        self.unet.requires_grad_(True).train()
        self._resting = {"lora": network, "whole": adapter}

    def resting(self, part: str | None) -> Sequence[nn.Parameter]:
        return self._resting[part] if part else ()

    def merge(self, seed: int) -> None:
        merge_and_restart(self.unet, _NAME, seed)

    def plain(self) -> UNet:
        return merged(copy.deepcopy(self.unet))
