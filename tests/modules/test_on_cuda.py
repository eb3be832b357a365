"""Training and sampling on an accelerator, with tensors that have a device and no numbers.

An operation on tensors of two devices raises there, and so does a step that reads a number back from the device. The
gradients themselves need a real device.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

import cm_lightning as C
from cm_lightning.modules.frozen import Frozen
from tests.modules.every_method import OF_THE_BENCHMARK

SHAPE = (1, 8, 8)


#: How many steps its generator takes is drawn on the host.
ON_HOST = "DMD2"


def network(two_times: bool) -> nn.Module:
    embedding = C.TwoTimesEmbedding(8) if two_times else None
    return C.UNet(1, 8, (1, 2), 1, (), num_classes=3, dropout=0.1, noise_embedding=embedding)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTensorMode]:
    """Tensors without numbers; the device's generator is the CPU's."""
    monkeypatch.setattr("torch.cuda.get_rng_state", lambda device=None: torch.get_rng_state())
    monkeypatch.setattr("torch.cuda.set_rng_state", lambda state, device=None: None)
    return FakeTensorMode(allow_non_fake_inputs=True)


def to_cuda(module: nn.Module, fake: FakeTensorMode) -> None:
    """Put what ``module.to("cuda")`` would move there, and nothing else."""
    for part in module.modules():
        for name, p in part._parameters.items():
            if p is not None:
                part._parameters[name] = nn.Parameter(on_cuda(p, fake), p.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = on_cuda(buffer, fake)
        if isinstance(part, Frozen) and part.__dict__["held"] is not None:
            to_cuda(part.__dict__["held"], fake)


def on_cuda(tensor: torch.Tensor, fake: FakeTensorMode) -> torch.Tensor:
    with fake:
        return torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")


def made(method: str, fake: FakeTensorMode) -> Any:
    module = OF_THE_BENCHMARK[method](network, SHAPE)
    if hasattr(module, "hold_teacher"):
        module.setup("fit")  # which starts from the teacher
    to_cuda(module, fake)
    return module.train()


@pytest.mark.parametrize("method", [method for method in OF_THE_BENCHMARK if method != ON_HOST])
def test_a_loss_stays_on_its_device_and_reads_nothing_back(method, fake):
    module = made(method, fake)
    if method == "CTM":
        module.objective.balanced = False  # the balance takes gradients
    with fake:
        x, labels = torch.randn(4, *SHAPE, device="cuda"), torch.randint(3, (4,), device="cuda")
        loss = module.loss(x, labels)
    assert (loss.shape, loss.device.type, loss.requires_grad) == ((), "cuda", True)


@pytest.mark.parametrize("method", OF_THE_BENCHMARK)
def test_samples_are_drawn_on_the_device(method, fake):
    module = made(method, fake).eval()
    sigmas = module.default_sigmas(module.default_steps)  # plain numbers
    with fake, torch.no_grad():
        z, labels = torch.randn(2, *SHAPE, device="cuda"), torch.randint(3, (2,), device="cuda")
        images = module.generate(z, labels, sigmas, None)
    assert (images.shape, images.device.type) == ((2, *SHAPE), "cuda")


def test_what_reads_back_or_mixes_devices_is_found(fake):
    module = made("EDM", fake)
    with fake:
        x, labels = torch.randn(4, *SHAPE, device="cuda"), torch.randint(3, (4,), device="cuda")
        with (
            patch.object(module, "denoiser", lambda x, *_: x * float(x.mean())),
            pytest.raises(DataDependentOutputException),
        ):
            module.loss(x, labels)
        with (
            patch.object(module, "denoiser", lambda x, *_: x + torch.ones(4, *SHAPE)),
            pytest.raises(RuntimeError, match="cuda:0 and cpu"),
        ):
            module.loss(x, labels)
