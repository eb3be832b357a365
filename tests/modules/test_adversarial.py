"""Methods with two networks, in pixels: whose gradients reach which, stages, turns, guards, and runs."""

from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch

from cm_lightning.backbones.mlp import ResidualMLP
from cm_lightning.backbones.unet import UNet
from cm_lightning.checkpoint import read_checkpoint
from cm_lightning.core.adversarial import DIVERGENCES, matching_loss, matching_weight
from cm_lightning.core.noise import karras_sigmas
from cm_lightning.core.ode_sampler import integrate
from cm_lightning.core.schedule import HoldThenCosine
from cm_lightning.core.solver import euler_step
from cm_lightning.core.stages import Stage
from cm_lightning.core.turns import Turns
from cm_lightning.data.toy import Toy
from cm_lightning.errors import ConfigError
from cm_lightning.modules.adversarial import AdversarialDistillation
from cm_lightning.modules.critic import Losses
from cm_lightning.modules.diffusion import DiffusionModule
from cm_lightning.modules.distribution_matching import DistributionMatchingDistillation
from cm_lightning.modules.loading import load_module
from tests.backbones.zoo import NETWORKS, SHAPE
from tests.helpers import InterruptAt, images, points, trainer

STAGES = [
    Stage(8, 4, guidance=0.5),
    Stage(4, 2, "conditional"),
    Stage(4, 2, "unconditional"),
    Stage(2, 1, "unconditional", rate=0.5),
]


def network(seed=1):
    torch.manual_seed(seed)
    net = ResidualMLP(2, 16, 2, num_classes=2)
    torch.nn.init.normal_(net.head.weight, std=0.3)
    return net


def teacher():
    return DiffusionModule(network(7), (2,), label_dropout=0.1)


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)


def lightning(**options):
    return AdversarialDistillation(**{
        "backbone": network(), "image_shape": (2,), "teacher": teacher(), "stages": STAGES, "optimizer": sgd, **options,
    })  # fmt: skip


def matching(**options):
    return DistributionMatchingDistillation(**{
        "backbone": network(), "image_shape": (2,), "teacher": teacher(), "levels": [80.0, 5.0, 1.0], "optimizer": sgd,
        "turns": Turns(2), **options,
    })  # fmt: skip


BOTH = pytest.mark.parametrize("make", [lightning, matching])


def batch(n=8):
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(3)), torch.zeros(n, dtype=torch.long)


def gradients(loss, network):
    found = torch.autograd.grad(loss, list(network.parameters()), retain_graph=True, allow_unused=True)
    return [g for g in found if g is not None and g.any()]


def weights(network):
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def moved(before, network):
    return any(not tensor.equal(before[name]) for name, tensor in network.state_dict().items())


@BOTH
def test_the_loss_of_each_network_reaches_it_alone(make):
    m = make()
    m.setup("fit")
    generator, critic = m.losses(*batch())
    assert gradients(generator, m.backbone)
    assert not gradients(generator, m.critic)
    assert gradients(critic, m.critic)
    assert not gradients(critic, m.backbone)
    joined = m.joined(Losses(generator, critic))
    for network, own in ((m.backbone, generator), (m.critic, critic)):
        for together, alone in zip(gradients(joined, network), gradients(own, network), strict=True):
            torch.testing.assert_close(together, alone)


@BOTH
def test_on_several_ranks_every_weight_gets_a_gradient_which_is_0_where_a_loss_does_not_use_it(make):
    m = make()
    m.setup("fit")
    generator, _ = m.losses(*batch())
    m.trainer = SimpleNamespace(world_size=2)
    trained = [p for p in m.parameters() if p.requires_grad]
    found = torch.autograd.grad(m.joined(Losses(generator, None)), trained, retain_graph=True)
    alone = torch.autograd.grad(generator, trained, allow_unused=True)
    assert any(g is None for g in alone)
    for p, together, own in zip(trained, found, alone, strict=True):
        torch.testing.assert_close(together, torch.zeros_like(p) if own is None else own)


@BOTH
def test_a_network_whose_turn_it_is_not_stays_as_it_is(make, tmp_path):
    """With momentum, too: an optimizer that got zeros in place of nothing would go on."""
    m, seen = make(turns=Turns(2, together=False), **({"stages": STAGES[1:3]} if make is lightning else {})), []
    step = m.optimizer_step

    def watched(*args, **options):
        before = weights(m.backbone), weights(m.critic)
        step(*args, **options)
        seen.append((moved(before[0], m.backbone), moved(before[1], m.critic)))

    m.optimizer_step = watched
    trainer(tmp_path, max_steps=3, accumulate_grad_batches=2).fit(m, points())
    assert seen == [(True, False), (False, True), (True, False)]
    assert m.trained_steps == 3


@BOTH
def test_the_critic_has_its_own_rate_and_each_network_its_own_limit_of_the_gradient(make, tmp_path):
    own = {"stages": STAGES[1:2]} if make is lightning else {"gan_weight": 1.0}
    m = make(critic_lr=0.2, optimizer=lambda p: torch.optim.SGD(p, lr=0.1), turns=Turns(1), **own)
    before = []
    m.on_train_start = lambda: before.append(weights(m.critic))
    limit = 1e-3  # below both norms
    trainer(tmp_path, max_steps=1, gradient_clip_val=limit).fit(m, points())
    for network, old, rate in ((m.backbone, m.teacher.backbone.state_dict(), 0.1), (m.critic, before[0], 0.2)):
        change = torch.stack([(p - old[name]).norm() for name, p in network.state_dict().items()]).norm()
        assert float(change) == pytest.approx(rate * limit, rel=1e-3)
    assert all(float(m.shown()[f"{name}_gradient_norm"]) > limit for name in ("generator", "critic"))


@BOTH
@pytest.mark.parametrize("step", [3, 6])
def test_a_run_resumes_from_its_checkpoint_to_the_bit(make, step, tmp_path):
    """Also in the middle of the third stage, and where it begins."""

    def fit(name, callbacks=(), resume=None, seed=0):
        torch.manual_seed(seed)
        m = make()
        t = trainer(tmp_path, max_steps=9, callbacks=list(callbacks), max_epochs=-1, limit_val_batches=0)
        t.fit(m, Toy(batch_size=16, seed=3), ckpt_path=resume)
        t.save_checkpoint(tmp_path / name)
        return read_checkpoint(tmp_path / name)

    whole = fit("whole.ckpt")
    fit("half.ckpt", [InterruptAt(step)])
    rest = fit("rest.ckpt", resume=str(tmp_path / "half.ckpt"), seed=9)
    assert rest["trained_steps"] == whole["trained_steps"] == 9
    torch.testing.assert_close(rest["state_dict"], whole["state_dict"], rtol=0, atol=0)
    assert str(rest["optimizer_states"]) == str(whole["optimizer_states"])
    assert not any(name.startswith("frozen") for name in rest["state_dict"])


def test_a_stage_has_the_student_before_as_teacher_a_fresh_discriminator_and_fresh_moments(tmp_path):
    m, seen = lightning(), []

    step = m.optimizer_step

    def watched(*args, **options):
        step(*args, **options)
        fresh = not moved(m.fresh_encoder(), m.critic.encoder)
        same = not moved(weights(m.backbone), m.before)
        seen.append((m.stages.index(m.clock), same, fresh, bool(m.trainer.optimizers[0].state)))

    m.optimizer_step = watched
    trainer(tmp_path, max_steps=8).fit(m, points())
    assert [entry[0] for entry in seen] == [0, 1, 1, 2, 2, 3, 3, 3]
    for i, (_, same, fresh, moments) in enumerate(seen):
        begins = i in (1, 3, 5)
        assert fresh == (begins or i == 0)  # by squared error no discriminator is trained
        assert moments != begins
        assert same == (i in (1, 5)), i  # the third stage keeps the teacher of the second


def test_the_squared_error_is_that_of_the_teacher_s_estimate_behind_its_steps():
    m = lightning(stages=[Stage(8, 4)]).eval()
    m.setup("fit")
    x, labels = batch()
    loss, critic = m.losses(x, labels, torch.Generator().manual_seed(5))
    g = torch.Generator().manual_seed(5)
    sigmas = torch.cat([karras_sigmas(8).float(), torch.zeros(1)])
    i = 2 * torch.randint(4, (8,), generator=g)
    z = torch.randn(x.shape, generator=g)
    total = 0.0
    for k in range(8):
        first, middle, last = (sigmas[i[k] + j].expand(1) for j in (0, 1, 2))
        x_t = (x[k] * (i[k] > 0) + first * z[k])[None]
        with torch.no_grad():
            there = x_t + (middle - first) * (x_t - m.denoised(x_t, first, labels[:1])) / first
            end = there + (last - middle) * (there - m.denoised(there, middle, labels[:1])) / middle
            goal = (end - last / first * x_t) / (1 - last / first)  # solved for the estimate of one Euler step
            error = (m.denoiser(x_t, first, labels[:1]) - goal).square().mean()
        total += float((first**2 + 0.25) / (first * 0.5) ** 2 * error) / 8
    assert critic is None
    assert loss.item() == pytest.approx(total, rel=1e-4)


def test_few_steps_are_eulers_on_every_nth_level_of_the_first_teacher():
    m = lightning()
    m.setup("fit")
    z = torch.randn(3, 2)
    labels = torch.zeros(3, dtype=torch.long)
    expected = integrate(euler_step, lambda x, s: m.denoiser(x, s, labels), z, karras_sigmas(8)[::2])
    assert m.default_sigmas(4) == pytest.approx(karras_sigmas(8)[::2].tolist())
    drawn = m.generate(z, labels, m.default_sigmas(4), None)
    torch.testing.assert_close(drawn, expected)
    i = torch.zeros(3, dtype=torch.long)
    trained = m.ladder.advance(
        lambda x, s: m.denoiser(x, s, labels), m.ladder.point(torch.zeros_like(z), z, i), i, 4, 4
    )
    torch.testing.assert_close(drawn, trained, rtol=1e-4, atol=1e-4)
    assert m.default_steps == 1
    with pytest.raises(ConfigError, match="3 steps do not divide the 8 levels of the first teacher"):
        m.sample(2, steps=3)


def test_the_generator_is_trained_on_its_own_points_under_noise():
    """Backward simulation: no data enter the samples."""
    m = matching(gan_weight=0.0).eval()
    m.setup("fit")
    x, labels = batch()
    z = torch.randn(8, 2)
    expected = m.generator(80 * z, torch.full((8,), 80.0), labels)
    torch.testing.assert_close(m.samples(z, labels, 1, None), expected)
    noise = torch.randn(8, 2, generator=torch.Generator().manual_seed(4))
    second = m.generator(expected + 5 * noise, torch.full((8,), 5.0), labels)
    torch.testing.assert_close(m.samples(z, labels, 2, torch.Generator().manual_seed(4)), second)
    losses = [m.losses(data, labels, torch.Generator().manual_seed(1)) for data in (x, x + 1)]
    assert losses[0].critic == losses[1].critic > 0


def test_distribution_matching_has_no_gradient_where_the_fake_score_is_the_teacher():
    m = matching(gan_weight=0.0)
    m.setup("fit")  # the fake score starts as the teacher
    generator, _ = m.losses(*batch())
    assert generator == 0
    assert not gradients(generator, m.backbone)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_a_divergence_weighs_samples_by_the_discriminator_at_the_same_noise(divergence):
    m, seen = matching(divergence=divergence, gan_weight=1e-9), []
    m.setup("fit")
    m.critic.head.register_forward_hook(lambda module, inputs, logits: seen.append(logits.detach()))
    with patch("cm_lightning.modules.matching.matching_loss", wraps=matching_loss) as loss:
        m.losses(*batch(), torch.Generator().manual_seed(0))
    weight = loss.call_args.args[3]
    if divergence == "reverse_kl":
        assert weight is None
        return
    torch.testing.assert_close(weight, matching_weight(seen[0], divergence))
    assert len(set(weight.tolist())) > 1


def test_a_generator_draws_in_the_steps_of_its_training():
    m = matching()
    assert m.default_steps == 3
    assert m.default_sigmas(2) == [80.0, 5.0]
    assert m.sample(4).shape == (4, 2)
    with pytest.raises(ConfigError, match="trained for 3 step\\(s\\), not for 4"):
        m.sample(2, steps=4)


@pytest.mark.parametrize(
    ("real", "spread", "line"),
    [
        (9.0, 1.0, "the discriminator is right about 100.0%.*lower critic_lr"),
        (0.1, 0.01, "the generator has collapsed"),
    ],
)
def test_a_discriminator_that_wins_and_samples_that_are_alike_are_named(real, spread, line, tmp_path):
    m = lightning(stages=STAGES[1:2])
    x = torch.randn(16, 2)
    logits = torch.full((16,), real)
    for _ in range(60):
        m.watch(logits, -logits * (1 if real > 1 else -1), x, spread * x)
    m._trainer = trainer(tmp_path)
    with pytest.warns(UserWarning, match=line):
        m.on_train_batch_end(None, None, 0)


def test_a_young_discriminator_is_not_blamed(tmp_path, recwarn):
    m = lightning(stages=STAGES[1:2])
    m.watch(torch.ones(4), -torch.ones(4), torch.randn(4, 2), torch.zeros(4, 2))
    m._trainer = trainer(tmp_path)
    m.on_train_batch_end(None, None, 0)
    assert not [w for w in recwarn if "discriminator" in str(w.message) or "collapsed" in str(w.message)]


@BOTH
def test_it_is_rebuilt_from_its_checkpoint_without_the_teacher(make, tmp_path):
    m = make(optimizer=None)
    t = trainer(tmp_path, max_steps=2)
    t.fit(m, points())
    t.save_checkpoint(tmp_path / "m.ckpt")
    loaded = load_module(tmp_path / "m.ckpt")
    z = torch.Generator().manual_seed(0), torch.Generator().manual_seed(0)
    assert type(loaded) is type(m)
    assert loaded.sample(3, generator=z[0]).equal(m.sample(3, generator=z[1]))


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: lightning(stages=[]), "stages must be given"),
        (lambda: lightning(discriminator_levels=[]), "discriminator_levels must be"),
        (lambda: lightning(discriminator_levels=[0.0]), "discriminator_levels must be a finite number above 0"),
        (lambda: lightning(critic_lr=0.0), "critic_lr must be a finite number above 0"),
        (lambda: lightning(backbone=torch.nn.Linear(2, 2)), "features, which Linear does not give"),
        (lambda: lightning(lr_scheduler=torch.optim.lr_scheduler.LinearLR), "lr_scheduler must be a RateSchedule"),
        (lambda: matching(levels=[1.0, 2.0]), "levels must be positive, finite noise levels in descending order"),
        (lambda: matching(guidance=-1.0), "guidance must be a finite number of at least 0"),
        (lambda: matching(divergence="jensen"), "divergence must be one of reverse_kl, forward_kl, "),
        (lambda: matching(divergence="forward_kl", gan_weight=0.0), "forward_kl needs the .*: set gan_weight above 0"),
        (lambda: matching(gan_weight=-1.0), "gan_weight must be a finite number of at least 0"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_line(make, line):
    with pytest.raises(ConfigError, match=line):
        make()


def test_guidance_needs_a_teacher_with_a_null_class():
    plain = DiffusionModule(network(7), (2,))
    for m in (lightning(teacher=plain), matching(teacher=plain, guidance=1.0)):
        with pytest.raises(ConfigError, match="trained with label_dropout"):
            m.setup("fit")


def test_the_schedule_of_the_rate_starts_anew_with_each_stage(tmp_path):
    m = lightning(lr_scheduler=HoldThenCosine(rise=2, hold=1.0))
    t = trainer(tmp_path, max_steps=8)
    rates = []
    step = m.optimizer_step

    def watched(*args, **options):
        rates.append(t.optimizers[0].param_groups[0]["lr"])
        step(*args, **options)

    m.optimizer_step = watched
    t.fit(m, points())
    assert rates == pytest.approx([0.025, 0.05] * 3 + [0.0125, 0.025])


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_of_the_zoo_gives_features(name):
    net, x = NETWORKS[name](), torch.randn(2, *SHAPE)
    features = net.bottleneck(x, torch.zeros(2), None)
    assert features.shape[:2] == (2, net.bottleneck_width)
    assert features.ndim == 4
    x.requires_grad_()
    assert torch.autograd.grad(net.bottleneck(x, torch.zeros(2), None).square().sum(), x)[0].abs().sum() > 0


def test_images_train_both_methods(tmp_path):
    def unet(seed):
        torch.manual_seed(seed)
        return UNet(1, 8, (1, 2), 1, (), num_classes=2)

    source = DiffusionModule(unet(7), (1, 8, 8), label_dropout=0.1)
    made = (
        AdversarialDistillation(unet(1), (1, 8, 8), source, [Stage(4, 2), Stage(2, 1, "conditional")]),
        DistributionMatchingDistillation(unet(1), (1, 8, 8), source),
    )
    for m in made:
        trainer(tmp_path, max_steps=2, max_epochs=-1).fit(m, images((1, 8, 8), classes=2))
        drawn = m.sample(2)
        assert drawn.shape == (2, 1, 8, 8)
        assert drawn.isfinite().all()
        assert m.trained_steps == 2
