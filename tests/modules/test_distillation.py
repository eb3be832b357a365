import math

import pytest
import torch

from cm_lightning.backbones.mlp import ResidualMLP
from cm_lightning.callbacks.ema import EMA
from cm_lightning.core.curriculum import ConstantLevels, ContinuousCurriculum, GridCurriculum, WarmUp
from cm_lightning.core.distance import L2
from cm_lightning.core.ode_sampler import DDIM, Euler
from cm_lightning.core.oracle import GaussianOracle
from cm_lightning.core.parameterization import EDM, BoundaryShifted
from cm_lightning.core.target_rate import ConstantRate
from cm_lightning.core.weighting import Uniform
from cm_lightning.errors import CheckpointError, ConfigError
from cm_lightning.modules.diffusion import DiffusionModule
from cm_lightning.modules.distillation import ConsistencyDistillation
from tests.helpers import module, points, trainer
from tests.modules.test_consistency import ExactGaussian, Fixed, loss_at


class ExactDenoiser(torch.nn.Module):
    """The network that makes EDM's parameterization the exact denoiser of N(0, s^2) data."""

    def __init__(self, oracle):
        super().__init__()
        self.oracle, self.unused = oracle, torch.nn.Parameter(torch.zeros(1))

    def forward(self, x, noise_label, class_label=None):
        sigma = (4 * noise_label).exp()
        c = EDM().coefficients(sigma)
        noisy = x / c.c_in[:, None]
        return (self.oracle.denoiser(noisy, sigma) - c.c_skip[:, None] * noisy) / c.c_out[:, None] + 0 * self.unused


def teacher(**options):
    torch.manual_seed(2)
    return DiffusionModule(**{"backbone": ResidualMLP(2, 16, 2), "image_shape": (2,), **options})


def student(the_teacher, **options):
    torch.manual_seed(3)
    return ConsistencyDistillation(
        **{"backbone": ResidualMLP(2, 16, 2), "image_shape": (2,), "teacher": the_teacher, **options}
    )


@pytest.mark.parametrize(("solver", "order"), [("euler", 4), ("heun", 6)])
def test_with_the_exact_teacher_the_loss_of_the_exact_function_vanishes_at_the_solver_s_order(tmp_path, solver, order):
    """A step of order p misses the trajectory by h^(p+1), h the levels' spacing; l2 squares that."""
    oracle, p = GaussianOracle(0.5), BoundaryShifted()
    x, losses = 0.5 * torch.randn(4096, 2, dtype=torch.float64), []
    for n in (40, 80):
        m = student(
            teacher(backbone=ExactDenoiser(oracle)),
            backbone=ExactGaussian(p, oracle),
            solver=solver,
            start_from_teacher=False,
            curriculum=GridCurriculum(ConstantLevels(n)),
        )
        losses.append(loss_at(m, 0, x).item())
    assert math.log2(losses[0] / losses[1]) == pytest.approx(order, abs=0.6)


def test_ct_s_gradient_approaches_cd_s_as_the_steps_shrink(tmp_path):
    """CM, Theorem 2: in the mean over images and noise, for a gap t - r that goes to 0."""
    x = 0.5 * torch.randn(100_000, 2, generator=torch.Generator().manual_seed(1))
    exact, network = teacher(backbone=ExactDenoiser(GaussianOracle(0.5))), ResidualMLP(2, 16, 2)
    torch.nn.init.normal_(network.head.weight, std=0.3)

    def gradient(m, r):
        o = m.objective
        o.curriculum, o.distance, o.weighting = Fixed(1.0, r), L2(), Uniform()
        m.backbone.load_state_dict(network.state_dict())
        loss_at(m, 0, x).backward()
        return torch.cat([p.grad.flatten() for p in m.backbone.parameters()])

    def difference(r):
        ct, cd = gradient(module(), r), gradient(student(exact, start_from_teacher=False), r)
        return ((ct - cd).norm() / cd.norm()).item()

    assert difference(0.95) < 0.3 * difference(0.2)


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_levels_may_come_down_to_zero(tmp_path, solver):
    curriculum = WarmUp(ContinuousCurriculum(stages=2))
    m = student(teacher(), solver=solver, start_from_teacher=False, curriculum=curriculum)
    for step in (0, 40, 90):
        assert torch.isfinite(loss_at(m, step, torch.randn(64, 2)))


def test_diffusion_loss_is_edm_s(tmp_path):
    m = teacher()
    torch.nn.init.normal_(m.backbone.head.weight)
    x = torch.randn(8, 2)
    loss = m.loss(x, None, torch.Generator().manual_seed(0))
    g = torch.Generator().manual_seed(0)
    sigma = (torch.randn(8, generator=g) * 1.2 - 1.2).exp()
    z = torch.randn(8, 2, generator=g)
    error = (m.denoiser(x + sigma[:, None] * z, sigma) - x).square().mean(1)
    assert loss.item() == pytest.approx((((sigma**2 + 0.25) / (sigma * 0.5) ** 2) * error).mean().item(), rel=1e-5)


def test_the_teacher_s_samples():
    m = teacher(backbone=ExactDenoiser(GaussianOracle(0.5)))
    assert m.sample(4000, 35).std().item() == pytest.approx(0.5, abs=0.05)  # cut at 1
    assert teacher(sampler=Euler()).sample(3, 7).shape == (3, 2)
    assert teacher(sampler=DDIM()).sample(3, 50).shape == (3, 2)
    with pytest.raises(ConfigError, match="odd"):
        m.sample(1, 4)


def test_the_teacher_stays_as_it_is_and_out_of_everything(tmp_path):
    the_teacher = teacher()
    before = {name: tensor.clone() for name, tensor in the_teacher.state_dict().items()}
    m, ema = student(the_teacher, target_rate=ConstantRate(0.5)), EMA(0.5)
    t = trainer(tmp_path, callbacks=[ema])
    t.fit(m, points())
    torch.testing.assert_close(the_teacher.state_dict(), before, rtol=0, atol=0)
    assert not the_teacher.training
    assert {name.split(".")[0] for name in m.state_dict()} == {"backbone", "target"}
    optimized = {id(p) for group in t.optimizers[0].param_groups for p in group["params"]}
    assert optimized == {id(p) for p in m.backbone.parameters()}
    assert set(ema.average) == set(m.backbone.state_dict())


def test_the_student_starts_from_the_teacher_or_not(tmp_path):
    the_teacher = teacher()
    for start, equal in ((True, True), (False, False)):
        m = student(the_teacher, start_from_teacher=start, target_rate=ConstantRate(0.5))
        m.trainer = trainer(tmp_path)
        m.setup("fit")
        weights = the_teacher.backbone.stem.weight
        assert torch.equal(m.backbone.stem.weight, weights) == equal
        assert torch.equal(m.target.stem.weight, m.backbone.stem.weight)
    with pytest.raises(ConfigError, match="start_from_teacher to false"):
        trainer(tmp_path).fit(student(the_teacher, backbone=ResidualMLP(2, 8, 2)), points())
    with pytest.raises(ConfigError, match="cannot be combined"):
        student(the_teacher, start_from="x.ckpt")


def test_unsuitable_teachers_are_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"no checkpoint at .*nowhere.ckpt"):
        trainer(tmp_path).fit(student(str(tmp_path / "nowhere.ckpt")), points())
    three = teacher(backbone=ResidualMLP(3, 16, 2), image_shape=(3,))
    with pytest.raises(ConfigError, match=r"teacher draws no classes of shape \(3,\)"):
        trainer(tmp_path).fit(student(three), points())
    assert student(str(tmp_path / "nowhere.ckpt")).sample(2).shape == (2, 2)  # sampling needs no teacher
