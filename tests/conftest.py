from __future__ import annotations

import gc
import logging
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="cm_lightning_tests_")  # not the user's
os.environ["WANDB_SILENT"] = "true"
os.environ["PYTHONWARNINGS"] = "ignore"
# a shell that starts pytest in the background has it ignore Ctrl-C, and with it every process that a test starts
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # and nohup has it ignore the end of its terminal
os.fsync = lambda _: None  # it waits for the disk, and no test takes away the power
gc.disable()  # until all is imported: collections in between find nothing, and take a fifth of the time


SLOWEST = [
    "cli/test_cli.py", "cli/test_latent_cli.py", "latent/test_lora.py", "latent/test_students.py", "test_plan.py",
    "cli/test_latent_ranks.py", "cli/test_run_directories.py", "core/test_objectives.py", "cli/test_bad_input.py",
    "latent/test_lora_styles.py", "modules/test_latent_critic.py", "modules/test_adapted.py", "export/test_export.py",
    "cli/test_resume.py", "callbacks/test_quality.py", "test_registry.py", "modules/test_latent.py",
    "cli/test_processes.py", "callbacks/test_compiled.py", "modules/test_on_cuda.py", "sweep/test_sweep.py",
    "cli/test_tangent_ranks.py", "story/test_readme.py", "modules/test_every_method.py", "sweep/test_agent.py",
    "modules/test_lpips.py", "story/test_imports.py", "callbacks/test_named.py", "metrics/test_features.py",
    "self_consistency/test_command.py", "story/test_benchmarks.py", "modules/test_encoders.py",
    "report/test_compare.py", "modules/test_continuous.py", "metrics/test_frechet.py", "modules/test_recorded.py",
    "cli/test_rows.py",
]  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the slowest files first, so that no process is left alone with a long one at the end."""
    place = {Path(__file__).parent / file: number for number, file in enumerate(SLOWEST)}
    items.sort(key=lambda item: place.get(item.path, len(place)))


def pytest_collection_finish() -> None:
    """Leave what is imported out of all further collections, each of which would walk through a million objects."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def short_names_are_searched_once() -> Iterator[None]:
    """Keep the full names of the suite's classes: each search walks through thousands of classes of all libraries."""
    from jsonargparse import _typehints

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_typehints, "resolve_class_path_by_name", remembering(_typehints.resolve_class_path_by_name))
        yield


def remembering(search: Callable[[Any, str], str]) -> Callable[[Any, str], str]:
    """The same search, which keeps the classes of the suite that it has found."""
    found: dict[tuple[Any, str], str] = {}

    def remembered(base: Any, name: str) -> str:
        path = found.get((base, name)) or search(base, name)
        if path.startswith("cm_lightning."):
            found[base, name] = path
        return path

    return remembered


@pytest.fixture(autouse=True)
def one_thread_and_one_seed() -> None:
    torch.set_num_threads(1)
    torch.default_generator.manual_seed(0)  # torch.manual_seed formats a traceback for each kind of accelerator


class Listener(logging.Handler):
    """Keeps the messages of loggers.

    pytest's own ``caplog`` comes with handlers that are added to all loggers three times for each test of the suite.
    """

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@pytest.fixture
def log() -> Iterator[list[str]]:
    """The messages of all loggers from INFO on, in order."""
    root, listener = logging.getLogger(), Listener()
    known = [logger for logger in root.manager.loggerDict.values() if isinstance(logger, logging.Logger)]
    loggers, level = [root, *(logger for logger in known if not logger.propagate)], root.level
    root.setLevel(logging.INFO)
    for logger in loggers:
        logger.addHandler(listener)
    yield listener.messages
    for logger in loggers:
        logger.removeHandler(listener)
    root.setLevel(level)


@pytest.fixture(scope="session")
def inception_file(tmp_path_factory):
    """A file in torch-fidelity's format with arbitrary weights."""
    from torch_fidelity import feature_extractor_inceptionv3 as fidelity

    class Constructed(Exception):
        pass

    held = {}

    class Capture(fidelity.FeatureExtractorInceptionV3):
        def load_state_dict(self, *_, **__):
            held.update(self.state_dict())
            raise Constructed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fidelity, "load_state_dict_from_url", lambda *_, **__: {})
        with pytest.raises(Constructed):
            Capture("inception-v3-compat", ["2048"])
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(held, path)
    return path
