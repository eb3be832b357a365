"""What Lightning says at every start that helps nobody here: advertisements, absent hardware, others' deprecations."""

from __future__ import annotations

import logging
import re
import warnings

_WARNINGS = (
    r".*isinstance\(treespec, LeafSpec\)",  # a deprecation of torch's inside Lightning
    r".*does not have many workers",  # the data modules choose the number of theirs with care
    r"The dirpath has changed",  # a resumed run writes into a version of its own
    r"It is recommended to use `self.log\(.*sync_dist=True",  # a score is of all ranks before it is logged
    r".*TypedStorage is deprecated",
)
_LINES = re.compile(r"(GPU|TPU|HPU) available: |.*litlogger|.*litmodels|LOCAL_RANK: \d+ - CUDA_VISIBLE_DEVICES")


def silence() -> None:
    """Leave out such lines from now on; all other warnings stay."""
    for message in _WARNINGS:
        warnings.filterwarnings("ignore", message)
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"):
        logging.getLogger(name).addFilter(_tells_something)


def _tells_something(record: logging.LogRecord) -> bool:
    return not _LINES.match(record.getMessage())
