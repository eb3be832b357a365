"""Features of networks trained on photographs; only DINOv2 is downloaded, and only if it is given by a hub name."""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as nnf
import torchvision
from safetensors.torch import load_file
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from cm_lightning.errors import CheckpointError, ConfigError, advice
from cm_lightning.metrics.extractor import Extractor, color_pixels, digest

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
#: Networks that torchvision initialises slowly, and whose trained versions take another range of inputs.
_GOOGLE = ("googlenet", "inception_v3")


class TorchvisionFeatures(Extractor):
    """The inputs of a torchvision classifier's last layer: ``frechet_resnet50`` and ``kid_resnet50``.

    Images are rounded to 8 bits, then resized, cropped and normalised by the transforms of the classifier's weights.

    Args:
        model: any of torchvision's classifiers.
        weights: a state dict of it (.pth or .safetensors), with any number of classes. If None, torchvision's file is
            taken from torch's cache (``~/.cache/torch/hub/checkpoints``); if it is missing, nothing is measured.
    """

    def __init__(self, model: str = "resnet50", weights: str | None = None) -> None:
        models = torchvision.models.list_models(module=torchvision.models)
        if model not in models:
            near = ", ".join(difflib.get_close_matches(model, models)) or "resnet50"
            raise ConfigError(
                f"TorchvisionFeatures: torchvision does not have a classifier {model!r}: set model to {near}"
            )
        self.model, self.name, self.weights = model, f"frechet_{model}", weights

    @property
    def path(self) -> Path:
        """The file of the weights, whether or not it is there."""
        if self.weights:
            return Path(self.weights)
        return Path(torch.hub.get_dir()) / "checkpoints" / self._address().rpartition("/")[2]

    def missing(self) -> str | None:
        if self.weights or self.path.is_file():
            return None
        return (
            f"put {self._address()} into {self.path.parent}, or set the extractor's weights to a file of {self.model}"
        )

    def distance(self) -> FrechetInceptionDistance:
        if not self.path.is_file():
            raise CheckpointError(
                f"file not found: {self.path}: set the weights of TorchvisionFeatures to those of {self.model}"
            )
        network = _Headless(self.model, _weights_of(self.model, self.path), self.path)
        return FrechetInceptionDistance(feature=network, reset_real_features=False)

    def identity(self) -> str:
        return digest(self.path)

    def prepare(self, images: Tensor) -> Tensor:
        return color_pixels(images)

    def _address(self) -> str:
        return str(torchvision.models.get_model_weights(self.model).DEFAULT.url)


class DINOv2(Extractor):
    """The class token of DINOv2 (Oquab et al. 2023; Stein et al. 2023): ``frechet_dinov2``, ``kid_dinov2``.

    The distance is also known as FD-DINOv2. Images are rounded to 8 bits and resized to 224 x 224. It needs
    ``pip install cm-lightning[lcm]``.

    Args:
        weights: a folder of transformers, such as a copy of ``facebook/dinov2-large``; or such a hub name, which is
            downloaded unless it is in the cache of the hub.
    """

    name = "frechet_dinov2"

    def __init__(self, weights: str) -> None:
        self.weights = weights
        self._identity = ""

    def distance(self) -> FrechetInceptionDistance:
        network = _ClassToken(self._load())
        state = hashlib.sha256()
        for tensor in network.state_dict().values():
            state.update(tensor.numpy().tobytes())
        self._identity = state.hexdigest()[:16]
        return FrechetInceptionDistance(feature=network, reset_real_features=False)

    def identity(self) -> str:
        assert self._identity, "distance() loads the network"
        return self._identity

    def prepare(self, images: Tensor) -> Tensor:
        return color_pixels(images)

    def _load(self) -> Any:
        try:
            from transformers import AutoModel

            from cm_lightning.hub import loading
        except ModuleNotFoundError as error:
            raise ConfigError(f"DINOv2: {advice(error) or error}") from error
        remedy = "set the weights of DINOv2 to a folder with config.json and model.safetensors of facebook/dinov2-*"
        try:
            # a folder, because for a name transformers sends many requests to the hub in spite of local_files_only
            folder = self.weights if Path(self.weights).is_dir() else self._from_hub()
            with loading():
                network, report = AutoModel.from_pretrained(
                    folder, local_files_only=True, output_loading_info=True, dtype=torch.float32
                )
        except Exception as error:  # transformers raises many kinds of errors for a missing or damaged folder
            raise CheckpointError(f"DINOv2 is missing or incomplete at {self.weights}: {remedy}") from error
        if not network.config.model_type.startswith("dinov2"):
            raise CheckpointError(f"{self.weights} holds a {network.config.model_type}: {remedy}")
        if missing := sorted(report["missing_keys"]):
            raise CheckpointError(f"{self.weights} lacks {len(missing)} tensors, such as {missing[0]}: {remedy}")
        return network

    def _from_hub(self) -> str:
        """The folder of a name in the hub's cache, downloaded if the hub answers."""
        from huggingface_hub import snapshot_download

        from cm_lightning.hub import on_hub, reachable

        cached_only = not (on_hub(self.weights) and reachable())
        return snapshot_download(self.weights, local_files_only=cached_only, allow_patterns=["*.json", "*.safetensors"])


class _Headless(nn.Module):
    """A classifier without its last layer, behind the transforms of its weights.

    Args:
        model: its name in torchvision.
        state: its state dict.
        path: path of the state dict, for messages.
    """

    def __init__(self, model: str, state: Mapping[str, Tensor], path: Path) -> None:
        super().__init__()
        options = {"init_weights": False, "transform_input": True} if model in _GOOGLE else {}
        network = torchvision.models.get_model(model, weights=None, **options)
        head, self.num_features = _last_layer(network)
        network.set_submodule(head, nn.Identity())
        _fill(network, {name: value for name, value in state.items() if not name.startswith(f"{head}.")}, model, path)
        self.network = network.eval().requires_grad_(False)
        self.transforms = _weights_named(model, path.name).transforms()

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 -> features (B, num_features)."""
        return cast(Tensor, self.network(self.transforms(pixels))).flatten(1)


def _last_layer(network: nn.Module) -> tuple[str, int]:
    """The name of the layer that computes the classes, and the number of its inputs."""
    parts = list(network.named_modules())
    linear = [(name, part.in_features) for name, part in parts if isinstance(part, nn.Linear)]
    convolutions = [(name, part.in_channels) for name, part in parts if isinstance(part, nn.Conv2d)]
    return (linear or convolutions)[-1]  # SqueezeNet classifies each position by a convolution and then averages


class _ClassToken(nn.Module):
    """The class token of DINOv2 for an image."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.num_features: int = network.config.hidden_size
        self.side = 16 * network.config.patch_size  # 224

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 -> features (B, num_features)."""
        x = nnf.interpolate(
            pixels.float() / 255, (self.side, self.side), mode="bicubic", align_corners=False, antialias=True
        )
        mean, std = (x.new_tensor(values)[:, None, None] for values in (_MEAN, _STD))
        return cast(Tensor, self.network((x.clamp(0, 1) - mean) / std).last_hidden_state[:, 0])


def _weights_named(model: str, file: str) -> Any:
    """Torchvision's entry for a weights file, with its transforms; the default entry for files of other names."""
    entries = torchvision.models.get_model_weights(model)
    return next((entry for entry in entries if entry.url.endswith(f"/{file}")), entries.DEFAULT)


def _weights_of(model: str, path: Path) -> dict[str, Tensor]:
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
        tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    except Exception as error:  # it is damaged, or a whole pickled model, which is code
        raise CheckpointError(
            f"{path} does not hold a state dict: set the weights of TorchvisionFeatures to a file "
            f"of torch.save(model.state_dict(), ...) for {model}"
        ) from error
    if model.startswith("densenet"):  # torchvision's files use the names of its first version
        old = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")
        tensors = {old.sub(r"\1\2", name): value for name, value in tensors.items()}
    return tensors


def _fill(network: nn.Module, state: Mapping[str, Tensor], model: str, path: Path) -> None:
    """Load a state dict, or raise CheckpointError that names the differences."""
    wanted = {n: t.shape for n, t in network.state_dict().items() if not n.endswith("num_batches_tracked")}
    given = {n: t.shape for n, t in state.items() if not n.endswith("num_batches_tracked")}
    if different := sorted(n for n in wanted.keys() | given.keys() if wanted.get(n) != given.get(n)):
        raise CheckpointError(
            f"{path} holds another network than {model}: {len(different)} tensors differ, such as {different[0]}; set "
            "model and weights of TorchvisionFeatures to a matching pair"
        )
    network.load_state_dict(state, strict=False)
