"""The suite's own export: ``weights.safetensors``, and ``config.json``, from which the module is rebuilt."""

from __future__ import annotations

import json
from pathlib import Path

from torch import nn

from cm_lightning.digest import save_tensors
from cm_lightning.files import replacing
from cm_lightning.interop.folder import CONFIG, KEY, WEIGHTS
from cm_lightning.recording import describe
from cm_lightning.states import plain_name

_TRAINING = ("optimizer", "lr_scheduler", "start_from")


def write_export(module: nn.Module, folder: Path, steps: int, kind: str) -> None:
    """Write a GenerativeModule's network and the arguments that it was built with, except those of training."""
    backbone = module.get_submodule("backbone")
    described = describe(module)
    arguments = {name: value for name, value in described["init_args"].items() if name not in _TRAINING}
    if "teacher" in arguments:
        arguments["teacher"] = "not exported"
    if levels := getattr(module, "sampling_sigmas", None):
        arguments["sampling_sigmas"] = levels  # those of the recipe, or those that a search found
    content = {KEY: {**described, "init_args": arguments}, "steps": steps, "weights": kind}
    state = {plain_name(name): tensor.contiguous() for name, tensor in backbone.state_dict().items()}
    with replacing(folder / WEIGHTS) as path:
        save_tensors(state, path, {"format": "pt", "network": type(backbone).__name__})
    with replacing(folder / CONFIG) as path:
        path.write_text(json.dumps(content, indent=2) + "\n")
