"""Messages that are left out, as the libraries write them, and others that are not."""

import logging
import warnings

import pytest

from cm_lightning import quiet
from cm_lightning.failures import DEBUG

LOGGER = logging.getLogger("lightning.pytorch.utilities.rank_zero")
LEFT_OUT = [
    "`isinstance(treespec, LeafSpec)` is deprecated, use `isinstance(treespec, TreeSpec) and treespec.is_leaf()`",
    "TypedStorage is deprecated. It will be removed in the future and UntypedStorage will be the only storage class.",
    "`torch.jit.script` is deprecated. Please switch to `torch.compile` or `torch.export`.",
    "`torch.jit.script_method` is not supported in Python 3.14+ and may break. Please switch to `torch.compile`",
    "You defined a `validation_step` but have no `val_dataloader`. Skipping val loop.",
    "The 'train_dataloader' does not have many workers which may be a bottleneck. Consider increasing the value",
    "The number of training batches (3) is smaller than the logging interval Trainer(log_every_n_steps=50).",
    "Checkpoint directory /runs/toy/version_0/checkpoints exists and is not empty.",
    "It is recommended to use `self.log('val/loss', ..., sync_dist=True)` when logging on epoch level",
]
KEPT = [
    "the loss may not be finite", "`torch.load` is deprecated", "The 'train_dataloader' has no batches",
    "You defined a `training_step` but have no `train_dataloader`",
]  # fmt: skip
LINES_LEFT_OUT = [
    "GPU available: True (cuda), used: True", "TPU available: False, using: 0 TPU cores",
    "LOCAL_RANK: 0 - CUDA_VISIBLE_DEVICES: [0]", "`Trainer.fit` stopped: `max_steps=40` reached.",
    "💡 Tip: For seamless cloud logging and experiment tracking, try installing "
    "[litlogger](https://pypi.org/project/litlogger/) to enable LitLogger",
    "💡 Tip: For seamless cloud uploads and versioning, try installing "
    "[litmodels](https://pypi.org/project/litmodels/) to enable LitModelCheckpoint",
]  # fmt: skip
LINES_KEPT = ["Seed set to 0", "a GPU is available: cuda", "`Trainer.fit` stopped: the loss is not finite"]


@pytest.fixture
def quiet_here(monkeypatch):
    monkeypatch.delenv(DEBUG, raising=False)
    before = list(LOGGER.filters)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        yield
    LOGGER.filters[:] = before


def heard(messages):
    with warnings.catch_warnings(record=True) as found:
        for message in messages:
            warnings.warn(message, FutureWarning, stacklevel=1)
    return [str(warning.message) for warning in found]


def passes(line):
    return bool(LOGGER.filter(logging.makeLogRecord({"msg": line})))


def test_known_messages_are_left_out_and_others_stay(quiet_here):
    quiet.silence()
    assert heard([*LEFT_OUT, *KEPT]) == KEPT
    assert [line for line in [*LINES_LEFT_OUT, *LINES_KEPT] if passes(line)] == LINES_KEPT


def test_debug_shows_all(quiet_here, monkeypatch):
    LOGGER.filters.clear()
    monkeypatch.setenv(DEBUG, "1")
    quiet.silence()
    assert heard(LEFT_OUT) == LEFT_OUT
    assert all(map(passes, LINES_LEFT_OUT))


def test_a_logger_reports_errors_alone_within_a_block(log):
    logger = logging.getLogger("lightning.pytorch")
    before = logger.level
    with pytest.raises(RuntimeError), quiet.errors_only("lightning.pytorch"):  # noqa: PT012
        logger.warning("a warning")
        logger.error("an error")
        raise RuntimeError
    assert logger.level == before
    logger.warning("another warning")
    assert log == ["an error", "another warning"]


def test_each_has_a_reason():
    assert all([*quiet.WARNINGS.values(), *quiet.LINES.values()])
