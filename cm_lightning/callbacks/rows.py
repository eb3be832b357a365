"""The rows of metrics.csv: each is on disk before any checkpoint that follows it, and none occurs twice."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from cm_lightning.errors import DataError
from cm_lightning.files import replacing

_ALWAYS = ("epoch", "step")


class Rows(ExperimentWriter):
    """Lightning's writer of metrics.csv, with a file that is complete at any moment.

    A resumed run keeps the rows up to the step of its checkpoint. Rows are appended; for new columns the file is
    rewritten beside itself and renamed. A value that a step has logged already is left out.

    Args:
        log_dir: directory of the run.
        first_step: step of the checkpoint that the run resumes; 0 for a new run.
    """

    def __init__(self, log_dir: str, first_step: int) -> None:
        super().__init__(log_dir)
        self._step: int | None = None
        self._logged: dict[str, str] = {}
        if not Path(self.metrics_file_path).is_file():
            return
        rows = [row for row in self._read() if int(row["step"] or 0) < first_step]
        self.metrics_keys = sorted({name for row in rows for name in row})
        self._write(rows)

    def log_metrics(self, metrics_dict: dict[str, Any], step: int | None = None) -> None:
        """Keep what this step has not yet logged for the next row."""
        if step != self._step:
            self._step, self._logged = step, {}
        plain = {name: getattr(value, "item", lambda v=value: v)() for name, value in metrics_dict.items()}
        new = {name: value for name, value in plain.items() if self._logged.get(name) != repr(value)}
        if not new.keys() - _ALWAYS:
            return
        self._logged |= {name: repr(value) for name, value in new.items()}
        super().log_metrics({name: value for name, value in plain.items() if name in new or name in _ALWAYS}, step)

    def save(self) -> None:
        """Append the rows that were kept.

        Raises:
            DataError: the disk is full, or the file cannot be written.
        """
        try:
            super().save()
        except OSError as error:
            raise DataError(
                f"{self.metrics_file_path} cannot be written ({error.strerror}): free space there, and resume the run"
            ) from error

    def _read(self) -> list[dict[str, Any]]:
        """The rows of the file, without a last row that a killed process has only partly written."""
        with open(self.metrics_file_path, newline="") as file:
            text = file.read()
        whole = text[: text.rfind("\n") + 1]
        return [row for row in csv.DictReader(whole.splitlines()) if None not in row and None not in row.values()]

    def _write(self, rows: list[dict[str, Any]]) -> None:
        with replacing(self.metrics_file_path) as path, open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, self.metrics_keys)
            writer.writeheader()
            writer.writerows(rows)

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        self._write(self._read())

    def _check_log_dir_exists(self) -> None:
        """Do nothing: Lightning's own method deletes the earlier rows."""


def write_row(trainer: L.Trainer) -> None:
    """Write the row of a step that has just ended, which Lightning does only after checkpoints are saved."""
    connector = trainer._logger_connector
    writers = [
        logger for logger in trainer.loggers if isinstance(logger, CSVLogger) and isinstance(logger._experiment, Rows)
    ]
    if not writers or trainer.fit_loop._should_accumulate() or not connector.should_update_logs:
        return
    metrics: dict[str, Any] = {**connector.metrics["log"], "epoch": trainer.current_epoch}
    for logger in writers:
        logger.log_metrics(metrics, trainer.fit_loop.epoch_loop._batches_that_stepped)
        logger.save()
