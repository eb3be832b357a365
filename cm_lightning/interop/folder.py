"""The suite's own export: ``weights.safetensors``, and ``config.json``, by which the module is built again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

from cm_lightning.errors import CheckpointError
from cm_lightning.files import replacing
from cm_lightning.recording import describe
from cm_lightning.states import plain_name

WEIGHTS, CONFIG = "weights.safetensors", "config.json"
_KEY = "cm_lightning_module"
_TRAINING = ("optimizer", "lr_scheduler", "start_from")


@dataclass(frozen=True)
class Exported:
    """What ``config.json`` tells.

    Attributes:
        weights: the file of the network's weights.
        module: ``{class_path, init_args}`` of the module.
        steps: optimizer steps that the weights have seen; 0 if that is not known.
        kind: of the weights, ``averaged`` or ``raw``.
    """

    weights: Path
    module: Mapping[str, Any]
    steps: int
    kind: str


def write_export(module: nn.Module, folder: Path, steps: int, kind: str) -> None:
    """Write a GenerativeModule's network and the arguments that it was built with, but for those of training."""
    backbone = module.get_submodule("backbone")
    described = describe(module)
    arguments = {name: value for name, value in described["init_args"].items() if name not in _TRAINING}
    if "teacher" in arguments:
        arguments["teacher"] = "not exported"
    content = {_KEY: {**described, "init_args": arguments}, "steps": steps, "weights": kind}
    state = {plain_name(name): tensor.contiguous() for name, tensor in backbone.state_dict().items()}
    with replacing(folder / WEIGHTS) as path:
        save_file(state, path, {"format": "pt", "network": type(backbone).__name__})
    with replacing(folder / CONFIG) as path:
        path.write_text(json.dumps(content, indent=2) + "\n")


def find_export(path: str | Path) -> Exported | None:
    """The export in a folder, or around a file of weights; None if the path is neither.

    Raises:
        CheckpointError: ``config.json`` is missing or damaged.
    """
    path = Path(path)
    weights = path / WEIGHTS if path.is_dir() else path
    if weights.suffix != ".safetensors" or not weights.is_file():
        return None
    config = weights.with_name(CONFIG)
    try:
        content = json.loads(config.read_text())
        return Exported(weights, dict(content[_KEY]), int(content["steps"]), str(content["weights"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{weights}: beside it there is no {CONFIG} that says how its network is built, as cm-lightning export "
            "--format safetensors writes it; if the weights are OpenAI's or EDM's, give openai:FILE or edm:FILE"
        ) from error
