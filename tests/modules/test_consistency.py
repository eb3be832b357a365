import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from cm_lightning.backbones.mlp import ResidualMLP
from cm_lightning.callbacks.ema import EMA
from cm_lightning.core.curriculum import (
    Clock,
    ConstantLevels,
    ContinuousCurriculum,
    Curriculum,
    GridCurriculum,
    WarmUp,
    ect_r,
    to_the_end,
)
from cm_lightning.core.distance import L2
from cm_lightning.core.noise import LogNormal
from cm_lightning.core.oracle import GaussianOracle
from cm_lightning.core.parameterization import BoundaryShifted
from cm_lightning.core.random import Replay
from cm_lightning.core.schedule import HoldThenCosine
from cm_lightning.core.target_rate import ConstantRate
from cm_lightning.core.weighting import Uniform
from cm_lightning.errors import CheckpointError, ConfigError, NonFiniteLossError
from cm_lightning.modules.first_failure import FirstFailure
from tests.helpers import Dropout, module, points, trainer


class Fixed(Curriculum):
    """The same pair at every step."""

    def __init__(self, t: float, r: float) -> None:
        self.t, self.r = t, r

    def draw(self, n, clock, device="cpu", generator=None):
        return to_the_end(torch.full((n,), self.t), torch.full((n,), self.r))


class ExactGaussian(nn.Module):
    """The network that makes the parameterization the exact consistency function of N(0, s^2) data."""

    def __init__(self, parameterization: BoundaryShifted, oracle: GaussianOracle) -> None:
        super().__init__()
        self.parameterization, self.oracle = parameterization, oracle
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, x, noise_label, class_label=None):
        sigma = (4 * noise_label).exp()
        c = self.parameterization.coefficients(sigma)
        noisy = x / c.c_in[:, None]
        exact = self.oracle.consistency(noisy, sigma)
        return (exact - c.c_skip[:, None] * noisy) / c.c_out[:, None].clamp(min=1e-12) + 0 * self.unused


def loss_at(m, step, x, seed=0):
    """The loss of the module at step ``step`` of 100, without a Trainer."""
    generator = torch.Generator().manual_seed(seed)
    return m.objective.loss(m.map(), m.map(m.target), x, None, Clock(step, 100), generator)


def test_loss_at_the_oracle_vanishes_with_the_square_of_the_gap(tmp_path):
    oracle, p = GaussianOracle(0.5), BoundaryShifted()
    x = 0.5 * torch.randn(4096, 2, dtype=torch.float64)
    losses = []
    for n in (40, 80, 160):
        m = module(
            backbone=ExactGaussian(p, oracle), curriculum=GridCurriculum(ConstantLevels(n)),
            distance=L2(), weighting=Uniform(), parameterization=p,
        )  # fmt: skip
        losses.append(loss_at(m, 0, x).item())
    assert math.log2(losses[0] / losses[1]) == pytest.approx(2, abs=0.2)
    assert math.log2(losses[1] / losses[2]) == pytest.approx(2, abs=0.2)
    assert losses[2] < 1e-3


def test_loss_is_the_papers_formula(tmp_path):
    m = module(curriculum=Fixed(2.0, 1.5))
    for parameter in m.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(8, 2)
    loss = m.loss(x, None, torch.Generator().manual_seed(7))
    z = torch.randn(8, 2, generator=torch.Generator().manual_seed(7))
    f_t = m.consistency_function(x + 2 * z, torch.full((8,), 2.0))
    f_r = m.consistency_function(x + 1.5 * z, torch.full((8,), 1.5))
    c = 0.00054 * math.sqrt(2)
    expected = ((((f_t - f_r) ** 2).sum(1) + c**2).sqrt() - c).mean() / (2.0 - 1.5)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    # the gradient is that of f_t alone
    loss.backward()
    got = m.backbone.head.weight.grad.clone()
    m.zero_grad()
    (((((f_t - f_r.detach()) ** 2).sum(1) + c**2).sqrt() - c).mean() / 0.5).backward()
    torch.testing.assert_close(got, m.backbone.head.weight.grad, rtol=1e-4, atol=1e-6)


def test_the_two_passes_share_their_dropout_mask_and_steps_do_not(tmp_path):
    net = Dropout()
    m = module(backbone=net, curriculum=Fixed(2.0, 1.0)).train()
    m.loss(torch.randn(4, 2), None)
    m.loss(torch.randn(4, 2), None)
    assert torch.equal(net.masks[0], net.masks[1])
    assert torch.equal(net.masks[2], net.masks[3])
    assert not torch.equal(net.masks[0], net.masks[2])


def test_replay_covers_the_generator_of_an_accelerator(monkeypatch):
    class Device:
        state = torch.tensor([1], dtype=torch.uint8)

        def get_rng_state(self, device):
            return self.state.clone()

        def set_rng_state(self, state, device):
            self.state = state.clone()

    fake = Device()
    monkeypatch.setattr(torch, "get_device_module", lambda device: fake)
    replay = Replay(torch.device("cuda", 0))
    fake.state = torch.tensor([2], dtype=torch.uint8)  # the student's pass drew numbers
    with replay:
        assert fake.state.item() == 1
    assert fake.state.item() == 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_dropout_masks_are_shared_on_a_gpu(tmp_path):
    net = Dropout()
    m = module(backbone=net, curriculum=Fixed(2.0, 1.0)).train().cuda()
    m.loss(torch.randn(4, 2, device="cuda"), None)
    assert torch.equal(net.masks[0], net.masks[1])


def test_where_r_is_zero_skipping_the_target_pass_changes_nothing(tmp_path):
    class Evaluated(WarmUp):
        def target_is_data(self, clock):
            return False

        def draw(self, n, clock, device="cpu", generator=None):
            t = self.density.sample(n, device, generator)
            return to_the_end(t, torch.zeros_like(t))

    x = torch.randn(32, 2)
    losses = [loss_at(module(curriculum=kind(ContinuousCurriculum(), 0.5)), 0, x) for kind in (WarmUp, Evaluated)]
    assert losses[0].item() == losses[1].item()


def test_target_network_is_the_average_that_mu_says(tmp_path):
    m = module(target_rate=ConstantRate(0.75), optimizer=lambda p: torch.optim.SGD(p, lr=0.1))
    students = []

    def note(*_):
        students.append(m.backbone.head.bias.detach().clone())

    m.on_before_zero_grad = note
    start = m.target.head.bias.clone()
    t = trainer(tmp_path, max_steps=3)
    t.fit(m, points())
    note()
    expected = start
    for student in students[-3:]:
        expected = 0.75 * expected + 0.25 * student
    torch.testing.assert_close(m.target.head.bias, expected)
    assert not torch.equal(m.target.head.bias, m.backbone.head.bias)
    assert not any(p.requires_grad for p in m.target.parameters())
    optimized = [p for group in t.optimizers[0].param_groups for p in group["params"]]
    assert {id(p) for p in optimized} == {id(p) for p in m.backbone.parameters()}


def slope_learned_in_the_limit(t: float, stage: int) -> float:
    """f(x_t) = a(t) x_t, where ECT ends for Gaussian data and l2: a(t) = a(r) Cov(x_r, x_t) / Var(x_t), a(0) = 1."""
    if t == 0:
        return 1.0
    r = ect_r(torch.tensor(t, dtype=torch.float64), stage).item()
    return slope_learned_in_the_limit(r, stage) * (0.25 + r * t) / (0.25 + t**2)


def test_training_on_a_gaussian_ends_at_the_fixed_point_of_its_curriculum(tmp_path):
    stage = 1
    m = module(
        backbone=ResidualMLP(2, 64, 2),
        optimizer=lambda p: torch.optim.Adam(p, lr=1e-2),
        lr_scheduler=HoldThenCosine(10, 0.5, 1.0),
        curriculum=ContinuousCurriculum(LogNormal(0.5, 1.5), stages=1, q=2.0 ** (stage + 1)),
        distance=L2(),
        weighting=Uniform(),
    )
    trainer(tmp_path, max_steps=600).fit(m, points(16_384, batch_size=128))
    for t in (0.25, 0.5, 1.0, 2.0):  # at larger t the limit oscillates with the length of the chain t -> r -> ...
        x_t = math.sqrt(t**2 + 0.25) * torch.randn(4000, 2)
        f = m.consistency_function(x_t, torch.full((4000,), t))
        slope = (f * x_t).mean() / x_t.square().mean()
        # in units of the exact slope s / sqrt(s^2 + t^2): 1 for a perfect consistency function, 0 for a dead one
        scale = math.sqrt(t**2 + 0.25) / 0.5
        assert slope.item() * scale == pytest.approx(slope_learned_in_the_limit(t, stage) * scale, abs=0.08)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(tmp_path):
    m = module()
    original = m.loss

    def loss(*args):
        value = original(*args)
        return value * float("nan") if m.global_step >= 3 else value

    m.loss = loss
    with pytest.raises(NonFiniteLossError, match="since step 3"):
        trainer(tmp_path, log_every_n_steps=5).fit(m, points())


def test_no_checkpoint_of_a_failed_run_is_written(tmp_path):
    m = module()
    t = trainer(tmp_path, max_steps=2)
    t.fit(m, points())
    m._failed_step.note(1, torch.tensor(float("inf")))
    with pytest.raises(NonFiniteLossError, match="since step 1"):
        t.save_checkpoint(tmp_path / "bad.ckpt")
    m._failed_step = FirstFailure()
    m.backbone.head.bias.data.fill_(float("nan"))
    with pytest.raises(NonFiniteLossError, match="weights are not finite at step 2"):
        t.save_checkpoint(tmp_path / "bad.ckpt")
    assert not (tmp_path / "bad.ckpt").exists()


def test_validation_alone_is_at_the_end_of_the_schedules(tmp_path):
    seen = []

    class Spy(ContinuousCurriculum):
        def draw(self, n, clock, device="cpu", generator=None):
            seen.append(self.stage(*clock))
            return super().draw(n, clock, device, generator)

    t = trainer(tmp_path, max_steps=-1)
    t.validate(module(curriculum=WarmUp(Spy(stages=5), 0.7)), points(), verbose=False)
    assert set(seen) == {4}
    with pytest.raises(ConfigError, match=r"set trainer.max_steps"):
        trainer(tmp_path, max_steps=-1, max_epochs=-1).fit(module(), points())


def test_sampling(tmp_path):
    m = module()
    a = m.sample(4, 2, generator=torch.Generator().manual_seed(0))
    assert a.shape == (4, 2)
    assert torch.equal(a, m.sample(4, sigmas=m.default_sigmas(2), generator=torch.Generator().manual_seed(0)))
    assert m.default_sigmas(1) == [80.0]
    assert module(sampling_sigmas={2: [80, 0.8]}).default_sigmas(2) == [80, 0.8]
    for bad in ([], [1.0, 2.0], [2.0, 2.0], [1.0, 0.0]):
        with pytest.raises(ConfigError, match="descend"):
            m.sample(1, sigmas=bad)
    with pytest.raises(ConfigError, match="at least 1"):
        m.sample(1, steps=0)
    with pytest.raises(ConfigError, match="unconditional"):
        m.sample(1, labels=3)


class Constant(torch.nn.Module):
    """A network whose images have one value."""

    def __init__(self):
        super().__init__()
        self.value = torch.nn.Parameter(torch.tensor(0.5))

    def forward(self, x, noise_label, class_label=None):
        return self.value.expand_as(x)


def test_the_contrast_of_a_number_of_steps_spreads_its_images_before_they_are_clipped():
    shape, noise = (1, 4, 4), torch.Generator().manual_seed(0)
    plain = module(backbone=Constant(), image_shape=shape)
    m = module(backbone=Constant(), image_shape=shape, contrast={"1": 1.5, 2: 0.5})
    assert m.contrast == {1: 1.5, 2: 0.5}
    z = torch.randn(3, *shape, generator=noise)
    drawn = plain.one_step(z, None)
    for steps, factor in ((1, 1.5), (2, 0.5), (3, 1.0)):
        torch.testing.assert_close(m.finished(drawn, steps), (factor * drawn).clamp(-1, 1))
    one = [net.sample(3, 1, generator=torch.Generator().manual_seed(1)) for net in (m, plain)]
    torch.testing.assert_close(one[0], (1.5 * one[1]).clamp(-1, 1))
    points = module(contrast={1: 2.0})
    torch.testing.assert_close(*[p.sample(3, generator=torch.Generator().manual_seed(1)) for p in (points, module())])


@pytest.mark.parametrize(
    ("contrast", "line"),
    [
        ({0: 1.5}, "a number of steps in contrast must be"),
        ({"one": 1.5}, "a number of steps in contrast must be"),
        ({1: 0.0}, "contrast of 1 steps must be a finite number above 0"),
        ({2: float("nan")}, "contrast of 2 steps must be a finite number above 0"),
    ],
)
def test_a_contrast_that_cannot_be_is_refused(contrast, line):
    with pytest.raises(ConfigError, match=line):
        module(contrast=contrast)


def test_sampling_leaves_the_module_in_training_mode_and_the_global_generator_alone():
    m = module().train()
    before = torch.get_rng_state()
    m.sample(2, 2, generator=torch.Generator().manual_seed(0))
    assert m.backbone.training
    assert torch.equal(torch.get_rng_state(), before)


def test_labels(tmp_path):
    m = module(backbone=ResidualMLP(2, 16, 1, num_classes=3))
    assert m.sample_labels(5, None).tolist() == [0, 1, 2, 0, 1]
    assert m.sample_labels(2, 1).tolist() == [1, 1]
    assert m.sample_labels(2, [3, 0]).tolist() == [3, 0]  # 3 is the null class
    with pytest.raises(ConfigError, match=r"0 \.\.\. 2"):
        m.sample_labels(1, 4)
    with pytest.raises(ConfigError, match="3 labels were given for 4"):
        m.sample_labels(4, [0, 1, 2])
    with pytest.raises(ConfigError, match="class-conditional"):
        module(label_dropout=0.1)


def test_labels_of_the_data_are_checked(tmp_path):
    def fit(labels, classes):
        data = TensorDataset(torch.randn(8, 2), *labels)
        m = module(backbone=ResidualMLP(2, 8, 1, num_classes=classes))
        trainer(tmp_path, max_steps=1).fit(m, DataLoader(data, batch_size=4))

    with pytest.raises(ConfigError, match=r"labels from 3 to 3.*num_classes"):
        fit([torch.full((8,), 3)], classes=3)
    with pytest.raises(ConfigError, match="does not have labels"):
        fit([], classes=3)
    fit([], classes=0)
    fit([torch.full((8,), 7)], classes=0)


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed", "64-true"])
@pytest.mark.parametrize("curriculum", [ContinuousCurriculum(), GridCurriculum(ConstantLevels(5))], ids=["ect", "grid"])
def test_other_precisions(tmp_path, precision, curriculum):
    m = module(curriculum=curriculum, target_rate=ConstantRate(0.5))
    t = trainer(tmp_path, precision=precision, max_steps=2)
    t.fit(m, points())
    m = m.to({"bf16-true": torch.bfloat16, "64-true": torch.float64}.get(precision, torch.float32))
    assert m.sample(2, 2).isfinite().all()


def test_schedules_take_the_shorter_of_steps_and_epochs(tmp_path):
    m = module()
    t = trainer(tmp_path, max_steps=1000, max_epochs=1)
    t.fit(m, points())
    assert m.total_steps == t.global_step == 4


def test_data_of_another_shape_names_the_option(tmp_path):
    m = module(image_shape=(3,))
    with pytest.raises(ConfigError, match=r"--model.image_shape=\[2\]"):
        trainer(tmp_path).fit(m, points())


def test_start_from_takes_the_weights_and_refuses_those_of_another_network(tmp_path):
    source = module()
    t = trainer(tmp_path, callbacks=[EMA(0.5)])
    t.fit(source, points())
    t.save_checkpoint(tmp_path / "a.ckpt")
    average = next(c for c in t.callbacks if isinstance(c, EMA)).average
    m = module(start_from=str(tmp_path / "a.ckpt"), target_rate=ConstantRate(0.5))
    m.trainer = trainer(tmp_path)
    m.setup("fit")
    for net in (m.backbone, m.target):
        torch.testing.assert_close(net.state_dict(), average, rtol=0, atol=0)
    other = module(backbone=ResidualMLP(2, 8, 2), start_from=str(tmp_path / "a.ckpt"))
    with pytest.raises(CheckpointError, match="another network"):
        trainer(tmp_path).fit(other, points())
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        trainer(tmp_path).fit(module(start_from=str(tmp_path / "b.ckpt")), points())
    # without averaged weights the raw ones serve, and a run that goes on does not need the file
    t = trainer(tmp_path)
    t.fit(source, points())
    t.save_checkpoint(tmp_path / "raw.ckpt")
    trainer(tmp_path, max_steps=6).fit(module(start_from=str(tmp_path / "raw.ckpt")), points())
    gone = module(start_from=str(tmp_path / "gone.ckpt"))
    trainer(tmp_path, max_steps=6).fit(gone, points(), ckpt_path=str(tmp_path / "raw.ckpt"), weights_only=True)
