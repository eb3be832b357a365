"""The device that a command works on, and the memory of CPU tensors."""

from __future__ import annotations

import ctypes
import sys

import torch

from cm_lightning.errors import ConfigError

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # from malloc.h


def chosen_device(name: str) -> torch.device:
    """The device of a name; ``auto`` is the accelerator if there is one, else the CPU.

    Raises:
        ConfigError: the name is unknown, or this machine lacks the device.
    """
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return accelerator or torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"--device {name} is not a device: give cpu, cuda, cuda:1, mps, or auto") from error
    try:
        torch.zeros(1, device=device).item()  # the meta device refuses this, too
    except Exception as error:  # each missing backend raises another kind of error
        raise ConfigError(f"--device {name} cannot be used here: leave it out, or give cpu") from error
    return device


def keep_freed_memory() -> None:
    """Have glibc keep the memory that tensors free instead of returning it to the system and requesting it again.

    This makes a training step on the CPU faster. Without glibc it does nothing.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)
