"""A server of W&B that cannot be reached: the run goes on offline within seconds, with one line."""

import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from cm_lightning import online
from cm_lightning.errors import ConfigError
from cm_lightning.online import goes_offline, wandb_logger, why_unreachable


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
