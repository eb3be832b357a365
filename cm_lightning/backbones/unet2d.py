"""A ``diffusers.UNet2DModel`` as a network of the zoo."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from cm_lightning.errors import ConfigError
from cm_lightning.recording import Recorded


class ClassTable(nn.Embedding):
    """An embedding in which the label after the last is the null class, a vector of zeros."""

    def forward(self, class_label: Tensor) -> Tensor:
        """(B,) int64 in [0, num_embeddings] -> (B, width)."""
        vectors = super().forward(class_label.clamp(max=self.num_embeddings - 1))
        return torch.where((class_label < self.num_embeddings)[:, None], vectors, 0)


class DiffusersUNet(Recorded, nn.Module):
    """Any 2-D U-Net that diffusers can build, kept under ``network`` with diffusers' names of the weights.

    ``diffusers.ConsistencyModelPipeline`` gives its network 250 ln sigma: set ``noise_scale=250`` of the
    parameterization if weights are to be exchanged with it.

    Args:
        config: the arguments of ``diffusers.UNet2DModel``, as in its ``config.json``. Keys that begin with an
            underscore are ignored.
        forward_mode: whether ``torch.func.jvp`` can differentiate the attention; see
            :mod:`cm_lightning.backbones.attention`.

    Raises:
        ConfigError: diffusers is not installed, or cannot build such a network.
    """

    #: See :func:`cm_lightning.backbones.embedding.check_labels`.
    noise_labels = (1,)

    def __init__(self, config: Mapping[str, Any], forward_mode: bool = False) -> None:
        super().__init__()
        try:
            from diffusers import UNet2DModel
            from diffusers.models.attention_processor import Attention, AttnProcessor
        except ImportError as error:
            raise ConfigError("DiffusersUNet needs diffusers: pip install 'cm-lightning[interop]'") from error
        arguments = {name: value for name, value in config.items() if not name.startswith("_")}
        try:
            network: Any = UNet2DModel(**arguments)  # type: ignore[no-untyped-call]
        except Exception as error:  # diffusers raises many kinds of errors for arguments that do not fit together
            raise ConfigError(f"diffusers cannot build this UNet2DModel: {error}") from error
        table = network.class_embedding
        if table is not None and not isinstance(table, nn.Embedding):
            raise ConfigError("class_embed_type: classes must be numbers: set num_class_embeds and nothing else")
        self.image_channels = network.conv_in.in_channels
        self.num_classes = table.num_embeddings if table is not None else 0
        if table is not None:
            network.class_embedding = ClassTable(*table.weight.shape)
        for module in network.modules():
            if forward_mode and isinstance(module, Attention):
                module.set_processor(AttnProcessor())
        self.network: nn.Module = network
        self.bottleneck_width = int(network.config.block_out_channels[-1])

    def forward(self, x: Tensor, noise_label: Tensor, class_label: Tensor | None = None) -> Tensor:
        """(B, C, H, W), (B,), (B,) or None -> (B, C, H, W)."""
        if self.num_classes and class_label is None:
            class_label = torch.full((len(x),), self.num_classes, device=x.device)
        return cast(Tensor, self.network(x, noise_label, class_label, return_dict=False)[0])

    def bottleneck(self, x: Tensor, noise_label: Tensor, class_label: Tensor | None = None) -> Tensor:
        """The features of the coarsest level: (B, bottleneck_width, h, w)."""
        found: list[Tensor] = []
        middle = cast(nn.Module, self.network.mid_block)
        with middle.register_forward_hook(lambda *call: found.append(call[-1])):
            self(x, noise_label, class_label)
        return found[0]
