"""The files below a folder or in a zip file by their names, with rules for hidden files, links and archives."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import BinaryIO
from zipfile import BadZipFile, ZipFile

from cm_lightning.errors import DataError

#: Folders and files that operating systems leave among images; names that begin with a dot are ignored too.
_JUNK = {"__MACOSX", "Thumbs.db", "desktop.ini", "$RECYCLE.BIN", "System Volume Information"}

Name = PurePosixPath


class Tree(ABC):
    """Files by their names relative to a root.

    Args:
        root: a folder or an archive.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    @cached_property
    @abstractmethod
    def names(self) -> list[Name]:
        """All files that are not hidden, sorted."""

    @abstractmethod
    def open(self, name: Name) -> BinaryIO:
        """Open a file for reading."""

    def shown(self, name: Name) -> str:
        """The name of a file in messages."""
        return str(self.root / name)


class Folder(Tree):
    """A folder, in which links are followed, except a link back to a folder above it."""

    @cached_property
    def names(self) -> list[Name]:
        return [Name(path.relative_to(self.root)) for path in _walk(self.root, ())]

    def open(self, name: Name) -> BinaryIO:
        return open(self.root / name, "rb")


class Archive(Tree):
    """An uncompressed or compressed zip file, as EDM's ``dataset_tool.py`` writes it."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._zip: tuple[int, ZipFile] | None = None

    @cached_property
    def names(self) -> list[Name]:
        entries = [Name(info.filename) for info in self._opened().infolist() if not info.is_dir()]
        return sorted(name for name in entries if not any(_is_hidden(part) for part in name.parts))

    def open(self, name: Name) -> BinaryIO:
        return self._opened().open(str(name))  # type: ignore[return-value]

    def _opened(self) -> ZipFile:
        """Open the file once for each process: a shared file would share its position."""
        if self._zip is None or self._zip[0] != os.getpid():
            try:
                self._zip = (os.getpid(), ZipFile(self.root))
            except (BadZipFile, OSError) as error:
                raise DataError(f"{self.root} cannot be read as a zip file: is it complete?") from error
        return self._zip[1]

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_zip": None}


def open_tree(root: Path) -> Tree:
    """The files below a folder, or in a ``.zip``. Raises DataError if it is neither."""
    if root.is_dir():
        return Folder(root)
    if root.suffix.lower() == ".zip" and root.is_file():
        return Archive(root)
    raise DataError(f"folder not found: {root}: set --data.root to a folder of images, or to a .zip of one")


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in _JUNK


def _walk(folder: Path, above: tuple[Path, ...]) -> Iterator[Path]:
    real = folder.resolve()
    if real in above:
        return
    for entry in sorted(folder.iterdir()):
        if _is_hidden(entry.name):
            continue
        if entry.is_dir():
            yield from _walk(entry, (*above, real))
        elif entry.is_file():
            yield entry
