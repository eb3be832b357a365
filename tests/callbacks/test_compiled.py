"""Networks compiled for training steps: the same numbers and names, and plain where the compiler does not reach."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from cm_lightning.callbacks.compiled import Compile, CompiledCall, missing_for
from cm_lightning.callbacks.ema import EMA
from cm_lightning.checkpoint import read_checkpoint
from cm_lightning.core.curriculum import ContinuousCurriculum
from cm_lightning.core.target_rate import ConstantRate
from cm_lightning.data.toy import Toy
from cm_lightning.errors import ConfigError
from cm_lightning.modules.loading import load_module
from tests.backbones.zoo import NETWORKS, SHAPE, awake
from tests.helpers import module, points, trainer
from tests.modules.every_method import OF_THE_BENCHMARK

IMAGES = (1, 4, 4)
#: The networks that are traced in a second or two; ADM, NCSN++, the U-Net and diffusers' are made of the same layers,
#: and EDM2 has a test of its own.
QUICK = ("DDPMpp", "DiT", "ResidualMLP")


class Tiny(nn.Module):
    """The smallest network that every method takes."""

    num_classes, bottleneck_width = 3, 4

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.noise, self.classes = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(1, 4), nn.Embedding(4, 4)
        self.dropout, self.head = nn.Dropout(0.2), nn.Conv2d(4, 1, 3, padding=1)

    def bottleneck(self, x: Tensor, noise_label: Tensor, class_label: Tensor | None = None) -> Tensor:
        condition = self.noise(noise_label.reshape(len(x), -1).sum(1, keepdim=True))  # of one time or two
        if class_label is not None:
            condition = condition + self.classes(class_label)
        return self.dropout((self.stem(x) + condition[:, :, None, None]).tanh())

    def forward(self, x: Tensor, noise_label: Tensor, class_label: Tensor | None = None) -> Tensor:
        return self.head(self.bottleneck(x, noise_label, class_label))


@pytest.fixture(scope="module", autouse=True)
def forget_what_was_compiled() -> Iterator[None]:
    yield
    torch._dynamo.reset()


@contextmanager
def a_step(module: Any, callback: Compile | None) -> Iterator[None]:
    """What a Trainer has the callback do around a training step."""
    if callback is None:
        yield
        return
    callback.prepare(module)
    callback.begin_step()
    yield
    callback.close()


def made(method: str) -> Any:
    torch.manual_seed(0)
    m = OF_THE_BENCHMARK[method](lambda two_times: Tiny(), IMAGES)
    if hasattr(m, "hold_teacher"):
        m.setup("fit")  # which starts from the teacher
    return m.train()


def loss_and_gradients(m: Any, callback: Compile | None) -> dict[str, Tensor]:
    torch.manual_seed(1)
    x, labels = torch.randn(4, *IMAGES), torch.randint(3, (4,))
    with a_step(m, callback):
        loss = m.loss(x, labels)
        loss.backward()
    return {"loss": loss.detach(), **{name: p.grad for name, p in m.named_parameters() if p.grad is not None}}


@pytest.mark.parametrize("method", OF_THE_BENCHMARK)
def test_a_compiled_step_has_the_loss_and_the_gradients_of_a_plain_one(method):
    plain = loss_and_gradients(made(method), None)
    callback = Compile("aot_eager" if method == "CTM" else "eager")  # CTM takes gradients through a graph it keeps
    compiled = loss_and_gradients(made(method), callback)
    torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-5)
    assert not any(call.failed for call in callback.calls)


def test_what_a_network_does_before_a_pass_stays_outside_of_the_graph():
    ours, theirs = (awake(NETWORKS["EDM2"]()) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    x, t = torch.randn(2, *SHAPE), torch.rand(2)
    call = CompiledCall(ours, "_compiled_call_impl", ours._call_impl, "eager")
    call.enter()
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for network in (ours, theirs):
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        for _ in range(3):  # each step changes the version of the weights
            network(x, t).square().mean().backward()
            optimizer.step()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before + 1
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())


def test_an_edm2_that_is_compiled_by_hand_restores_its_norms_too():
    ours, theirs = (awake(NETWORKS["EDM2"]()) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    x, t = torch.randn(2, *SHAPE), torch.rand(2)
    for network, call in ((ours, torch.compile(ours, backend="eager")), (theirs, theirs)):
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        for _ in range(2):
            call(x, t).square().mean().backward()
            optimizer.step()
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())


class Loss(nn.Module):
    """What a strategy wraps: a module whose forward is the training step."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        return self.inner.loss(x, labels)


def test_a_compiled_step_within_ddp_has_the_gradients_of_a_plain_one():
    plain = loss_and_gradients(made("EDM"), None)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        m = made("EDM")
        wrapped = nn.parallel.DistributedDataParallel(Loss(m))
        torch.manual_seed(1)
        x, labels = torch.randn(4, *IMAGES), torch.randint(3, (4,))
        with a_step(m, Compile("eager")):
            wrapped(x, labels).backward()
    finally:
        dist.destroy_process_group()
    gradients = {name: p.grad for name, p in m.named_parameters()}
    torch.testing.assert_close(gradients, {n: g for n, g in plain.items() if n != "loss"}, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", QUICK)
def test_a_network_of_the_zoo_is_one_graph(name):
    network = awake(NETWORKS[name](num_classes=3) if name != "ResidualMLP" else NETWORKS[name]())
    x, t = torch.randn(2, *SHAPE), torch.rand(2)
    labels = None if name == "ResidualMLP" else torch.tensor([0, 3])
    plain = network(x, t, labels)
    network.compile(backend="eager", fullgraph=True)  # which raises where the graph breaks
    torch.testing.assert_close(network(x, t, labels), plain)


def fit(tmp_path: Any, name: str, steps: int, compiled: bool, resume: str | None = None) -> dict[str, Any]:
    """A run's checkpoint."""
    callbacks: list[Any] = [Compile("eager")] if compiled else []
    callbacks += [EMA(0.9), ModelCheckpoint(tmp_path / name, "x", every_n_train_steps=steps)]
    m = module(
        curriculum=ContinuousCurriculum(stages=1),  # the same for all lengths of a run
        target_rate=ConstantRate(0.9),
        optimizer=lambda p: torch.optim.Adam(p, lr=0.01),
    )
    run = trainer(tmp_path, callbacks=callbacks, max_steps=steps, enable_checkpointing=True, limit_val_batches=0)
    run.fit(m, Toy(num_points=60, batch_size=10), ckpt_path=resume and tmp_path / resume / "x.ckpt")
    return read_checkpoint(tmp_path / name / "x.ckpt")


def weights(checkpoint: dict[str, Any]) -> list[dict[str, Tensor]]:
    """The weights and their average."""
    return [checkpoint["state_dict"], checkpoint["callbacks"]["EMA(attribute=backbone, decay=0.9)"]["average"]]


def test_compiled_and_plain_runs_resume_one_another(tmp_path):
    whole = fit(tmp_path, "whole", 4, compiled=False)
    for first in (True, False):
        half = fit(tmp_path, f"half {first}", 2, compiled=first)
        assert half["state_dict"].keys() == whole["state_dict"].keys()
        end = fit(tmp_path, f"end {first}", 4, not first, f"half {first}")
        torch.testing.assert_close(weights(end), weights(whole), rtol=1e-4, atol=1e-6)
    assert load_module(tmp_path / "half True/x.ckpt").sample(3).shape == (3, 2)


class Watch(L.Callback):
    """Notes whether the backbone is compiled, by hook."""

    def __init__(self) -> None:
        self.seen: dict[str, set[bool]] = {"step": set(), "validation": set(), "after a step": set()}

    def note(self, when: str, m: Any) -> None:
        self.seen[when].add(m.backbone._compiled_call_impl is not None)

    def on_before_zero_grad(self, trainer: Any, m: Any, *_: Any) -> None:
        self.note("step", m)

    def on_validation_batch_start(self, trainer: Any, m: Any, *_: Any) -> None:
        self.note("validation", m)

    def on_train_batch_end(self, trainer: Any, m: Any, *_: Any) -> None:
        self.note("after a step", m)


def test_networks_are_plain_outside_of_steps_and_after_a_failure(tmp_path):
    watch, callback = Watch(), Compile("eager")
    m = module()
    trainer(tmp_path, callbacks=[callback, watch], max_steps=2, val_check_interval=1).fit(m, points(), points())
    assert watch.seen == {"step": {True}, "validation": {False}, "after a step": {False}}
    callback.prepare(m)
    callback.begin_step()
    assert m.backbone._compiled_call_impl is not None
    callback.on_exception(None, m, KeyboardInterrupt())
    assert m.backbone._compiled_call_impl is None


def backend_that_fails(graph: Any, inputs: Any) -> Any:
    raise ZeroDivisionError("no such kernel")


def test_a_network_in_which_the_compiler_fails_stays_plain_with_one_line():
    network = nn.Linear(2, 2)
    call = CompiledCall(network, "_compiled_call_impl", network._call_impl, backend_that_fails)
    x = torch.randn(3, 2)
    call.enter()
    with pytest.warns(UserWarning, match="callbacks.compile: Linear stays uncompiled.*no such kernel") as told:
        first, second = network(x), network(x)
    assert len(told) == 1
    assert "\n" not in str(told[0].message)
    assert torch.equal(first, second)
    call.leave()
    assert torch.equal(network(x), first)


@pytest.mark.parametrize(("cxx", "named"), [(None, "g++|clang|cl"), ("no-such-compiler", "no-such-compiler")])
def test_without_a_compiler_a_run_continues_uncompiled(cxx, named, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    if cxx:
        monkeypatch.setenv("CXX", cxx)
    m, callback = module(), Compile()
    with pytest.warns(UserWarning, match=rf"callbacks.compile: there is no C\+\+ compiler \(({named})") as told:
        callback.prepare(m)
    assert len(told) == 1
    callback.begin_step()
    assert m.backbone._compiled_call_impl is None


def test_a_gpu_needs_triton(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert missing_for(torch.device("cuda")) == "triton"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    assert missing_for(torch.device("cuda")) is None


def test_an_unknown_backend_is_refused():
    with pytest.raises(ConfigError, match="Compile: no backend inducter; perhaps inductor is meant; choose one of"):
        Compile("inducter")


def test_a_module_of_another_package_is_refused():
    with pytest.raises(ConfigError, match="LightningModule is not a module of this suite"):
        Compile("eager").on_fit_start(None, L.LightningModule())


@pytest.mark.parametrize(
    ("method", "said"),
    [("sCT", "forward-mode derivatives stay uncompiled"), ("CTM", "the student stays uncompiled"), ("ECT", "")],
)
def test_what_stays_plain_is_told(method, said, monkeypatch):
    told: list[str] = []
    monkeypatch.setattr("cm_lightning.callbacks.compiled.rank_zero_info", told.append)
    m, callback = made(method), Compile("eager")
    callback.prepare(m)
    # compiled and plain passes of one step draw the same dropout masks
    assert torch._inductor.config.fallback_random == bool(said)
    assert torch._functorch.config.donated_buffer == (method != "CTM")
    callback.close()
    assert (torch._inductor.config.fallback_random, torch._functorch.config.donated_buffer) == (False, True)
    assert said in "".join(told)
    assert bool(told) == bool(said)
    compiled = [call.network for call in callback.calls]
    assert (m.backbone in compiled) == (method != "CTM")


def test_all_networks_of_a_step_are_compiled():
    m = made("Lightning")
    teacher, before, critic = m.teacher.backbone, m.before, m.critic
    networks = m.networks()
    for network in (m.backbone, teacher, before, critic.encoder, critic.one, critic.two):
        assert sum(network is other for other in networks) == 1
    m = made("CT with a target network")
    assert [type(network) for network in m.networks()] == [Tiny, Tiny]
    assert m.networks()[1] is m.target
