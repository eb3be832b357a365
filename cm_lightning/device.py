"""Which device a command works on."""

from __future__ import annotations

import torch

from cm_lightning.errors import ConfigError


def chosen_device(name: str) -> torch.device:
    """The device of a name; ``auto`` is the accelerator if there is one, else the CPU.

    Raises:
        ConfigError: no such name, or no such device here.
    """
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return accelerator or torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"--device {name} is not a device: give cpu, cuda, cuda:1, mps, or auto") from error
    try:
        torch.zeros(1, device=device).item()  # which the meta device refuses, too
    except Exception as error:  # each backend that is missing has an exception of its own
        raise ConfigError(f"--device {name} cannot be used here: leave it out, or give cpu") from error
    return device
