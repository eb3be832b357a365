from __future__ import annotations

import os
import tempfile

import pytest
import torch

os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="cm_lightning_tests_")  # not the user's
os.environ["WANDB_SILENT"] = "true"
os.environ["PYTHONWARNINGS"] = "ignore"


@pytest.fixture(autouse=True)
def one_thread_and_one_seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
