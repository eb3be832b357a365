"""The suite's own export: ``weights.safetensors``, and ``config.json``, from which the module is rebuilt."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cm_lightning.errors import CheckpointError

#: Names of the two files.
WEIGHTS, CONFIG = "weights.safetensors", "config.json"
#: The key of ``config.json`` under which the module is described.
KEY = "cm_lightning_module"


@dataclass(frozen=True)
class Exported:
    """The contents of ``config.json``.

    Attributes:
        weights: the file of the network's weights.
        module: ``{class_path, init_args}`` of the module.
        steps: optimizer steps of the weights; 0 if that is not known.
        kind: kind of the weights, ``averaged`` or ``raw``.
    """

    weights: Path
    module: Mapping[str, Any]
    steps: int
    kind: str


def find_export(path: str | Path) -> Exported | None:
    """Find the export in a folder, or around a file of weights; None if the path is neither.

    Raises:
        CheckpointError: ``config.json`` is missing or damaged.
    """
    path = Path(path)
    weights = path / WEIGHTS if path.is_dir() else path
    if weights.suffix != ".safetensors" or not weights.is_file():
        return None
    config = weights.with_name(CONFIG)
    try:
        content = json.loads(config.read_text())
        return Exported(weights, dict(content[KEY]), int(content["steps"]), str(content["weights"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{weights}: there is no {CONFIG} beside it that describes its network, as cm-lightning export "
            "--format safetensors writes it; if the weights are OpenAI's or EDM's, give openai:FILE or edm:FILE"
        ) from error
