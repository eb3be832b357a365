"""Captions of image files by the conventions of kohya (one text file for each) and Hugging Face (one table)."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cm_lightning.errors import DataError

_TABLES = {".csv", ".jsonl"}


def captions_of(images: list[Path], root: Path, column: str = "text") -> list[str]:
    """The caption of each image: its row in a table, else the first line of ``.txt`` or ``.caption`` beside it.

    Args:
        images: below ``root``.
        root: the folder; ``metadata.jsonl`` or ``metadata.csv`` may lie in it or in any folder below, with
            ``file_name`` relative to their own folder. Rows of other images are ignored.
        column: column of the tables that holds the captions.

    Raises:
        DataError: an image does not have a caption, or a table or text is damaged.
    """
    tables = sorted(path for path in root.rglob("metadata.*") if path.suffix in _TABLES)
    rows = dict(row for path in tables for row in _read_table(path, column))
    return [rows[image] if image in rows else _read_beside(image) for image in images]


def _read_table(path: Path, column: str) -> Iterator[tuple[Path, str]]:
    for number, row in enumerate(_rows(path), 1):
        if missing := [name for name in ("file_name", column) if not isinstance(row.get(name), str)]:
            raise DataError(
                f"row {number} of {path} lacks the text {missing[0]!r}: add it, or set --data.caption_column to "
                f"another of its columns ({', '.join(map(str, row))})"
            )
        yield path.parent / row["file_name"], row[column].strip()


def _rows(path: Path) -> list[dict[str, Any]]:
    text = _read_text(path)
    if path.suffix == ".jsonl":
        return [_object(line, f"line {n} of {path}") for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    try:
        return list(csv.DictReader(io.StringIO(text)))
    except csv.Error as error:
        raise DataError(f"{path} is not a CSV table ({error}): repair it, or give the captions another way") from error


def _object(line: str, name: str) -> dict[str, Any]:
    try:
        return dict(json.loads(line))
    except (ValueError, TypeError) as error:
        raise DataError(f"{name} is not a JSON object ({error}): repair or remove it") from error


def _read_beside(image: Path) -> str:
    for path in (image.with_suffix(".txt"), image.with_suffix(".caption")):
        if path.is_file():
            return _read_text(path).strip().partition("\n")[0].strip()
    raise DataError(
        f"{image} does not have a caption: write {image.stem}.txt beside it, or add a row to metadata.jsonl"
    )


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")  # editors on Windows write a byte-order mark
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not UTF-8 text: save it in that encoding") from error
