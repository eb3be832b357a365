"""Reading checkpoints. A file is read with ``weights_only=True``: nothing from it is executed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cm_lightning.digest import require_undamaged
from cm_lightning.errors import CheckpointError
from cm_lightning.parts import require_known_format
from cm_lightning.run import find_checkpoint, say_once
from cm_lightning.states import plain_name

#: The key under which a module stores the configuration that the command line built it from.
CONFIG_KEY = "cm_lightning_config"

_PROGRAMS = {"openai": "OpenAI's", "edm": "EDM's", "diffusers": "a folder of diffusers"}


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The contents of a Lightning checkpoint, on the CPU.

    Args:
        path: path of the file, or the folder of a run or of one of its versions
            (:func:`cm_lightning.run.find_checkpoint`).

    Raises:
        CheckpointError: the file is missing, damaged, of a later version, or not a Lightning checkpoint.
    """
    path = _noted(path)
    require_undamaged(path)
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint of plain tensors: is it complete?{_hint(path)}"
        ) from error
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
        raise CheckpointError(f"{path} is not a Lightning checkpoint: it does not hold a state_dict{_hint(path)}")
    require_known_format(checkpoint, path)
    return checkpoint


def _noted(path: str | Path) -> Path:
    """The checkpoint file of a path; if it differs from the path, it is printed once."""
    try:
        found = find_checkpoint(path)
    except CheckpointError as error:
        raise CheckpointError(f"{error}{_hint(path)}") from error
    if found != Path(path):
        say_once(f"{path}: {found}")
    return found


def _hint(path: str | Path) -> str:
    """A hint at what to give instead if another program wrote the file."""
    from cm_lightning.interop.foreign import origin

    program = origin(path)
    return f"; it looks like {_PROGRAMS[program]}: give {program}:{path}" if program else ""


def averages(checkpoint: dict[str, Any], attribute: str = "backbone") -> list[dict[str, Any]]:
    """The states of the EMA callbacks that averaged ``attribute``; the first is the one used for evaluation."""
    callbacks = checkpoint.get("callbacks")
    states = [s for s in (callbacks.values() if isinstance(callbacks, dict) else ()) if isinstance(s, dict)]
    states = [s for s in states if isinstance(s.get("average"), dict) and s.get("attribute") == attribute]
    return sorted(states, key=lambda s: not s.get("evaluate"))


def weights(checkpoint: dict[str, Any], which: str = "ema", attribute: str = "backbone") -> dict[str, Tensor]:
    """The state dict of one submodule, under the names it has without compilation.

    Args:
        checkpoint: from :func:`read_checkpoint`.
        which: ``ema``, the averaged weights for evaluation, or ``raw``, the weights of the optimizer.
        attribute: name of the submodule.

    Raises:
        CheckpointError: the checkpoint does not hold such weights.
    """
    if which == "ema":
        found = averages(checkpoint, attribute)
        if not found:
            raise CheckpointError(f"the checkpoint does not hold averaged weights of {attribute}: choose the raw ones")
        return {plain_name(name): tensor for name, tensor in found[0]["average"].items()}
    prefix = f"{attribute}."
    state = checkpoint["state_dict"].items()
    raw = {plain_name(name.removeprefix(prefix)): tensor for name, tensor in state if name.startswith(prefix)}
    if not raw:
        raise CheckpointError(f"the checkpoint does not hold weights of {attribute}")
    return raw
