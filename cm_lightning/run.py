"""The directory of a run: where its configuration, checkpoints, metrics and samples lie together."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cm_lightning.files import replacing

if TYPE_CHECKING:
    import lightning as L

#: Environment variable that names a file in which a run says where it lies: who starts a run learns it so.
RUN_FILE = "CM_LIGHTNING_RUN_FILE"


def run_directory(trainer: L.Trainer) -> Path:
    """The CSV logger's directory, else the trainer's root; unlike ``trainer.log_dir`` it does not synchronise ranks."""
    from lightning.pytorch.loggers import CSVLogger

    for logger in trainer.loggers:
        if isinstance(logger, CSVLogger):
            return Path(logger.log_dir)
    return Path(trainer.default_root_dir)


@dataclass(frozen=True)
class RunNote:
    """Where a run lies, and whether it came to its end; its exit status does not tell, as it is 0 after a SIGTERM."""

    directory: str | None = None
    finished: bool = False

    def leave(self) -> None:
        """Write the note for whoever asked for it."""
        if path := os.environ.get(RUN_FILE):
            with replacing(path) as temporary:
                temporary.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: Path) -> RunNote:
        """The note, or an empty one."""
        return cls(**json.loads(path.read_text())) if path.is_file() else cls()
