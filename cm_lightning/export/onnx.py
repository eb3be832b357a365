"""The one-step generator as an ONNX file."""

from __future__ import annotations

import copy
import warnings
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from cm_lightning.backbones.attention import set_forward_mode
from cm_lightning.errors import ConfigError
from cm_lightning.files import replacing
from cm_lightning.modules.consistency import ConsistencyModule
from cm_lightning.modules.flow_map import FlowMapModule


class OneStep(nn.Module):
    """Maps unit noise to images in [-1, 1]: the one-step sampler of the module with this network."""

    def __init__(self, backbone: nn.Module, module: ConsistencyModule | FlowMapModule) -> None:
        super().__init__()
        self.backbone, self.one_step, self.finished = backbone, module.one_step, module.finished

    def forward(self, z: Tensor, class_label: Tensor | None = None) -> Tensor:
        """(B, C, H, W), (B,) or None -> (B, C, H, W)."""
        return self.finished(self.one_step(z, class_label, self.backbone), 1)


def write_onnx(module: ConsistencyModule | FlowMapModule, path: Path) -> None:
    """Write the one-step generator, from ``noise`` (B, C, H, W) and, with classes, ``class_label`` to ``image``.

    The noise is of unit variance, the labels are (B,) int64. Raises ConfigError if onnx is not installed.
    """
    if find_spec("onnx") is None:
        raise ConfigError("--format onnx and --format web need onnx: pip install 'cm-lightning[interop]'")
    backbone = copy.deepcopy(module.backbone).eval().cpu()
    set_forward_mode(backbone, True)  # attention as plain products, which every runtime supports
    generator = OneStep(backbone, module)
    names, inputs = ["noise"], [torch.randn(2, *module.image_shape)]
    if module.num_classes:
        names, inputs = [*names, "class_label"], [*inputs, torch.tensor([0, module.num_classes - 1])]
    with replacing(path) as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracing exporter is deprecated, but does not need a further package
        torch.onnx.export(
            generator,
            tuple(inputs),
            temporary,
            dynamo=False,
            input_names=names,
            output_names=["image"],
            dynamic_axes={name: {0: "batch"} for name in (*names, "image")},
            opset_version=17,
        )
