"""A server of W&B that cannot be reached: the run goes on offline within seconds, with one line."""

import errno
import logging
import os
import socket
import threading
from collections import namedtuple
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace

import pytest
from lightning.pytorch.loggers import WandbLogger

from cm_lightning import online
from cm_lightning.errors import ConfigError
from cm_lightning.online import ExpendableWandbLogger, goes_offline, wandb_logger, wandb_run_ends, why_unreachable


@pytest.fixture(autouse=True)
def with_a_key(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def server(request, monkeypatch):
    """A server that answers with a status; None: one that never answers; "closed": a port where there is none."""
    status = request.param
    if status in (None, "closed"):
        listener = socket.create_server(("127.0.0.1", 0))
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{listener.getsockname()[1]}")
        if status == "closed":
            listener.close()
        yield
        listener.close()
        return

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_):
            pass

    http = HTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{http.server_port}")
    yield
    http.shutdown()
    http.server_close()


@pytest.mark.parametrize(
    ("server", "reason"),
    [(200, None), (404, None), (401, None), (500, "it answers 500"), (503, "it answers 503"), ("closed", "refused")],
    indirect=["server"],
)
def test_a_server_is_asked_before_the_run_depends_on_it(server, reason):
    said = why_unreachable()
    assert (said is None) == (reason is None)
    assert reason is None or reason in said


@pytest.mark.parametrize("server", [None], indirect=True)
def test_a_server_that_does_not_answer_is_given_up(server):
    assert "cannot be reached" in why_unreachable(0.1)


@pytest.mark.parametrize(
    ("address", "reason"), [("http://no-such-host.invalid", "("), ("nonsense", "unknown url type"), ("http://", "(")]
)
def test_an_address_that_is_wrong_is_out_of_reach(address, reason, monkeypatch):
    monkeypatch.setenv("WANDB_BASE_URL", address)
    assert why_unreachable().startswith(f"W&B at {address} cannot be reached (")
    assert reason in why_unreachable()


def test_without_a_key_the_run_is_logged_offline(monkeypatch):
    monkeypatch.setattr(online, "_key", lambda: None)
    assert why_unreachable() == "there is no API key of W&B (run 'wandb login')"


@pytest.mark.parametrize(
    ("mode", "problem", "offline"),
    [("offline", "x", True), ("offline", None, True), ("online", None, False), ("online", "x", True),
     ("required", None, False)],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore")
def test_modes(mode, problem, offline, monkeypatch):
    monkeypatch.setattr(online, "why_unreachable", lambda: problem)
    assert goes_offline(mode, "runs") is offline
    assert wandb_logger([], mode)._offline is offline


def test_going_offline_says_how_to_upload_later_and_a_required_server_ends_the_run(monkeypatch):
    monkeypatch.setattr(online, "why_unreachable", lambda: "W&B at X cannot be reached (refused)")
    with pytest.warns(UserWarning, match="W&B") as caught:
        goes_offline("online", "runs/toy")
    assert str(caught[0].message) == (
        "W&B at X cannot be reached (refused), so the run is logged offline; to upload it: wandb sync "
        "runs/toy/wandb/offline-run-*"
    )
    with pytest.raises(ConfigError) as refused:
        goes_offline("required", "runs/toy")
    assert str(refused.value).startswith("--wandb required: W&B at X cannot be reached (refused): give --wandb online")


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "media/1.png")


@pytest.fixture
def failing(tmp_path):
    """A logger whose run raises what the test puts into ``error``."""
    logger = ExpendableWandbLogger(save_dir=tmp_path, offline=True)
    logger.asked, logger.error = 0, None

    def ask(*_, **__):
        logger.asked += 1
        if logger.error:
            raise logger.error

    logger._experiment = SimpleNamespace(log=ask, config=SimpleNamespace(update=ask))
    return logger


def thrice(log, *args, **options):
    for _ in range(3):
        log(*args, **options)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (FULL, "media/1.png: no space left on device: free space there"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe", "a"), "a: broken pipe"),
        (ConnectionResetError("reset by peer"), "ConnectionResetError: reset by peer"),
        (RuntimeError("the service died"), "RuntimeError: the service died"),
    ],
)
@pytest.mark.parametrize(
    "log",
    [lambda logger: logger.log_metrics({"x": 1.0}, 3), lambda logger: logger.log_hyperparams({"cli": {"a": 1}})],
)
def test_a_failure_in_mid_run_is_one_line_and_the_run_continues(failing, log, error, reason):
    log(failing)
    failing.error = error
    with pytest.warns(UserWarning, match="W&B") as caught:
        thrice(log, failing)
    (line,) = [str(warning.message) for warning in caught]
    assert line.startswith(f"W&B does not receive the whole log ({reason}")
    assert line.endswith("; training continues")
    failing.error = None
    log(failing)
    assert failing.asked == 5  # what it takes again is logged again


def test_a_picture_that_cannot_be_written_is_one_line(failing, monkeypatch):
    def full(*_, **__):
        raise FULL

    monkeypatch.setattr("wandb.Image", full)
    with pytest.warns(UserWarning, match="no space left") as caught:
        thrice(failing.log_image, "samples", ["1.png"], step=1)
    assert len(caught) == 1


def test_a_run_that_cannot_begin_is_not_begun_again(tmp_path, monkeypatch):
    begun = []

    def init(**_):
        begun.append(1)
        raise FULL

    monkeypatch.setattr("wandb.init", init)
    logger = ExpendableWandbLogger(save_dir=tmp_path, offline=True)
    with pytest.warns(UserWarning, match="W&B does not receive the whole log") as caught:
        thrice(logger.log_metrics, {"x": 1.0}, 3)
    logger.finalize("success")
    assert (len(caught), len(begun)) == (1, 1)


def test_a_full_disk_that_wandb_does_not_mention_is_one_line(failing, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(online.shutil, "disk_usage", lambda _: usage(9, 9, 0))
    with pytest.warns(UserWarning, match="W&B") as caught:
        thrice(failing.log_metrics, {"x": 1.0}, 3)
    assert [str(warning.message) for warning in caught] == [
        f"W&B does not receive the whole log ({tmp_path}: no space left on device); training continues"
    ]
    assert failing.asked == 3


@pytest.mark.parametrize(
    ("mode", "kind"), [("online", ExpendableWandbLogger), ("offline", ExpendableWandbLogger), ("required", WandbLogger)]
)
def test_only_a_required_log_ends_the_run(mode, kind, monkeypatch):
    monkeypatch.setattr(online, "why_unreachable", lambda: None)
    monkeypatch.setattr(logging, "raiseExceptions", True)
    for name in ("WANDB_FINISH_TIMEOUT", "WANDB_FINISH_TIMEOUT_RAISES"):
        monkeypatch.setenv(name, "")  # so that it is restored
        monkeypatch.delenv(name)
    assert type(wandb_logger([], mode)) is kind
    assert logging.raiseExceptions == (mode == "required")
    assert os.environ.get("WANDB_FINISH_TIMEOUT") == (None if mode == "required" else "60")


def test_the_end_of_a_run_says_what_a_server_that_went_away_did_not_take(monkeypatch):
    def finish(exit_code):
        raise TimeoutError("Timed out finishing run.")

    monkeypatch.setitem(online.sys.modules, "wandb", SimpleNamespace(run=None))
    run = SimpleNamespace(dir="runs/toy/wandb/run-1/files", finish=finish)
    with pytest.warns(UserWarning, match="wandb sync") as caught, wandb_run_ends():
        online.sys.modules["wandb"].run = run
    assert [str(warning.message) for warning in caught] == [
        "W&B did not take the rest of the log in time; to upload it: wandb sync runs/toy/wandb/run-1"
    ]
