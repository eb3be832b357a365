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


def keep_freed_memory() -> None:
    """Have glibc keep what tensors free instead of giving it back to the system, and asking for it anew a step later.

    A training step on the CPU is quicker by it. Elsewhere than on glibc nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)
