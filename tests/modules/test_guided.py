"""Guided consistency training: its guide, the coupling of noise and images, and runs."""

from itertools import permutations
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from cm_lightning.backbones.mlp import ResidualMLP
from cm_lightning.checkpoint import read_checkpoint
from cm_lightning.cli import main
from cm_lightning.core.curriculum import Clock, ContinuousCurriculum, WarmUp
from cm_lightning.core.residual import SquaredError
from cm_lightning.core.target_rate import ConstantRate
from cm_lightning.core.weighting import edm_weight
from cm_lightning.errors import ConfigError
from cm_lightning.modules.coupling import OptimalTransport
from cm_lightning.modules.guided import GuidedConsistencyTraining
from cm_lightning.modules.loading import load_module
from tests.helpers import Dropout, trainer

CURRICULUM = WarmUp(ContinuousCurriculum(stages=2), fraction=0.5)


def network(num_classes=2):
    torch.manual_seed(1)
    net = ResidualMLP(2, 16, 2, num_classes=num_classes)
    torch.nn.init.normal_(net.head.weight)
    return net


def guided(**options):
    given = {"backbone": network(), "image_shape": (2,), "curriculum": CURRICULUM, **options}
    return GuidedConsistencyTraining(**given)


def points(n=64, batch_size=16):
    x = torch.randn(n, 2, generator=torch.Generator().manual_seed(5))
    return DataLoader(TensorDataset(x, torch.arange(n) % 2), batch_size=batch_size)


def followed(m, tmp_path, steps):
    """The weights of the student and of the guide after each of some steps."""
    student, guide, follow = [], [], m.followers[-1].follow

    def noted(clock):
        follow(clock)
        student.append(m.backbone.head.weight.detach().clone())
        guide.append(m.guide.head.weight.clone())

    m.followers[-1].follow = noted
    trainer(tmp_path, max_steps=steps).fit(m, points())
    return student, guide


def test_the_guide_averages_the_warm_up_and_is_then_frozen(tmp_path):
    m = guided(guide_decay=0.6)
    average = m.backbone.head.weight.detach().clone()
    student, guide = followed(m, tmp_path, 6)
    for step in range(6):
        if step < 3:
            mu = min(0.6, (1 + step) / (10 + step))
            average = mu * average + (1 - mu) * student[step]
        torch.testing.assert_close(guide[step], average)
    assert not torch.equal(student[5], student[2])


def test_with_first_weights_and_no_warm_up_the_guide_is_the_model_that_it_starts_from(tmp_path):
    t = trainer(tmp_path, max_steps=2)
    t.fit(first := guided(), points())
    t.save_checkpoint(tmp_path / "first.ckpt")
    m = guided(curriculum=ContinuousCurriculum(stages=2), start_from=str(tmp_path / "first.ckpt"))
    _, guide = followed(m, tmp_path, 3)
    for held in guide:
        assert torch.equal(held, first.backbone.head.weight)


def test_the_guide_is_neither_trained_nor_dropped_out():
    m = guided()
    trained = {id(p) for group in m.configure_optimizers().param_groups for p in group["params"]}
    assert trained == {id(p) for p in m.backbone.parameters()}
    m.guide = Dropout()
    m.train()
    m.estimate(torch.randn(4, 2), torch.ones(4), torch.zeros(4).long())
    assert bool((m.guide.masks[0] == 1).all())


def test_guidance_moves_the_image_by_the_difference_of_the_guide_s_estimates():
    m, x, z, t = guided(w=0.7), torch.randn(5, 2), torch.randn(5, 2), torch.linspace(0.5, 3, 5)
    c, q, x_t = torch.tensor([0, 1, 0, 1, 2]), t / 3, x + t[:, None] * z
    with torch.no_grad():
        moved = m.estimate(x_t, t, c) - m.estimate(x_t, t, torch.full_like(c, 2))
        found = m.objective.trajectory.advance(x, z, x_t, t, q, c)
    torch.testing.assert_close(found, x + q[:, None] * z + (1 - q / t)[:, None] * 0.7 * moved)
    torch.testing.assert_close(found[4], (x + q[:, None] * z)[4])  # a dropped label: the data alone
    assert float(moved[:4].abs().amax(1).min()) > 1e-3


def test_the_warm_up_s_loss_is_edm_s():
    m = guided(denoising=SquaredError())
    f, x, c, clock = m.map(), torch.randn(8, 2), torch.zeros(8).long(), Clock(0, 10)
    loss = m.objective.loss(f, f, x, c, clock, torch.Generator().manual_seed(3))
    (t, _, r), _, x_t = m.objective.draw(x, c, clock, torch.Generator().manual_seed(3))
    error = (f(x_t, t, r, c) - x).square().mean(1)
    torch.testing.assert_close(loss, (edm_weight(t) * error).mean())


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"backbone": network(0)}, "class-conditional backbone"),
        ({"label_dropout": 0.0}, "label_dropout above 0"),
        ({"curriculum": ContinuousCurriculum()}, "begin with WarmUp, or set start_from"),
        ({"w": -1.0}, "w must be"),
        ({"guide_decay": 1.0}, "guide_decay must be"),
    ],
)
def test_what_cannot_be_guided_is_refused(options, line):
    with pytest.raises(ConfigError, match=line):
        guided(**options)


def test_a_run_continues_across_the_end_of_its_warm_up_to_the_bit(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fit = [
        "fit", f"--config={Path(__file__).parents[1] / 'conf/toy.yaml'}", "--model=GuidedConsistencyTraining",
        "--model.image_shape=[2]", "--model.backbone=ResidualMLP", "--model.backbone.width=16",
        "--model.backbone.num_classes=2", "--model.coupling=OptimalTransport", "--trainer.max_steps=9",
    ]  # fmt: skip

    def run(name, *own):
        main([*fit, f"--trainer.logger.init_args.version={name}", *own])
        return next(Path("runs").rglob(f"{name}/checkpoints/last.ckpt"))

    whole = read_checkpoint(run("whole"))
    for step in (2, 5):  # within the warm-up of three steps, and after it
        half = run(f"half{step}", "--callbacks.stop=tests.helpers.InterruptAt", f"--callbacks.stop.step={step}")
        rest = read_checkpoint(run(f"rest{step}", f"--ckpt_path={half}"))
        torch.testing.assert_close(rest["state_dict"], whole["state_dict"], rtol=0, atol=0)
    assert any(name.startswith("guide.") for name in whole["state_dict"])


def test_a_module_built_in_python_loads_from_its_checkpoint(tmp_path):
    m = guided(coupling=OptimalTransport(), target_rate=ConstantRate(0.5))
    t = trainer(tmp_path, max_steps=4)
    t.fit(m, points())
    t.save_checkpoint(tmp_path / "x.ckpt")
    again = load_module(tmp_path / "x.ckpt")
    one, two = (n.sample(4, 2, generator=torch.Generator().manual_seed(0)) for n in (m.eval(), again))
    assert torch.equal(one, two)


def cost(x, z):
    return float((x - z).square().sum())


def test_the_pairing_is_the_cheapest_one():
    x, z = torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(0)).unbind(0)
    best = min(cost(x, z[list(order)]) for order in permutations(range(5)))
    assert cost(x, OptimalTransport()(x, z, None)) == pytest.approx(best)
    assert best < cost(x, z)


def test_images_that_are_not_finite_are_left_to_the_check_of_the_loss():
    x, z = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0)).unbind(0)
    x[1], x[2, 0] = torch.nan, torch.inf
    found = OptimalTransport()(x, z, torch.tensor([0, 0, 1, 1, 1]))
    assert {tuple(row) for row in found.tolist()} == {tuple(row) for row in z.tolist()}


def test_noise_is_paired_within_its_class_alone():
    c = torch.tensor([0, 1, 2, 0, 1, 2, 2, 0])
    x, z = torch.randn(2, 8, 3, generator=torch.Generator().manual_seed(0)).unbind(0)
    x = x + 100 * c[:, None]  # across classes other pairs would be cheaper
    z[2] += 500
    found = OptimalTransport()(x, z, c)
    for label in range(3):
        own = c == label
        torch.testing.assert_close(found[own], OptimalTransport()(x[own], z[own], None))
        assert {tuple(row) for row in found[own].tolist()} == {tuple(row) for row in z[own].tolist()}
