"""LPIPS as the distance of consistency models."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn
from torchmetrics.functional.image.lpips import _NoTrainLpips

from cm_lightning.core.distance import Distance
from cm_lightning.errors import CheckpointError, ConfigError

_FILE = "vgg16-397923af.pth"


class LPIPS(Distance):
    """Learned perceptual distance (Zhang et al. 2018, VGG-16) as in CM: images below 256 pixels are enlarged to 224.

    The networks are no part of the module: not of its parameters, its averages, or its checkpoints. Their linear heads
    come with torchmetrics.

    Args:
        weights: torchvision's VGG-16 file, ``vgg16-397923af.pth``; downloaded, or found in torch's cache, if None.
        pooling: of VGG-16: ``max``, as LPIPS was made; or ``avg``, as in CM's released code.
    """

    def __init__(self, weights: str | None = None, pooling: Literal["max", "avg"] = "max") -> None:
        self.weights, self.pooling = weights, pooling
        self._network: nn.Module | None = None

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        if self._network is None:
            # loading draws weights that are overwritten: no number of the training's; nor are they inference's tensors
            with torch.random.fork_rng(devices=[]), torch.inference_mode(False):
                self._network = _load(self.weights)
                if self.pooling == "avg":
                    _average(self._network)
        if x.ndim != 4 or x.shape[1] not in (1, 3):
            raise ConfigError(f"LPIPS compares grey or colour images, got samples of shape {tuple(x.shape[1:])}")
        with torch.autocast(x.device.type, enabled=False):  # two nearly equal images differ by less than 16 bits tell
            distance: Tensor = self._network.to(x.device)(_enlarge(x), _enlarge(y))
        return distance.flatten()


def _enlarge(x: Tensor) -> Tensor:
    x = x.float().expand(-1, 3, -1, -1)
    if x.shape[-1] < 256:
        x = nnf.interpolate(x, (224, 224), mode="bilinear", align_corners=False)
    return x


def _average(network: nn.Module) -> None:
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.MaxPool2d):
                setattr(parent, name, nn.AvgPool2d(child.kernel_size, child.stride))


def _load(path: str | None) -> nn.Module:
    if path is None:
        try:
            return _NoTrainLpips(net="vgg")
        except Exception as error:
            raise ConfigError(
                f"LPIPS needs {_FILE}, which could not be downloaded: fetch it from download.pytorch.org/models and "
                "set the distance's weights to the file"
            ) from error
    network = _NoTrainLpips(net="vgg", pnet_rand=True)
    if not Path(path).is_file():
        raise CheckpointError(f"LPIPS: no file {path}: set the distance's weights to {_FILE}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        for name, parameter in network.net.named_parameters():
            parameter.data.copy_(state["features." + name.split(".", maxsplit=1)[1]])  # slice2.5.weight
    except Exception as error:
        raise CheckpointError(f"LPIPS: {path} does not hold torchvision's VGG-16") from error
    return network
