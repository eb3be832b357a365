import pytest
import torch
from torch import nn

from cm_lightning.backbones.adm import ADM
from cm_lightning.backbones.attention import DotProduct, set_forward_mode
from cm_lightning.backbones.ddpmpp import DDPMpp
from cm_lightning.backbones.dit import DiT
from cm_lightning.backbones.edm2 import EDM2, UnitFourier, UnitLinear, _join, _mix, _silu, _unit
from cm_lightning.backbones.layers import Resample
from cm_lightning.backbones.ncsnpp import NCSNpp
from cm_lightning.backbones.protocol import Backbone
from cm_lightning.core.target_rate import ConstantRate
from cm_lightning.errors import ConfigError
from cm_lightning.modules.diffusion import DiffusionModule
from cm_lightning.modules.distillation import ConsistencyDistillation
from cm_lightning.modules.training import ConsistencyTraining
from tests.backbones.zoo import NETWORKS, SHAPE, awake
from tests.helpers import images, trainer

every_network = pytest.mark.parametrize("name", NETWORKS)


def parameters(network):
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(
    ("make", "published"),
    [
        # EDM's counts hold a map of 9 augmentation labels to the noise embedding's width, unused in sampling
        (DDPMpp.cifar10, 55_733_891 - 9 * 128),
        (lambda: DDPMpp.cifar10(num_classes=10), 55_733_891 - 9 * 128 + 10 * 128 + 128),
        (ADM.imagenet64, 295.9e6),
        (NCSNpp.cifar10, 56.4e6),
        (DDPMpp.ffhq64, 61.8e6),
        (NCSNpp.ffhq64, 62.8e6),
        (lambda: EDM2.imagenet("S"), 280e6),
        (lambda: EDM2.imagenet("M"), 498e6),
        (lambda: EDM2.imagenet("L"), 777e6),
        (lambda: EDM2.imagenet("XL"), 1119e6),
        (lambda: EDM2.imagenet("XS", image_channels=4), 125e6),
        (lambda: DiT.small(image_channels=4, num_classes=1000), 33e6),
        (lambda: DiT.base(image_channels=4, num_classes=1000), 130e6),
        (lambda: DiT.large(image_channels=4, num_classes=1000), 458e6),
        # the released DiT-XL/2 also counts its fixed places (256 x 1152) and predicts a variance (16 more outputs)
        (lambda: DiT.xlarge(image_channels=4, num_classes=1000), 675_129_632 - 256 * 1152 - 16 * 1153),
    ],
)
def test_parameters_are_the_published_networks(make, published):
    with torch.device("meta"):
        count = parameters(make())
    if isinstance(published, int):
        assert count == published
    else:
        assert round(count / 1e6, 1 if published < 100e6 or published == 295.9e6 else 0) == pytest.approx(
            published / 1e6, abs=0.5 if published % 1e6 == 0 else 1e-6
        )


@every_network
def test_an_image_to_an_image(name):
    network = awake(NETWORKS[name]())
    x = torch.randn(2, *SHAPE)
    out = network(x, torch.tensor([0.0, 1.0]))
    assert out.shape == x.shape
    assert isinstance(network, Backbone)
    network.eval()
    first = network(x[:1], torch.zeros(1))
    torch.testing.assert_close(first, network(x, torch.tensor([0.0, 1.0]))[:1], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(first, network(x[:1], torch.ones(1)))


@pytest.mark.parametrize("name", ["ADM", "DDPMpp", "DiT", "EDM2", "NCSNpp", "UNet"])
def test_a_new_network_s_output_is_next_to_nothing(name):
    out = NETWORKS[name]()(torch.randn(2, *SHAPE), torch.zeros(2))
    assert out.abs().max() < 1e-3


@every_network
def test_classes_and_the_null_class(name):
    network = awake(NETWORKS[name](num_classes=3))
    assert network.num_classes == 3
    x, noise = torch.randn(1, *SHAPE), torch.zeros(1)
    null = network(x, noise)
    torch.testing.assert_close(network(x, noise, torch.tensor([3])), null)
    assert not torch.allclose(network(x, noise, torch.tensor([0])), network(x, noise, torch.tensor([2])))
    assert not torch.allclose(network(x, noise, torch.tensor([0])), null)


@pytest.mark.parametrize("name", sorted(set(NETWORKS) - {"ResidualMLP"}))
def test_dropout_acts_in_training_only(name):
    network = awake(NETWORKS[name](dropout=0.5))
    x, noise = torch.randn(1, *SHAPE), torch.zeros(1)
    assert not torch.equal(network(x, noise), network(x, noise))
    network.eval()
    assert torch.equal(network(x, noise), network(x, noise))


@every_network
def test_the_forward_mode_derivative_is_the_finite_difference(name):
    network = awake(NETWORKS[name](forward_mode=True, num_classes=2)).double().eval()
    g = torch.Generator().manual_seed(1)
    x, dx = (torch.randn(2, *SHAPE, generator=g, dtype=torch.float64) for _ in range(2))
    noise, dnoise = (torch.rand(2, generator=g, dtype=torch.float64) for _ in range(2))
    labels, h, tolerance = torch.tensor([0, 2]), 1e-6, 1e-6
    if name == "DiffusersUNet":  # it computes parts in float32, whatever its weights
        dnoise, h, tolerance = torch.zeros_like(dnoise), 1e-3, 1e-3

    def f(x, noise):
        return network(x, noise, labels)

    _, tangent = torch.func.jvp(f, (x, noise), (dx, dnoise))
    difference = (f(x + h * dx, noise + h * dnoise) - f(x - h * dx, noise - h * dnoise)) / (2 * h)
    assert tangent.norm() > 1e-3
    assert (tangent - difference).norm() < tolerance * tangent.norm()


def test_both_kernels_attend_alike_and_only_one_has_a_forward_mode_derivative():
    q, k, v = torch.randn(3, 2, 4, 9, 8)
    fused, plain = DotProduct(), DotProduct(forward_mode=True)
    torch.testing.assert_close(fused(q, k, v), plain(q, k, v), rtol=1e-5, atol=1e-6)
    half = [t.bfloat16() for t in (q, k, v)]
    assert plain(*half).dtype == torch.bfloat16
    network = awake(NETWORKS["DDPMpp"]())
    x, noise = torch.randn(1, *SHAPE), torch.zeros(1)
    before = network(x, noise)
    set_forward_mode(network, True)
    assert all(m.forward_mode for m in network.modules() if isinstance(m, DotProduct))
    torch.testing.assert_close(network(x, noise), before, rtol=1e-4, atol=1e-4)


@every_network
def test_two_steps_of_training_and_a_sample(name, tmp_path):
    m = ConsistencyTraining(
        NETWORKS[name](num_classes=2, dropout=0.1), SHAPE, target_rate=ConstantRate(0.5), label_dropout=0.5
    )
    before = {n: p.clone() for n, p in m.backbone.named_parameters()}
    trainer(tmp_path, max_steps=2).fit(m, images(SHAPE, classes=2))
    assert any(not torch.equal(p, before[n]) for n, p in m.backbone.named_parameters())
    assert m.sample(2, 2).shape == (2, *SHAPE)


@every_network
def test_a_student_takes_a_teacher_of_its_kind(name, tmp_path):
    teacher = DiffusionModule(awake(NETWORKS[name]()), SHAPE)
    m = ConsistencyDistillation(NETWORKS[name](), SHAPE, teacher)
    trainer(tmp_path, max_steps=1).fit(m, images(SHAPE))


@pytest.mark.parametrize("name", ["ADM", "DDPMpp", "NCSNpp", "EDM2", "DiT"])
def test_sides_that_cannot_be_halved_are_named(name):
    with pytest.raises(ConfigError, match="9 x 8 do not fit: give this network sides that are multiples of 2"):
        NETWORKS[name]()(torch.randn(1, 3, 9, 8), torch.zeros(1))


def test_filters_keep_a_constant_and_their_orientation():
    constant = torch.ones(1, 2, 8, 8)
    for taps in ((1, 1), (1, 3, 3, 1)):
        down, up = Resample("down", taps)(constant), Resample("up", taps)(constant)
        assert down.shape[2:] == (4, 4)
        assert up.shape[2:] == (16, 16)
        torch.testing.assert_close(down[..., 1:-1, 1:-1], torch.ones(1, 2, 2, 2))
        torch.testing.assert_close(up[..., 1:-1, 1:-1], torch.ones(1, 2, 14, 14))
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)
    torch.testing.assert_close(Resample("down", (1, 3, 3, 1))(ramp)[0, 0, 1, 1:-1], torch.tensor([2.5, 4.5]))


def test_the_image_itself_reaches_ncsnpp_s_coarser_level():
    network = awake(NETWORKS["NCSNpp"](multipliers=(1, 2, 2)))
    assert [tuple(inlet.conv.weight.shape[:2]) for inlet in network.pyramid.inlets] == [(8, 3), (16, 8)]
    x, noise = torch.randn(1, *SHAPE), torch.zeros(1)
    before = network(x, noise)
    nn.init.zeros_(network.pyramid.inlets[0].conv.weight)
    assert not torch.allclose(network(x, noise), before)


def test_edm2_s_layers_keep_the_magnitude_of_noise():
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 64, 32, 16, 16, generator=g)
    linear = UnitLinear(32, 64)(a.mean(dim=(2, 3)) * 16)
    convolved = UnitLinear(32, 64, 3)(a)[..., 1:-1, 1:-1]  # without the border of zeros
    for out in (linear, convolved, _mix(a, b, 0.3), _join(a, b[:, :8], 0.5)):
        assert out.square().mean().sqrt().item() == pytest.approx(1, abs=0.03)
    assert _silu(a).square().mean().sqrt().item() == pytest.approx(1, abs=0.01)
    assert _unit(5 * a, [1]).square().mean(1).sub(1).abs().max() < 1e-3
    assert UnitFourier(256)(torch.randn(64)).square().mean().item() == pytest.approx(1, abs=0.05)


def test_edm2_keeps_the_norm_of_its_weights():
    network = NETWORKS["EDM2"]()
    nn.init.ones_(network.gain)
    x, noise = torch.randn(4, *SHAPE), torch.randn(4)
    out = network(x, noise)
    with torch.no_grad():
        for p in network.parameters():
            p.mul_(3 if p.ndim else 1)
    network.eval()
    torch.testing.assert_close(network(x, noise), out, rtol=1e-2, atol=1e-3)  # the length of a weight means nothing
    network.train()(x, noise).sum().backward()
    weights = [m.weight for m in network.modules() if isinstance(m, UnitLinear)]
    for weight in weights:
        rms = weight.detach().square().mean(dim=tuple(range(1, weight.ndim))).sqrt()
        torch.testing.assert_close(rms, torch.ones_like(rms), rtol=1e-3, atol=1e-3)


def test_edm2_bears_two_passes_before_a_step_and_is_brought_to_norm_after_it():
    network = NETWORKS["EDM2"]().train()
    layer = next(m for m in network.modules() if isinstance(m, UnitLinear))
    x, noise = torch.randn(4, *SHAPE), torch.randn(4)
    for _ in range(2):
        (network(x, noise) + network(x, noise + 1)).sum().backward()
        unit = _unit(layer.weight.detach(), layer._dims())
        torch.testing.assert_close(layer.weight.detach(), unit, rtol=1e-3, atol=1e-3)
        with torch.no_grad():
            layer.weight.mul_(3)  # in place of an optimizer's step
