"""Silencing unhelpful output of libraries: advertisements, absent hardware, their deprecations, more bars."""

from __future__ import annotations

import logging
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_WARNINGS = (
    r".*isinstance\(treespec, LeafSpec\)",  # a deprecation of torch's inside Lightning
    r".*does not have many workers",  # the data modules choose the number of theirs with care
    r"The dirpath has changed",  # a resumed run writes into a version of its own
    r"It is recommended to use `self.log\(.*sync_dist=True",  # a score is of all ranks before it is logged
    r".*TypedStorage is deprecated",
)
_LIBRARIES = ("diffusers.utils.logging", "transformers.utils.logging")
_LINES = re.compile(r"(GPU|TPU|HPU) available: |.*litlogger|.*litmodels|LOCAL_RANK: \d+ - CUDA_VISIBLE_DEVICES")


def silence() -> None:
    """Suppress Lightning's lines of these kinds from now on; all other warnings stay."""
    for message in _WARNINGS:
        warnings.filterwarnings("ignore", message)
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"):
        logging.getLogger(name).addFilter(_tells_something)


def _tells_something(record: logging.LogRecord) -> bool:
    return not _LINES.match(record.getMessage())


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress bars and reports of diffusers and transformers, except errors, within the block."""
    # those that are imported: DINOv2 needs the second alone
    libraries = [sys.modules[name] for name in _LIBRARIES if name in sys.modules]
    before = [(library, library.get_verbosity(), library.is_progress_bar_enabled()) for library in libraries]
    for library in libraries:
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The `local_dir_use_symlinks`")  # which diffusers itself gives the hub
            yield
    finally:
        for library, verbosity, bars in before:
            library.set_verbosity(verbosity)
            if bars:
                library.enable_progress_bar()
