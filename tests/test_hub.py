"""A hub that does not answer is asked once, without a wait; what is in the cache is loaded all the same."""

from __future__ import annotations

import socket
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("peft")
pytest.importorskip("transformers")

from huggingface_hub import close_session, constants

from cm_lightning import hub
from cm_lightning.backbones.embedding import JumpEmbedding
from cm_lightning.commands import prompt
from cm_lightning.core.truncated import TruncatedStudent
from cm_lightning.errors import CheckpointError
from cm_lightning.latent.base import PretrainedBase, load_pipeline
from cm_lightning.latent.lora_files import save_lora
from cm_lightning.latent.pipelines import few_step_pipeline
from cm_lightning.metrics.clip_score import ClipScore
from tests.latent.test_lora import output, same, trained
from tests.latent.tiny import tiny_sd, tiny_sdxl

NAME = "nobody-at-all/nothing"


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Act as if HF_HUB_OFFLINE were not set, with an empty cache, and without waiting between two requests."""

    def wait(seconds: float) -> None:
        raise AssertionError(f"waits {seconds} s to ask again")

    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(time, "sleep", wait)
    monkeypatch.chdir(tmp_path)
    close_session()  # it keeps the proxies that it found
    yield
    close_session()


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A hub at a port where nobody listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{bound.getsockname()[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        yield endpoint


@contextmanager
def server(status: int) -> Iterator[tuple[str, list[str]]]:
    """An address that answers every request with a status, and the list of requests."""
    asked: list[str] = []

    class Answer(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            asked.append(f"{self.command} {self.path}")
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_HEAD

        def log_message(self, *_: Any) -> None:
            pass

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    Thread(target=listening.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listening.server_port}", asked
    finally:
        listening.shutdown()
        listening.server_close()


@pytest.mark.parametrize("status", [200, 302, 401, 404, 500, 502, 503])
def test_any_answer_but_a_servers_failure_is_one(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with server(status) as (endpoint, asked):
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        assert hub.reachable() == (status < 500)
        assert asked == ["HEAD /"]


def test_nobody_listens(closed: str) -> None:
    assert not hub.reachable()


@pytest.mark.parametrize("endpoint", ["", "no address", "http://", "ftp://127.0.0.1", "http://127.0.0.1:99999"])
def test_an_address_that_is_none(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    assert not hub.reachable()


def test_silence_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{mute.getsockname()[1]}")
        monkeypatch.setattr(hub, "SECONDS", 0.1)
        assert not hub.reachable()


def test_nor_is_a_name_server(monkeypatch: pytest.MonkeyPatch) -> None:
    looking = socket.socketpair()

    def answers() -> bool:
        return bool(looking[0].recv(1))  # until the test ends

    monkeypatch.setattr(hub, "_answers", answers)
    monkeypatch.setattr(hub, "SECONDS", 0.05)
    assert not hub.reachable()
    for end in looking[::-1]:
        end.close()


def test_the_proxy_is_asked(closed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://hub.invalid")
    with server(200) as (proxy, asked):
        monkeypatch.setenv("HTTP_PROXY", proxy)
        assert hub.reachable()
        assert asked == ["HEAD http://hub.invalid/"]


def test_offline_nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with server(200) as (endpoint, asked):
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        assert not hub.reachable()
        with pytest.raises(CheckpointError, match=f"--pipeline {NAME} .*HF_HUB_OFFLINE is set.* or unset it"):
            load_pipeline(NAME)
        assert asked == []


@pytest.mark.parametrize(
    ("path", "is_name"),
    [
        ("owner/model", True),
        ("model", False),
        ("./owner/model", False),
        ("/owner/model", False),
        ("owner/model/unet", False),
        ("here/model", False),
    ],
)
def test_names_on_the_hub(path: str, is_name: bool, closed: str) -> None:
    Path("here").mkdir()
    assert (hub.on_hub(path), hub.out_of_reach(path)) == (is_name, is_name)


def draw_with(*options: str) -> None:
    prompt.main([*options, "--prompt", "a cat", "--device", "cpu"])


LOADERS: dict[str, tuple[str, Callable[[], Any]]] = {
    "pipeline": ("--pipeline", lambda: load_pipeline(NAME)),
    "base": ("--model.base.path", lambda: PretrainedBase(NAME)),
    "few steps": ("--pipeline", lambda: few_step_pipeline(NAME)),
    "evaluate": ("--model lcm:", lambda: few_step_pipeline(NAME, option="--model lcm:")),
    "lora": ("--lora", lambda: few_step_pipeline("somebody/base", {NAME: 1.0})),
    "clip": ("--clip", lambda: ClipScore(NAME)),
    "sample --pipeline": ("--pipeline", lambda: draw_with("--pipeline", NAME)),
    "sample --lora": ("--lora", lambda: draw_with("--pipeline", "somebody/base", "--lora", f"{NAME}:0.5")),
}


@pytest.mark.parametrize(("option", "load"), LOADERS.values(), ids=LOADERS)
def test_the_line_names_the_option_and_the_way_out(option: str, load: Callable[[], Any], closed: str) -> None:
    with pytest.raises(CheckpointError) as error:
        load()
    message = str(error.value)
    assert message.startswith(
        f"{option} {NAME} is not, or not completely, in the cache, and the hub cannot be reached:"
    )
    assert closed in message
    assert "Give a folder or file" in message
    assert "\n" not in message


@pytest.mark.parametrize(("option", "load"), LOADERS.values(), ids=LOADERS)
def test_a_hub_out_of_order_is_asked_once(
    option: str, load: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with server(503) as (endpoint, asked):
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        with pytest.raises(CheckpointError, match=f"{option} {NAME}"):
            load()
        assert asked == ["HEAD /"]


def cached(name: str) -> Path:
    """The folder of a name's files in the cache."""
    folder, commit = Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}", "0" * 40
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    (folder / "snapshots" / commit).mkdir(parents=True)
    return folder / "snapshots" / commit


@pytest.mark.parametrize("make", [tiny_sd, tiny_sdxl])
@pytest.mark.parametrize("offline", [False, True], ids=["no network", "HF_HUB_OFFLINE"])
def test_a_cached_model_loads_without_the_hub(
    make: Callable[[], Any], offline: bool, closed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    made = make()
    made.save_pretrained(cached("tiny/model"))
    assert same(output(load_pipeline("tiny/model")), output(made))


@pytest.mark.parametrize("name", ["pytorch_lora_weights.safetensors", "adapter_model.safetensors"])
def test_a_cached_lora_loads_without_the_hub(name: str, closed: str, tmp_path: Path) -> None:
    tuned = trained("sd15")
    file = save_lora(tuned.unet, type(tuned), cached("tiny/lora"))
    file.rename(file.with_name(name))
    file.with_name("adapter_config.json").write_text("{}")
    tiny_sd().save_pretrained(tmp_path / "base")
    pipe = few_step_pipeline(str(tmp_path / "base"), {"tiny/lora": 1.0})
    assert torch.allclose(output(pipe), output(tuned), atol=1e-5)


def test_a_cached_model_that_is_not_whole_says_so(closed: str) -> None:
    folder = cached("tiny/model")
    tiny_sd().save_pretrained(folder)
    next(folder.glob("unet/*.safetensors")).unlink()
    with pytest.raises(CheckpointError, match="--pipeline tiny/model is not, or not completely, in the cache"):
        load_pipeline("tiny/model")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_loading_warns_of_nothing(dtype: str, closed: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for folder in (tmp_path / "sd", cached("tiny/model")):
        tiny_sd().save_pretrained(folder)
    capfd.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipes: list[Any] = [load_pipeline(str(tmp_path / "sd"), dtype), load_pipeline("tiny/model", dtype)]
    assert {part.dtype for pipe in pipes for part in (pipe.unet, pipe.vae, pipe.text_encoder)} == {
        getattr(torch, dtype)
    }
    assert capfd.readouterr() == ("", "")


def takes_the_default_device() -> bool:
    with torch.device("meta"):
        made = torch.linspace(0, 1, 3), torch.arange(3), torch.zeros(1), torch.tensor(1.0)
    return all(tensor.is_meta for tensor in made)


def as_transformers_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use a default device while a function is replaced."""
    with monkeypatch.context() as patch:
        patch.setattr(torch, "linspace", partial(torch.linspace))
        with torch.device("meta"):
            torch.empty(0)


@pytest.fixture
def first_use() -> Iterator[None]:
    """Act as if no default device had been used in this process."""
    torch.utils._device._device_constructors.cache_clear()
    yield
    torch.utils._device._device_constructors.cache_clear()


def test_torch_would_forget_a_function_that_is_replaced_at_the_first_use(first_use, monkeypatch):
    as_transformers_loads(monkeypatch)
    assert not takes_the_default_device()


def test_a_model_that_is_loaded_first_leaves_the_default_device_alone(first_use, monkeypatch):
    with hub.loading():
        as_transformers_loads(monkeypatch)
    assert takes_the_default_device()


@pytest.mark.parametrize("make", [tiny_sd, tiny_sdxl])
def test_so_does_a_pipeline(make, first_use, tmp_path):
    make().save_pretrained(tmp_path)
    torch.utils._device._device_constructors.cache_clear()
    load_pipeline(str(tmp_path))
    assert takes_the_default_device()


def test_a_dry_run_after_a_text_encoder_was_loaded_mixes_no_devices(first_use, tmp_path, monkeypatch):
    tiny_sd().save_pretrained(tmp_path)
    torch.utils._device._device_constructors.cache_clear()
    load_pipeline(str(tmp_path))
    with torch.device("meta"):
        TruncatedStudent()
        JumpEmbedding(8)
