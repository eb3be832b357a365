"""Chord, tangent and Lagrangian: against fixed values, against each other, and at the Gaussian optimum."""

import math

import pytest
import torch
from torch import nn

from cm_lightning.backbones.embedding import SinusoidEmbedding, TwoTimesEmbedding
from cm_lightning.backbones.mlp import ResidualMLP
from cm_lightning.core.curriculum import Clock, Curriculum, Times, to_the_end
from cm_lightning.core.distance import L2, PseudoHuber
from cm_lightning.core.flow_matching import Diagonal, FlowMatching, Split
from cm_lightning.core.gap import Through, UniformGap
from cm_lightning.core.limit_times import OneTime, TwoTimes
from cm_lightning.core.noise import LogitNormal, LogNormal, UniformTime
from cm_lightning.core.objective import Chord, Lagrangian, Tangent
from cm_lightning.core.oracle import GaussianOracle
from cm_lightning.core.parameterization import EDM, AverageVelocity, BoundaryShifted, Map, Trigonometric
from cm_lightning.core.path import VE, Linear, TrigFlow
from cm_lightning.core.residual import Adaptive, Learned, SquaredError
from cm_lightning.core.schedule import Ramp
from cm_lightning.core.trajectory import GuidedNoise, Itself, SameNoise, Teacher, of_ve
from cm_lightning.core.velocity_chord import VelocityChord
from cm_lightning.core.weighting import InverseGap, Uniform
from cm_lightning.errors import ConfigError
from tests.helpers import Dropout

END = Clock(1, 1)


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


class At(Curriculum):
    """The same levels for every sample."""

    def __init__(self, t, q, r=0.0):
        self.levels_ = (t, q, r)

    def draw(self, n, clock, device="cpu", generator=None):
        return Times(*(torch.full((n,), level, dtype=torch.float64) for level in self.levels_))


def trig(F, sd=0.5):
    """The map with a network that returns minus the paper's F(x, t)."""
    return Map(Trigonometric(sd, noise_scale=None), lambda x, t, c: -F(sd * x, t))


def average(u):
    """The map whose network is u(z, r, t)."""
    return Map(AverageVelocity(), lambda x, times, c: u(x, times[:, 0] - times[:, 1], times[:, 0]))


def test_the_raw_error_has_neither_distance_nor_weight():
    ends, x = (lambda x, t, r, c: x, lambda x, t, r, c: x / 2), torch.randn(16, 2).double()
    found = []
    for distance, weighting in ((L2(), Uniform()), (PseudoHuber(), InverseGap())):
        chord = Chord(At(2.0, 1.0), SameNoise(), distance, weighting)
        loss = chord.loss(*ends, x, None, END, torch.Generator().manual_seed(0))
        found.append((loss.item(), chord.shown["raw"].item()))
    _, z, x_t = chord.draw(x, None, END, torch.Generator().manual_seed(0))
    expected = (x_t - (x + z) / 2).square().mean().item()
    assert found[0] == pytest.approx((expected, expected))
    assert found[1][1] == pytest.approx(expected)
    assert found[1][0] != pytest.approx(expected)


def test_the_raw_error_of_a_warm_up_is_that_of_the_clean_images():
    chord = Chord(At(2.0, 0.0), SameNoise(), L2(), Uniform(), denoising=Adaptive())
    chord.curriculum.target_is_data = lambda clock: True
    x = torch.randn(16, 2).double()
    chord.loss(lambda x, t, r, c: 0 * x, None, x, None, END)
    assert chord.shown["raw"].item() == pytest.approx(x.square().mean().item())


class TestGoldenTangentOfTrigFlow:
    """Data N(0, 0.8^2), sigma_data 0.5, x = 0.6, t = 1.2; g in the paper's sign is minus ours, as F is."""

    oracle = GaussianOracle(0.8, path=TrigFlow(0.5))
    x, t = tensor([0.6]), tensor(1.2)
    velocity = oracle.velocity(x, t)

    def exact(self, x, t):
        """F of the exact consistency function cos(t) x - sin(t) sd F."""
        f = self.oracle.consistency(x, t)
        return (t.cos()[:, None] * x - f) / (0.5 * t.sin()[:, None])

    def teacher(self, x, t):
        return self.oracle.velocity(x, t) / 0.5

    def g(self, F, warm):
        objective = Tangent(OneTime(), SameNoise(TrigFlow(0.5)))
        return -objective.tangent(trig(F), self.x, self.t, torch.zeros(1), self.velocity, None, warm).item()

    def test_the_network_s_output(self):
        assert self.exact(self.x, self.t).item() == pytest.approx(-1.410202717046)
        assert self.teacher(self.x, self.t).item() == pytest.approx(-0.5247479015642)
        along = torch.func.jvp(self.exact, (self.x, self.t), (self.velocity, torch.ones(1).double()))[1]
        assert along.item() == pytest.approx(-0.8557532581421)

    def test_it_vanishes_at_the_exact_function(self):
        found = [self.g(self.exact, warm) for warm in (1.0, 0.5, 0.0)]
        assert found == pytest.approx([0, 0.02906574989372, 0.05813149978744], abs=1e-12)

    def test_of_a_network_that_says_nothing(self):
        found = [self.g(lambda x, t: 0 * x, warm) for warm in (1.0, 0.5, 0.0)]
        assert found == pytest.approx([-0.2370894783422, -0.1357700012595, -0.03445052417682])

    def test_of_the_teacher(self):
        assert self.g(self.teacher, 1.0) == pytest.approx(-0.3573627347822)
        assert self.g(self.teacher, 0.0) == pytest.approx(0, abs=1e-12)

    def test_normalised(self):
        g = tensor([-0.2370894783422])
        vector = tensor([1, 2, -1]) * g
        assert Tangent(OneTime(), SameNoise(), normalize="l2")._normalized(g[None]).item() == pytest.approx(
            -0.7033428616882
        )
        found = [Tangent(OneTime(), SameNoise(), normalize=kind)._normalized(vector)[0, 0] for kind in ("l2", "rms")]
        assert [value.item() for value in found] == pytest.approx([-0.3482777663722, -0.5446637188603])


class TestGoldenTangentOfTheLinearPath:
    """Data N(0, 0.5^2), z = 0.8, r = 0.3, t = 0.9."""

    oracle = GaussianOracle(0.5, path=Linear())
    z, t, r = tensor([0.8]), tensor(0.9), tensor(0.3)

    def u(self, z, r, t):
        return self.oracle.average_velocity(z, t, r)

    def ignores_r(self, z, r, t):
        return self.oracle.velocity(z, t)

    def g(self, u):
        objective = Tangent(TwoTimes(), SameNoise(Linear()))
        return objective.tangent(average(u), self.z, self.t, self.r, self.oracle.velocity(self.z, self.t)).item()

    def test_it_vanishes_at_the_exact_average_velocity(self):
        assert self.g(self.u) == pytest.approx(0, abs=1e-12)

    def test_meanflow_s_target_and_its_weighted_errors(self):
        g = self.g(self.ignores_r)
        assert 0.861538461538 + g == pytest.approx(0.679763313609)
        assert g**2 == pytest.approx(0.0330422044046)
        difference, t = tensor([-g]), self.t
        assert Adaptive(1.0, 0.01)(difference, t, t).item() == pytest.approx(0.767669891951)
        assert Adaptive(0.75, 1e-3)(difference, t, t).item() == pytest.approx(0.416922906952)
        assert SquaredError()(difference, t, t).item() == pytest.approx(0.0330422044046)

    def test_where_r_is_t_it_is_flow_matching(self):
        objective, v = Tangent(TwoTimes(), SameNoise(Linear())), tensor([0.3])
        g = objective.tangent(average(self.ignores_r), self.z, self.t, self.t, v)
        assert g.item() == pytest.approx(0.3 - 0.861538461538)

    def test_the_lagrangian_s_target_and_residual(self):
        objective = Lagrangian(TwoTimes(), SameNoise(Linear()))
        for u, squared in ((self.u, 0.0), (self.ignores_r, 0.483056448476)):
            own = average(u)
            found = objective.difference(own, own, self.z, self.t, self.r)
            assert found.square().item() == pytest.approx(squared, abs=1e-12)
        end = average(self.ignores_r)(self.z, self.t, self.r)
        assert self.oracle.velocity(end, self.r).item() == pytest.approx(0.166515837104)


def wave(z, r, t):
    """A function that is not an average velocity."""
    return (z + (2 * r - t)[:, None]).sin()


@pytest.mark.parametrize("kind", ["linear", "trig", "ve"])
def test_the_chord_tends_to_the_tangent(kind):
    """(X(x_t, t) - X(x_q, q)) / (t - q) -> D, of which g is -b'/s: the chord per unit of time is the tangent."""
    if kind == "linear":
        own, path, t, r = average(wave), Linear(), 0.9, 0.3
    elif kind == "trig":
        own, path, t, r = trig(lambda x, t: (x + t[:, None]).sin()), TrigFlow(), 1.2, 0.0
    else:
        own, path, t, r = Map(BoundaryShifted(), lambda x, t, c: (x + t[:, None]).sin()), VE(), 1.2, 0.0
    x, z = torch.randn(2, 5, 3, dtype=torch.float64)
    levels, ends = torch.full((5,), t).double(), torch.full((5,), r).double()
    x_t, v = path.point(x, z, levels), path.velocity(x, z, levels)
    g = Tangent(OneTime(), SameNoise(path)).tangent(own, x_t, levels, ends, v)
    scale = -own.parameterization.slopes(levels, ends)[1] / own.parameterization.sigma_data
    errors = []
    for gap in (1e-2, 1e-3):
        q = levels - gap
        chord = (own(x_t, levels, ends) - own(path.point(x, z, q), q, ends)) / gap
        errors.append((scale[:, None] * chord - g).abs().max().item())
    assert errors[1] < 0.2 * errors[0]
    assert errors[1] < 1e-2


def test_meanflow_is_the_chord_s_limit_in_velocity_form():
    """(t - r) / (t - q) (u* - u) -> v - u - (t - r) du/dt with u* = [(t - q) v + (q - r) u(x_q, r, q)] / (t - r)."""
    own, path = average(wave), Linear()
    x, z, t, r = tensor([0.3]), tensor([-0.7]), tensor(0.9), tensor(0.3)
    x_t, v = path.point(x, z, t), path.velocity(x, z, t)
    g = Tangent(TwoTimes(), SameNoise(path)).tangent(own, x_t, t, r, v)
    errors = []
    for gap in (1e-2, 1e-3):
        q = t - gap
        star = ((t - q) * v + (q - r) * wave(x_t - gap * v, r, q)) / (t - r)
        errors.append(((t - r) / gap * (star - wave(x_t, r, t)) - g).abs().item())
    assert errors[1] < 0.2 * errors[0] < 0.2


def network(embedding, seed=0):
    torch.manual_seed(seed)
    net = ResidualMLP(2, 32, 2, noise_embedding=embedding).double()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3)
    return net


def setting(kind):
    """The map of an untrained network, with the curriculum and path of an objective."""
    if kind == "sCT":
        return Map(Trigonometric(noise_scale=None), network(SinusoidEmbedding(32))), OneTime(), TrigFlow()
    return Map(AverageVelocity(), network(TwoTimesEmbedding(32))), TwoTimes(different=0.5), Linear()


@pytest.mark.parametrize("kind", ["sCT", "MeanFlow"])
def test_the_derivative_is_that_of_finite_differences(kind):
    own, curriculum, path = setting(kind)
    t, _, r = (level.double() for level in curriculum.draw(16, END))
    x, z = torch.randn(2, 16, 2, dtype=torch.float64)
    x_t, v = path.point(x, z, t), path.velocity(x, z, t)
    exact, approximate = (
        Tangent(curriculum, SameNoise(path), derivative=kind, h=1e-4).tangent(own, x_t, t, r, v)
        for kind in ("forward_mode", "difference")
    )
    torch.testing.assert_close(exact, approximate, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["sCT", "MeanFlow"])
def test_the_gradient_pulls_the_output_by_the_tangent(kind):
    own, curriculum, path = setting(kind)
    objective = Tangent(curriculum, SameNoise(path))
    x, seed = torch.randn(16, 2, dtype=torch.float64), 3
    objective.loss(own, own, x, None, END, torch.Generator().manual_seed(seed)).backward()
    found = torch.cat([p.grad.flatten() for p in own.network.parameters() if p.grad is not None])

    g = torch.Generator().manual_seed(seed)
    t, _, r = curriculum.draw(16, END, generator=g)
    z = torch.randn(16, 2, generator=g).double()
    x_t, v = path.point(x, z, t), path.velocity(x, z, t)
    pull = objective.tangent(own, x_t, t, r, v).detach()
    own.network.zero_grad()
    (-2 * (own.output(x_t, t, r) * pull).sum() / x.numel()).backward()
    expected = torch.cat([p.grad.flatten() for p in own.network.parameters() if p.grad is not None])
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)
    assert objective.shown["raw"].item() == pytest.approx(pull.square().mean().item(), rel=1e-4)


@pytest.mark.parametrize("derivative", ["forward_mode", "difference"])
@pytest.mark.parametrize("kind", ["sCT", "MeanFlow"])
def test_what_is_known_already_is_not_evaluated_again(kind, derivative):
    """While the warm-up's factor is 0, one pass is enough; then a difference costs two more, or three of a target."""
    own, curriculum, path = setting(kind)
    calls = []
    own.network.register_forward_hook(lambda *_: calls.append(1))
    x, ramp = torch.randn(16, 2, dtype=torch.float64), Ramp(0.5, 1.0)
    objective = Tangent(curriculum, SameNoise(path), warm_up=ramp, derivative=derivative)
    for warm, extra in ((0.0, (0, 0)), (0.5, (1, 1) if derivative == "forward_mode" else (2, 3))):
        clock, losses = Clock(int(50 + 50 * warm), 100), []
        assert ramp(*clock) == warm
        for target, passes in zip((own, Map(own.parameterization, own.network)), extra, strict=True):
            calls.clear()
            losses.append(objective.loss(own, target, x, None, clock, torch.Generator().manual_seed(0)).item())
            assert len(calls) == 1 + passes
        assert losses[0] == pytest.approx(losses[1], rel=1e-9)


@pytest.mark.parametrize("path", [TrigFlow(), Linear()], ids=lambda p: type(p).__name__)
def test_before_the_warm_up_rises_the_network_learns_the_velocity(path):
    """The loss is 0 for the network that says the exact velocity of one point, and that of flow matching else."""
    point = torch.tensor([[0.3, -0.7]], dtype=torch.float64).expand(64, 2)
    says = AverageVelocity() if isinstance(path, Linear) else Trigonometric()
    curriculum = TwoTimes() if isinstance(path, Linear) else OneTime()
    objective = Tangent(curriculum, SameNoise(path), warm_up=Ramp(0.5, 0.6), normalize="l2")
    t, _, r = (
        level.double() for level in curriculum.draw(64, Clock(0, 10), generator=torch.Generator().manual_seed(0))
    )
    x_t, v = path.point(point, torch.randn(64, 2).double(), t), torch.randn(64, 2).double()
    own = Map(says, lambda x, label, c: torch.zeros_like(x))
    F = objective.velocity_output(own, t, r, v)
    expected = v if isinstance(path, Linear) else -v / says.sigma_data
    torch.testing.assert_close(F, expected)
    # the g of that output is 0 while the factor is 0
    known = Map(says, lambda x, label, c: F)
    g = objective.tangent(known, x_t, t, r, v, warm=0.0)
    torch.testing.assert_close(g, torch.zeros_like(g), atol=1e-12, rtol=0)
    loss = objective.loss(own, own, point, None, Clock(0, 10), torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    times, z, _ = objective.draw(point, None, Clock(0, 10), generator)
    scale = 1.0 if isinstance(path, Linear) else says.sigma_data
    assert loss.item() == pytest.approx((path.velocity(point, z, times.t) / scale).square().mean().item(), rel=1e-5)


def exact_map(oracle):
    if isinstance(oracle.path, TrigFlow):
        return Map(
            Trigonometric(noise_scale=None),
            lambda x, t, c: (oracle.consistency(0.5 * x, t) - t.cos()[:, None] * 0.5 * x) / (0.5 * t.sin()[:, None]),
        )
    return average(lambda z, r, t: oracle.average_velocity(z, t, r))


@pytest.mark.parametrize("path", [TrigFlow(), Linear()], ids=["sCD", "MeanFlow, distilled"])
def test_with_an_exact_teacher_the_exact_map_has_no_tangent(path):
    oracle = GaussianOracle(0.8, path=path)
    own = exact_map(oracle)
    teacher = Teacher(lambda x, t, c: oracle.denoiser(x, t), path)
    curriculum = OneTime(path=path) if isinstance(path, TrigFlow) else TwoTimes()
    x = 0.8 * torch.randn(256, 2)
    loss = Tangent(curriculum, teacher).loss(own, own, x, None, END, torch.Generator().manual_seed(0))
    noisy = Tangent(curriculum, SameNoise(path)).loss(own, own, x, None, END, torch.Generator().manual_seed(0))
    assert loss.item() < 1e-8
    assert noisy.item() > 1e-2  # of single samples only the mean is 0


def test_sct_s_gradient_is_scd_s_in_the_mean_when_the_teacher_is_exact():
    """sCM, section 3: the velocity of the data's own noise is the teacher's in the mean over both."""
    n, oracle = 200_000, GaussianOracle(0.5)
    path, own = TrigFlow(), Map(Trigonometric(noise_scale=None), network(SinusoidEmbedding(32)).float())
    x = 0.5 * torch.randn(n, 2, generator=torch.Generator().manual_seed(1))
    denoiser = of_ve(lambda x, sigma, c: oracle.denoiser(x, sigma), path)

    def gradient(trajectory):
        own.network.zero_grad()
        density = LogNormal(0.0, 0.5)
        objective = Tangent(OneTime(density), trajectory)
        objective.loss(own, own, x, None, END, torch.Generator().manual_seed(0)).backward()
        return torch.cat([p.grad.flatten() for p in own.network.parameters() if p.grad is not None])

    ours, theirs = gradient(SameNoise(path)), gradient(Teacher(denoiser, path))
    assert ((ours - theirs).norm() / theirs.norm()).item() < 0.03


def test_a_denoiser_of_ve_on_another_path():
    oracle, path, t = GaussianOracle(0.5, path=TrigFlow()), TrigFlow(), tensor(0.4, 1.3)
    x = torch.randn(2, 3, dtype=torch.float64)
    on_path = of_ve(lambda x, sigma, c: GaussianOracle(0.5).denoiser(x, sigma), path)(x, t, None)
    torch.testing.assert_close(on_path, oracle.denoiser(x, t))


@pytest.mark.parametrize("solver", ["euler", "heun"])
@pytest.mark.parametrize("path", [VE(), TrigFlow(), Linear()], ids=["ve", "trig", "linear"])
def test_a_teacher_s_step_has_its_order_on_every_path(path, solver):
    oracle, t = GaussianOracle(0.5, path=path), tensor(0.7)
    teacher, x = Teacher(lambda x, t, c: oracle.denoiser(x, t), path, solver), tensor([0.9])
    errors = [(teacher.advance(x, x, x, t, t - h) - oracle.flow(x, t, t - h)).abs().item() for h in (0.04, 0.02)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(2 if solver == "euler" else 3, abs=0.2)


def test_the_model_itself_as_trajectory():
    oracle = GaussianOracle(0.5, path=Linear())
    own = exact_map(oracle)
    trajectory, x, t, q = Itself(own, Linear()), tensor([0.8]), tensor(0.9), tensor(0.6)
    torch.testing.assert_close(trajectory.advance(x, x, x, t, q), oracle.flow(x, t, q))
    torch.testing.assert_close(trajectory.velocity(x, x, x, t), oracle.velocity(x, t))
    # semigroup: with itself as trajectory the chord of the exact map is 0, whatever the levels
    loss = Chord(At(0.9, 0.6, 0.3), trajectory, L2(), Uniform()).loss(own, own, torch.randn(64, 2).double(), None, END)
    assert loss.item() < 1e-20


@pytest.mark.parametrize("parameterization", [BoundaryShifted(), Trigonometric(), AverageVelocity()])
def test_the_boundary_holds_for_any_network_and_dtype(parameterization):
    own = Map(parameterization, lambda x, t, c: 100 * torch.randn_like(x))
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        end = 0.7 if isinstance(parameterization, AverageVelocity) else parameterization.sigma_min
        x, t = torch.randn(4, 3, dtype=dtype), torch.full((4,), end, dtype=dtype)
        assert torch.equal(own(x, t, t), x)


def test_the_trigonometric_map_is_edm_s_denoiser_in_units_of_ve():
    own, edm = Trigonometric(), EDM()
    sigma, path = tensor(0.01, 1.0, 79.0), TrigFlow()
    x, t = torch.randn(3, 4, dtype=torch.float64), path.level(sigma)
    alpha, _ = path.scales(t)

    def net(x, label, c):
        return (x + label[:, None]).sin()

    torch.testing.assert_close(own(net, alpha[:, None] * x, t), edm(net, x, sigma))


@pytest.mark.parametrize("objective", ["tangent", "difference", "chord"])
def test_all_passes_share_their_dropout_mask(objective):
    net = Dropout().train()
    own = Map(Trigonometric(), net)
    parts = OneTime(), SameNoise(TrigFlow())
    made = {
        "tangent": lambda: Tangent(*parts),
        "difference": lambda: Tangent(*parts, derivative="difference"),
        "chord": lambda: Chord(At(1.0, 0.9), SameNoise(TrigFlow()), L2(), Uniform()),
    }[objective]()
    for _ in range(2):
        made.loss(own, own, torch.randn(4, 64), None, END)
    half = len(net.masks) // 2
    first, second = net.masks[:half], net.masks[half:]
    assert all(torch.equal(_plain(mask), _plain(first[0])) for mask in first)
    assert all(torch.equal(_plain(mask), _plain(second[0])) for mask in second)
    assert not torch.equal(_plain(first[0]), _plain(second[0]))


def _plain(mask):
    """The values of a tensor from which a derivative was taken."""
    while torch._C._functorch.is_functorch_wrapped_tensor(mask):
        mask = torch._C._functorch.get_unwrapped(mask)
    return mask.detach()


def test_two_times_follow_their_laws():
    g = torch.Generator().manual_seed(0)
    t, q, r = TwoTimes(different=0.25).draw(40_000, END, generator=g)
    assert torch.equal(t, q)
    assert (r <= t).all()
    assert (r < t).double().mean().item() == pytest.approx(0.25, abs=0.01)
    t, _, r = TwoTimes(LogitNormal(-0.6, 1.6), LogitNormal(-4.0, 1.6), different=1.0).draw(40_000, END, generator=g)
    assert t.median().item() == pytest.approx(0.3543436938, abs=0.01)
    assert (r < t).double().mean().item() > 0.8
    draws = [TwoTimes(different=0.5).draw(64, END, generator=g) for _ in range(200)]
    differ = torch.stack([r < t for t, _, r in draws]).double().mean(0)
    assert 0.3 < differ.min().item() <= differ.max().item() < 0.7  # no place in the batch has always the same kind


@pytest.mark.parametrize(
    ("law", "median"),
    [((-0.4, 1), 0.4013123399), ((-0.6, 1.6), 0.3543436938), ((-4, 1.6), 0.0179862100), ((-0.8, 1), 0.3100255189)],
)
def test_medians_of_the_logit_normal(law, median):
    t = LogitNormal(*law).sample(200_000, generator=torch.Generator().manual_seed(0))
    assert t.median().item() == pytest.approx(median, rel=0.02)


def test_one_time_is_sigma_s_on_the_path():
    t, q, r = OneTime(LogNormal(-1.0, 1.4)).draw(100_000, END, generator=torch.Generator().manual_seed(0))
    assert torch.equal(t, q)
    assert not r.any()
    assert t.median().item() == pytest.approx(math.atan(math.exp(-1) / 0.5), rel=0.02)
    assert t.max().item() <= math.atan(160) + 1e-6


def test_the_learned_weight_is_the_best_one():
    """e^w L / D - w is least at w = ln(D / L), where it is 1 + ln(L / D)."""
    torch.manual_seed(0)
    learned, t = Learned(32), torch.rand(512) * 1.5
    difference = torch.randn(512, 4) * (0.1 + t)[:, None]
    assert learned(difference, t, t).item() == pytest.approx(difference.square().mean().item(), rel=1e-5)
    optimizer = torch.optim.Adam(learned.parameters(), lr=0.05)
    for _ in range(400):
        optimizer.zero_grad()
        learned(difference, t, t).backward()
        optimizer.step()
    w = learned.weight(torch.tensor([0.2, 1.2]))
    assert w.tolist() == pytest.approx([-2 * math.log(0.3), -2 * math.log(1.3)], abs=0.35)
    assert {name for name, _ in learned.state_dict().items()} == {"layer.weight", "layer.bias"}


def test_the_warm_up_of_the_tangent():
    ramp = Ramp(0.5, 0.75)
    assert [ramp(step, 100) for step in (0, 50, 60, 75, 100)] == pytest.approx([0, 0, 0.4, 1, 1])
    assert Ramp()(0, 100) == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_the_derivative_stays_in_float32(dtype):
    seen = []

    class Net(ResidualMLP):
        def forward(self, x, noise_label, class_label=None):
            seen.append(self.stem(x).dtype)
            return super().forward(x, noise_label, class_label)

    torch.manual_seed(0)
    own = Map(Trigonometric(), Net(2, 16, 1))
    objective = Tangent(OneTime(), SameNoise(TrigFlow()))
    with torch.autocast("cpu", dtype):
        loss = objective.loss(own, own, torch.randn(8, 2), None, END)
    assert seen == [dtype, torch.float32]
    assert loss.dtype == torch.float32
    loss.backward()
    assert own.network.head.weight.grad.abs().sum() > 0


class Gain(nn.Module):
    """The form of the optimal network for Gaussian data: x times a function of the times."""

    def __init__(self, embedding):
        super().__init__()
        self.embedding = embedding
        self.net = nn.Sequential(nn.Linear(32, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1))
        nn.init.zeros_(self.net[4].weight)

    def forward(self, x, label, class_label=None):
        return x * self.net(self.embedding(label))


def trained(objective, own, steps=500, lr=3e-3):
    """Train in a bare loop, without Trainer or module."""
    optimizer = torch.optim.Adam(own.network.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    for step in range(steps):
        loss = objective.loss(own, own, 0.5 * torch.randn(128, 2), None, Clock(step, steps))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return own


@pytest.mark.parametrize("method", ["sCT", "sCD"])
@pytest.mark.parametrize("normalize", [None, "l2"])
def test_the_tangent_on_a_gaussian_ends_at_the_consistency_function(method, normalize):
    path, oracle = TrigFlow(), GaussianOracle(0.5, path=TrigFlow())
    trajectory = SameNoise(path) if method == "sCT" else Teacher(lambda x, t, c: oracle.denoiser(x, t), path)
    own = Map(Trigonometric(noise_scale=None), Gain(SinusoidEmbedding(32)))
    trained(Tangent(OneTime(), trajectory, warm_up=Ramp(0.2, 0.4), normalize=normalize), own)
    t, x = path.level(torch.tensor([0.5, 2.0, 10.0])), torch.ones(3, 1)
    gain = own(x, t, torch.zeros(3)) / oracle.consistency(x, t)
    torch.testing.assert_close(gain, torch.ones(3, 1), atol=0.08 if method == "sCT" else 0.04, rtol=0)


FLOW_MAPS = {
    "MeanFlow": lambda own: Tangent(TwoTimes(LogitNormal(0.0, 1.5), different=0.75), SameNoise(Linear())),
    "Lagrangian": lambda own: Split(
        FlowMatching(Diagonal(LogitNormal(0.0, 1.5))),
        Lagrangian(TwoTimes(LogitNormal(0.0, 1.5), different=1.0), SameNoise(Linear())),
        share=0.5,
    ),
    "progressive": lambda own: Split(
        FlowMatching(),
        VelocityChord(Through(TwoTimes(UniformTime(), different=1.0), UniformGap()), Itself(own, Linear())),
        share=0.5,
    ),
}


@pytest.mark.parametrize(("method", "steps"), [("MeanFlow", 500), ("Lagrangian", 350), ("progressive", 350)])
def test_a_flow_map_of_a_gaussian_is_learned(method, steps):
    oracle = GaussianOracle(0.5, path=Linear())
    own = Map(AverageVelocity(), Gain(TwoTimesEmbedding(32)))
    trained(FLOW_MAPS[method](own), own, steps, lr=1e-2)
    t, r, x = torch.tensor([1.0, 0.8, 0.6]), torch.tensor([0.0, 0.3, 0.0]), torch.ones(3, 1)
    untrained = (x - oracle.flow(x, t, r)).abs()
    assert ((own(x, t, r) - oracle.flow(x, t, r)).abs() < 0.3 * untrained).all()


def test_a_chord_trains_in_a_bare_loop():
    path, oracle = TrigFlow(), GaussianOracle(0.5, path=TrigFlow())

    class Pairs(Curriculum):
        def draw(self, n, clock, device="cpu", generator=None):
            t = 1.5 * torch.rand(n, generator=generator)
            return to_the_end(t, 0.8 * t)

    own = Map(Trigonometric(noise_scale=None), Gain(SinusoidEmbedding(32)))
    teacher = Teacher(lambda x, t, c: oracle.denoiser(x, t), path)
    trained(Chord(Pairs(), teacher, L2(), Uniform()), own)
    t, x = torch.tensor([0.3, 0.8, 1.2]), torch.ones(3, 1)
    torch.testing.assert_close(own(x, t, t), oracle.consistency(x, t), atol=0.12, rtol=0)  # in Heun steps to 0.8 t


def by_class(x, t, c):
    """A denoiser that differs between classes."""
    return torch.tanh(x) * c[:, None]


@pytest.mark.parametrize("path", [VE(), TrigFlow(), Linear()], ids=lambda path: type(path).__name__)
def test_the_velocity_of_a_guided_trajectory_is_its_slope(path):
    trajectory = GuidedNoise(by_class, null=2, w=0.8, path=path)
    x, z = torch.randn(2, 6, 3, dtype=torch.float64).unbind(0)
    c, t = torch.arange(6) % 3, torch.linspace(0.2, 0.8, 6, dtype=torch.float64)
    x_t = path.point(x, z, t)
    advanced = [trajectory.advance(x, z, x_t, t, t + h, c) for h in (1e-5, -1e-5)]
    torch.testing.assert_close(trajectory.velocity(x, z, x_t, t, c), (advanced[0] - advanced[1]) / 2e-5)
    torch.testing.assert_close(trajectory.advance(x, z, x_t, t, t, c), x_t)


@pytest.mark.parametrize("path", [VE(), TrigFlow(), Linear()], ids=lambda path: type(path).__name__)
def test_without_strength_or_class_guidance_leaves_the_noise_as_it_is(path):
    x, z = torch.randn(2, 6, 3, dtype=torch.float64).unbind(0)
    t = torch.linspace(0.2, 0.8, 6, dtype=torch.float64)
    for w, c in ((0.0, torch.arange(6) % 3), (0.8, torch.full((6,), 2))):
        trajectory = GuidedNoise(by_class, null=2, w=w, path=path)
        given = x, z, path.point(x, z, t), t
        torch.testing.assert_close(trajectory.advance(*given, t / 2, c), SameNoise(path).advance(*given, t / 2, c))
        torch.testing.assert_close(trajectory.velocity(*given, c), SameNoise(path).velocity(*given, c))


def test_outside_its_interval_nothing_is_guided():
    x, z = torch.randn(2, 4, 3, dtype=torch.float64).unbind(0)
    t, c = tensor(0.2, 0.4, 0.65, 0.7), torch.arange(4) % 2
    given = x, z, Linear().point(x, z, t), t
    within, always, never = (
        GuidedNoise(by_class, null=2, w=w, path=Linear(), interval=interval).velocity(*given, c)
        for w, interval in ((0.8, (0.4, 0.65)), (0.8, None), (0.0, None))
    )
    inside = torch.tensor([False, True, True, False])[:, None]
    torch.testing.assert_close(within, torch.where(inside, always, never))
    for interval in ([0.4], [0.6, 0.4], [-1, 0.4], [0.1, 0.2, 0.3]):
        with pytest.raises(ConfigError, match=r"interval|low must be below high"):
            GuidedNoise(by_class, null=2, w=0.8, interval=interval)


@pytest.mark.parametrize("path", [TrigFlow(), Linear()], ids=lambda path: type(path).__name__)
def test_edm_s_loss_is_refused_on_another_path(path):
    with pytest.raises(ConfigError, match=f"EDM's loss, of the VE path, not of {type(path).__name__}"):
        Chord(Curriculum, SameNoise(path), L2(), Uniform(), denoising=SquaredError())
