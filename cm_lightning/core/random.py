"""Random states, for equal dropout masks in two passes and for resumed runs that draw as uninterrupted ones do."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist


def get_state(device: torch.device) -> dict[str, torch.Tensor]:
    """States of torch's global generators: the CPU's and, on an accelerator, the device's own."""
    states = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        states[device.type] = torch.get_device_module(device).get_rng_state(device)
    return states


def set_state(states: dict[str, torch.Tensor], device: torch.device) -> None:
    """Restore the states that :func:`get_state` returned."""
    torch.set_rng_state(states["cpu"])
    if device.type in states and device.type != "cpu":
        torch.get_device_module(device).set_rng_state(states[device.type], device)


class Replay:
    """Records the generators' states when it is created; within its context they start again from those.

    The student's pass comes between the two, so that the target's pass draws the same dropout masks. The device's
    generator is replayed too, because dropout on a GPU draws from it.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.before = device, get_state(device)

    def __enter__(self) -> None:
        self.after = get_state(self.device)
        set_state(self.before, self.device)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        set_state(self.after, self.device)


def gather_states(device: torch.device) -> list[dict[str, torch.Tensor]]:
    """The states of all ranks, in order; called by every rank at once."""
    states = get_state(device)
    if not (dist.is_available() and dist.is_initialized()):
        return [states]
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, states)
    return gathered
