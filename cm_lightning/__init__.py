"""Consistency models on PyTorch Lightning: images in one forward pass.

The names listed in ``__init__.pyi`` are imported at first use: ``cm_lightning.core`` needs only torch.
"""

from __future__ import annotations

from typing import Any

from cm_lightning.registry import HOMES, find

__version__ = "0.1.0"

__all__ = list(HOMES)


def __getattr__(name: str) -> Any:
    return find(name)


def __dir__() -> list[str]:
    return sorted([*globals(), *HOMES])
