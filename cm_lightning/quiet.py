"""Silencing unhelpful output of libraries: advertisements, absent hardware, deprecations, further progress bars."""

from __future__ import annotations

import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from cm_lightning.failures import DEBUG

#: The beginning of a warning, and the reason for leaving it out.
WARNINGS = {
    r"`?isinstance\(treespec, LeafSpec\)": "a deprecation of torch inside Lightning",
    r"`torch\.jit\.\w+` is (deprecated|not supported in Python 3\.14\+)": "a deprecation of torch inside libraries",
    r"TypedStorage is deprecated": "torch itself causes it when it reads weights from pickles",
    r"The '\w+' does not have many workers": "the data modules choose the number of their workers with care",
    r"The number of training batches \(\d+\) is smaller than the logging interval": "rows are written across epochs",
    r"You defined a `validation_step` but have no `val_dataloader`": "a run without validation was requested",
    r"The dirpath has changed": "a resumed run writes into a version of its own",
    r"Checkpoint directory .* exists and is not empty": "or continues in its own",
    r"It is recommended to use `self\.log\(.*sync_dist=True": "scores cover all ranks before they are logged",
    r"Starting from v1\.9\.0, `tensorboardX` has been removed": "metrics.csv is the log",
}
#: The beginning of a line of Lightning, and the reason for leaving it out.
LINES = {
    r"(GPU|TPU|HPU) available: ": "--trainer.accelerator decides what is used",
    r"LOCAL_RANK: \d+ - CUDA_VISIBLE_DEVICES": "the same",
    r".*\[lit(logger|models)\]\(": "an advertisement",
    r"`Trainer\.fit` stopped: `max_\w+=.*` reached\.": "the end of a run prints what there is",
}
_LIBRARIES = ("diffusers.utils.logging", "transformers.utils.logging")
_LOGGERS = ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero")


def silence() -> None:
    """Suppress these messages from now on, unless ``--debug`` is given; all others remain."""
    if os.environ.get(DEBUG):
        return
    for message in WARNINGS:
        warnings.filterwarnings("ignore", rf"\s*{message}")
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(_tells_something)


@contextmanager
def errors_only(logger: str) -> Iterator[None]:
    """Suppress what a logger reports, except errors, within the block."""
    log = logging.getLogger(logger)
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


def _tells_something(record: logging.LogRecord) -> bool:
    return not any(re.match(line, record.getMessage(), re.DOTALL) for line in LINES)


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress bars and reports of diffusers and transformers, except errors, within the block."""
    # only those that are imported: DINOv2 needs only the second
    libraries = [sys.modules[name] for name in _LIBRARIES if name in sys.modules]
    before = [(library, library.get_verbosity(), library.is_progress_bar_enabled()) for library in libraries]
    for library in libraries:
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The `local_dir_use_symlinks`")  # diffusers itself passes it to the hub
            yield
    finally:
        for library, verbosity, bars in before:
            library.set_verbosity(verbosity)
            if bars:
                library.enable_progress_bar()
