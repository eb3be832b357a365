"""Numbers that are not finite and memory that is full, in lines that fit the run."""

import math
import sys
from types import SimpleNamespace

import pytest
import torch

from cm_lightning.callbacks.save_last import SaveLast
from cm_lightning.cli import main
from cm_lightning.core.target_rate import ConstantRate
from cm_lightning.data.toy import Toy
from cm_lightning.errors import NonFiniteLossError
from cm_lightning.failures import describe
from cm_lightning.modules import faults
from cm_lightning.start import _smaller
from tests.helpers import RaiseRate, module, points, trainer
from tests.processes import CONF


@pytest.fixture(autouse=True)
def in_a_fresh_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["cm-lightning"])


def data(split="train", *bad):
    toy = Toy(num_points=60, batch_size=10)
    for image in bad:
        toy.split(split).samples[image] = float("nan")
    return toy


def stopped(toy, tmp_path, callbacks=(), **options):
    t = trainer(tmp_path, callbacks=[*callbacks], max_steps=9, limit_val_batches=0, **options)
    with pytest.raises(NonFiniteLossError) as caught:
        t.fit(module(optimizer=lambda p: torch.optim.SGD(p, lr=0.01)), toy)
    return str(caught.value)


@pytest.mark.parametrize("step", [1, 3, 5])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_images_that_are_not_finite_are_named_by_step_and_number(tmp_path, step, accumulate):
    bad = images_of(step, accumulate)[-2:]
    seen_first = min(s for s in range(step + 1) if set(bad) & set(images_of(s, accumulate)))
    named = [i for i in images_of(seen_first, accumulate) if i in bad]
    said = stopped(data("train", *bad), tmp_path, accumulate_grad_batches=accumulate)
    assert said == (
        f"the loss has not been finite since step {seen_first}, whose batch has training images that are not finite, "
        f"numbers {', '.join(map(str, named))}: repair or remove them"
    )


def images_of(step, accumulate):
    toy = data()
    toy.trainer = SimpleNamespace(world_size=1, accumulate_grad_batches=accumulate)
    return toy.images_of_step(step)


def test_the_images_of_a_step_are_those_of_its_batch():
    toy = data()
    batches = [toy.split("train")[toy.images_of_step(step)][0] for step in range(6)]
    for batch, (x, _) in zip(batches, toy.train_dataloader(), strict=True):
        torch.testing.assert_close(batch, x)
    toy.load_state_dict({"step": 4, "images": 33})
    assert toy.images_of_step(4)[7:] == images_of(4, 1)[:3]


DIVERGED = "the loss has not been finite since step 5: lower the learning rate, or "


@pytest.mark.parametrize(
    ("options", "callbacks", "advice"),
    [
        ({}, [], "set --trainer.gradient_clip_val=1; a checkpoint from before that step does not exist"),
        ({"gradient_clip_val": 1e9}, [], "--trainer.gradient_clip_val, which is 1e+09; a checkpoint from before"),
        (
            {"enable_checkpointing": True},
            [SaveLast(2)],
            "set --trainer.gradient_clip_val=1; {} is from before that step",
        ),
    ],
)
def test_the_advice_fits_the_run(tmp_path, options, callbacks, advice):
    said = stopped(data(), tmp_path, [RaiseRate(), *callbacks], **options)
    assert said.startswith(DIVERGED + advice.format(tmp_path / "checkpoints/last.ckpt"))


def test_modules_with_optimizers_of_their_own_are_not_told_to_clip(tmp_path):
    t = SimpleNamespace(gradient_clip_val=None, lightning_module=SimpleNamespace(automatic_optimization=False),
                        checkpoint_callbacks=[], ckpt_path=None)  # fmt: skip
    assert faults.of_the_weights(t, 3) == (
        "the weights are not finite at step 3, so no checkpoint of them is written: lower the learning rate; "
        "a checkpoint from before that step does not exist"
    )


def holder(**parts):
    """A module with these networks beside its backbone."""
    own = module()
    for name, part in parts.items():
        setattr(own, name, part)
    return own


@pytest.mark.parametrize("kind", ["parameter", "buffer"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("part", "said"),
    [("backbone", "the weights"), ("critic", "the weights of critic"), ("target", "the weights of target")],
)
def test_no_part_of_a_checkpoint_may_be_not_finite(tmp_path, part, said, value, kind):
    own = holder(target=torch.nn.BatchNorm1d(2), critic=torch.nn.BatchNorm1d(2))
    own.backbone.extra = torch.nn.BatchNorm1d(2)
    t = trainer(tmp_path)
    t.strategy.connect(own)
    own.trainer = t
    tensors = [*getattr(own, part).parameters()] if kind == "parameter" else [*getattr(own, part).buffers()]
    own.on_save_checkpoint({})
    tensors[0].data.view(-1)[0] = value
    with pytest.raises(NonFiniteLossError) as caught:
        own.on_save_checkpoint({})
    assert str(caught.value).startswith(f"{said} are not finite at step 0, so no checkpoint of them is written: lower")


def test_the_target_network_is_among_the_parts(tmp_path):
    own = module(target_rate=ConstantRate(0.9))
    t = trainer(tmp_path, max_steps=1)
    t.fit(own, points())
    next(own.followers[0].network.parameters()).data.view(-1)[0] = math.nan
    with pytest.raises(NonFiniteLossError, match=r"the weights of \w*target\w* are not finite at step 1, so no"):
        t.save_checkpoint(tmp_path / "x.ckpt")
    assert not (tmp_path / "x.ckpt").exists()


def test_a_validation_that_is_not_finite_names_its_images(tmp_path):
    t = trainer(tmp_path, max_steps=2, val_check_interval=1)
    toy = Toy(num_points=300, batch_size=10)
    for image in (12, 17, 25):
        toy.split("val").samples[image] = float("nan")
    with pytest.warns(UserWarning, match="val/loss") as caught:
        t.fit(module(), toy)
    (said, *_) = [str(warning.message) for warning in caught if "val/loss" in str(warning.message)]
    assert said == (
        "val/loss is not finite, first in batch 1, which has validation images that are not finite, numbers 12, 17: "
        "repair or remove them"
    )


def test_many_images_are_counted():
    assert faults._numbers(list(range(11))) == "numbers 0, 1, 2, 3, 4, 5, 6, 7 and 3 more"


@pytest.mark.parametrize(
    ("batch", "ranks", "accumulate", "said"),
    [
        (128, 1, 1, "--data.batch_size 64 --trainer.accumulate_grad_batches 2,"),
        (128, 8, 2, "--data.batch_size 64 --trainer.accumulate_grad_batches 4,"),
        (6, 2, 1, "--data.batch_size 2 --trainer.accumulate_grad_batches 3,"),
        (7, 1, 1, "--data.batch_size 1 --trainer.accumulate_grad_batches 7,"),
    ],
)
def test_a_batch_that_does_not_fit_is_told_in_which_parts_it_may(batch, ranks, accumulate, said):
    line = _smaller(batch, SimpleNamespace(world_size=ranks, accumulate_grad_batches=accumulate))
    assert line.startswith(f"out of memory with --data.batch_size {batch}: try ")
    assert said in line


def test_the_command_line_says_what_to_try(monkeypatch, capsys):
    def full(*_, **__):
        raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB.")

    monkeypatch.setattr("cm_lightning.modules.training.ConsistencyTraining.batch_loss", full)
    with pytest.raises(SystemExit) as stop:
        main(["fit", f"--config={CONF}/toy.yaml"])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert (
        "out of memory with --data.batch_size 40: try --data.batch_size 20 --trainer.accumulate_grad_batches 2" in said
    )


@pytest.mark.parametrize(
    "text",
    [
        "DataLoader worker (pid 123) is killed by signal: Killed. ",
        "DataLoader worker (pid(s) 12, 13) exited unexpectedly",
        "DataLoader worker (pid 5) is killed by signal: Bus error. It is possible that dataloader's workers are out of "
        "shared memory. Please try to raise your shared memory limit.",
    ],
)
def test_a_dead_process_of_the_loader_is_one_line(text):
    line = describe(RuntimeError(text))
    assert line.startswith("a process of the data loader died")
    assert "--data.num_workers" in line
