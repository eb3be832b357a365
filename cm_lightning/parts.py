"""The parts of a checkpoint from which a run is resumed: wrong parts are refused, and missing ones are named."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from cm_lightning.errors import CheckpointError

#: The key under which a module writes the number of the format of its checkpoints.
FORMAT_KEY = "cm_lightning_format"
#: The format that this version writes, and the newest that it reads.
FORMAT = 1


def require_known_format(checkpoint: Mapping[str, Any], path: str | Path) -> None:
    """Raise CheckpointError for a checkpoint of a later version of the suite; without a number it is of format 0."""
    found = checkpoint.get(FORMAT_KEY, 0)
    if not isinstance(found, int) or found > FORMAT:
        raise CheckpointError(
            f"{path} has format {found}, and this version of cm_lightning reads up to {FORMAT}: upgrade it"
        )


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _are_optimizers(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(state, dict)
        and isinstance(state.get("state"), dict)
        and isinstance(state.get("param_groups"), list)
        and all(isinstance(group, dict) for group in state["param_groups"])
        for state in value
    )


def _are_random_states(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(state, dict) and "cpu" in state and all(isinstance(part, Tensor) for part in state.values())
        for state in value
    )


def _are_loops(value: Any) -> bool:
    loop = value.get("fit_loop") if isinstance(value, dict) else None
    counts = loop.get("epoch_loop.batch_progress") if isinstance(loop, dict) else None
    if not isinstance(loop, dict) or not isinstance(counts, dict) or "is_last_batch" not in counts:
        return False
    kinds = [counts.get(kind) for kind in ("total", "current")]
    return isinstance(loop.get("epoch_loop.state_dict"), dict) and all(
        isinstance(kind, dict) and all(_is_count(kind.get(name)) for name in ("ready", "processed", "completed"))
        for kind in kinds
    )


def _are_dicts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def _are_callbacks(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(state, dict) for state in value.values())


#: The parts that every training checkpoint has, and a check of each.
_NEEDED: dict[str, Callable[[Any], bool]] = {
    "global_step": _is_count,
    "epoch": _is_count,
    "loops": _are_loops,
    "optimizer_states": _are_optimizers,
    "lr_schedulers": _are_dicts,
}
#: Parts that may be missing, and what is reset then.
_OPTIONAL: dict[str, tuple[Callable[[Any], bool], str]] = {
    "trained_steps": (_is_count, ""),
    "callbacks": (_are_callbacks, "averages and totals"),
    "random_states": (_are_random_states, "noise and dropout"),
}


def require_parts(checkpoint: Mapping[str, Any], path: Path) -> None:
    """Check the parts of a checkpoint that training is resumed from.

    Raises:
        CheckpointError: one is missing or is not what it should be; the message names it.
    """
    checks = {**_NEEDED, **{name: check for name, (check, _) in _OPTIONAL.items() if name in checkpoint}}
    for name, fits in checks.items():
        if name in checkpoint and fits(checkpoint[name]):
            continue
        wrong = f"its {name} is not what training writes" if name in checkpoint else f"it has no {name}"
        raise CheckpointError(f"{path} cannot be resumed: {wrong}: use another, or --model.start_from {path}")


def begin_anew(checkpoint: Mapping[str, Any], ranks: int) -> list[str]:
    """What a resumed run does not find in a checkpoint, so that it is reset.

    Args:
        checkpoint: the contents of the file.
        ranks: ranks of the resumed run.
    """
    anew = [what for name, (_, what) in _OPTIONAL.items() if what and not checkpoint.get(name)]
    states = checkpoint.get("random_states") or []
    if states and len(states) != ranks:
        anew.append(f"noise and dropout (of {len(states)} rank(s) then, {ranks} now)")
    if not checkpoint["optimizer_states"]:
        anew.append("the optimizer's moments")
    return anew
