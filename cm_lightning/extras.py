"""What an optional part of the suite needs, and how to get it."""

from __future__ import annotations

#: Packages of the extra ``lcm``: text-to-image alone needs them.
_LCM = ("diffusers", "transformers", "peft", "accelerate")


def advice(error: ModuleNotFoundError) -> str | None:
    """The line for a user who lacks an extra; None if the missing module is not of one."""
    package = (error.name or "").partition(".")[0]
    return f"this needs {package}: pip install 'cm-lightning[lcm]'" if package in _LCM else None
