"""Which device a command works on."""

from __future__ import annotations

import torch

from cm_lightning.errors import ConfigError


def chosen_device(name: str) -> torch.device:
    """The device of a name; ``auto`` is the accelerator if there is one, else the CPU.

    Raises:
        ConfigError: no such name.
    """
    if name != "auto":
        try:
            return torch.device(name)
        except RuntimeError as error:
            raise ConfigError(f"--device {name} is no device: give cpu, cuda, cuda:1, mps, or auto") from error
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator or torch.device("cpu")
