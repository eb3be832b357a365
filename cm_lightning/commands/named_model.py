"""A model that ``evaluate`` measures: its name, its files, and its own settings."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path

from cm_lightning.errors import ConfigError
from cm_lightning.latent.few_step import FewStep, compare, only_one, unsaid
from cm_lightning.run import find_export

#: The steps and guidance scales at which a model without its own settings is measured.
STEPS = [1, 2, 4, 8]
GUIDANCE = [1.0, 1.5, 2.0, 4.0]
_END = 2**20  # number of bytes at the beginning and end of a file that identify it


@dataclass(frozen=True)
class NamedModel:
    """A name and the files of one of its seeds."""

    name: str
    pipeline: str
    parts: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> NamedModel:
        name, equals, weights = text.partition("=")
        pipeline, *parts = weights.split("+")
        if not equals or not name.strip() or "/" in name or not all(part.strip() for part in (pipeline, *parts)):
            raise ConfigError(f"--model {text}: give NAME=PIPELINE or NAME=PIPELINE+LORA")
        return cls(name, find_export(pipeline), tuple(find_export(part) for part in parts))

    def require_files(self) -> None:
        """Raise ConfigError if a local path does not exist; names on the hub are not checked."""
        from cm_lightning.hub import file_on_hub

        for path in (self.pipeline, *self.parts):
            looks_local = path.startswith((".", "/", "~")) or path.count("/") != 1
            if looks_local and file_on_hub(path) is None and not Path(path).exists():
                raise ConfigError(
                    f"--model {self.name}: there is nothing at {path}: name a folder, or a model on the hub"
                )

    @property
    def weights(self) -> str:
        """The files and a digest of their contents, so that retrained weights are measured again."""
        digest = hashlib.sha256("".join(_digest(path) for path in (self.pipeline, *self.parts)).encode())
        return "+".join([self.pipeline, *self.parts]) + f" {digest.hexdigest()[:8]}"

    @cached_property
    def told(self) -> tuple[str, FewStep] | None:
        """The file that states how the model is sampled, and its contents."""
        return only_one(self.pipeline, self.parts)

    def settings(
        self, steps: Sequence[int] | None, guidance: Sequence[float] | None, scheduler: str | None
    ) -> list[tuple[int, float]]:
        """The steps and guidance scales to measure, with a note on those that a student was not distilled for.

        Raises:
            ConfigError: it was not distilled for any of those that the user gave.
        """
        if not self.told:
            self._note(None if scheduler else unsaid(self.parts, None, "lcm"))
            return list(product(steps or STEPS, guidance or GUIDANCE))
        source, how = self.told
        wanted = list(product(steps or [how.steps], guidance or [1.0]))
        others = [setting for setting in wanted if how.departures(*setting, scheduler)]
        if others and (scheduler or others == wanted):
            self._note(compare(source, how, *others[0], scheduler))
            return wanted
        if others:
            rest = f"the other cells are left out, and --scheduler {how.scheduler} measures them anyway"
            self._note(f"{source} was distilled for {how}: {rest}")
        return [setting for setting in wanted if setting not in others]

    def _note(self, line: str | None) -> None:
        if line:
            sys.stderr.write(f"note: --model {self.name}: {line}\n")


def _digest(path: str) -> str:
    """A digest of both ends of the files of weights; for a name on the hub, of the name alone."""
    root, digest = Path(path), hashlib.sha256()
    files = sorted(root.rglob("*.safetensors")) if root.is_dir() else [root] if root.is_file() else []
    for file in files:
        with open(file, "rb") as opened:
            digest.update(opened.read(_END))
            opened.seek(-min(_END, file.stat().st_size), os.SEEK_END)
            digest.update(opened.read())
    return digest.hexdigest()
