"""LPIPS as the distance of consistency models."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from cm_lightning.core.distance import Distance
from cm_lightning.errors import CheckpointError, ConfigError
from cm_lightning.modules.frozen import Frozen

_FILE = "vgg16-397923af.pth"


class LPIPS(Distance, nn.Module):
    """Learned perceptual distance (Zhang et al. 2018, VGG-16) as in CM: images below 256 pixels are enlarged to 224.

    The networks are frozen, and read at first use. Their linear heads come with torchmetrics.

    Args:
        weights: torchvision's VGG-16 file, ``vgg16-397923af.pth``; if None, it is downloaded or found in torch's cache.
        pooling: pooling of VGG-16: ``max``, as in LPIPS itself, or ``avg``, as in CM's released code.
    """

    def __init__(self, weights: str | None = None, pooling: Literal["max", "avg"] = "max") -> None:
        super().__init__()
        self.network = Frozen(load=partial(_load, weights, pooling))

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1] not in (1, 3):
            raise ConfigError(f"LPIPS compares grey or colour images, got samples of shape {tuple(x.shape[1:])}")
        with torch.autocast(x.device.type, enabled=False):  # 16 bits cannot resolve two nearly equal images
            distance: Tensor = self.network(_enlarge(x), _enlarge(y))
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


def _load(path: str | None, pooling: str) -> nn.Module:
    network = _with_weights(path)
    if pooling == "avg":
        _average(network)
    return network


def _with_weights(path: str | None) -> nn.Module:
    from torchmetrics.functional.image.lpips import _NoTrainLpips  # imports torchvision and much else

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
        raise CheckpointError(f"LPIPS: file not found: {path}: set the distance's weights to {_FILE}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        for name, parameter in network.net.named_parameters():
            parameter.data.copy_(state["features." + name.split(".", maxsplit=1)[1]])  # slice2.5.weight
    except Exception as error:
        raise CheckpointError(f"LPIPS: {path} does not hold torchvision's VGG-16") from error
    return network
