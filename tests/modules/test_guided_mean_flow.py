"""iMF with the guidance as an input: what the network is given, what it learns, and one evaluation for each step."""

import pytest
import torch

from cm_lightning.backbones.embedding import GuidedTimesEmbedding, TwoTimesEmbedding
from cm_lightning.backbones.mlp import ResidualMLP
from cm_lightning.core.guidance import Guidance, GuidanceInput, GuidanceLaw
from cm_lightning.errors import ConfigError
from cm_lightning.modules.guided_mean_flow import GuidedMeanFlow


def made(embedding=GuidedTimesEmbedding, classes=2, **own):
    torch.manual_seed(1)
    net = ResidualMLP(2, 16, 1, num_classes=classes, noise_embedding=embedding(16))
    torch.nn.init.normal_(net.head.weight, std=0.2)
    return GuidedMeanFlow(net, (2,), **own)


def test_the_law_of_the_guidance():
    labels = torch.arange(20_000) % 3
    g = GuidanceLaw(8.0).draw(labels, torch.Generator().manual_seed(0))
    omega = 1 / (1 - g.strength)
    assert torch.equal(g.labels, labels)
    assert omega.log().mean().item() == pytest.approx(torch.tensor(8.0).log().item() / 2, abs=0.02)
    assert omega.median().item() == pytest.approx(2.828427124746, rel=0.03)
    assert (omega.min().item(), omega.max().item()) == pytest.approx((1, 8), rel=0.01)
    assert (g.low.min().item(), g.low.max().item()) == pytest.approx((0, 0.5), abs=0.01)
    assert (g.high.min().item(), g.high.max().item()) == pytest.approx((0.5, 1), abs=0.01)


@pytest.mark.parametrize(
    ("label", "t", "gap", "expected"),
    [
        (0, 0.5, 0.2, (0.75, 0.3, 0.6)),  # as they are
        (0, 0.9, 0.2, (0.75, 0.3, 0.6)),  # on the way down it comes into the interval
        (0, 0.5, 0.0, (0.75, 0.0, 1.0)),  # at r = t what is in force there
        (0, 0.9, 0.0, (0.0, 0.0, 1.0)),
        (2, 0.5, 0.2, (0.0, 0.0, 1.0)),  # the null class is not guided
        (2, 0.5, 0.0, (0.0, 0.0, 1.0)),
    ],
)
@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_what_the_network_is_given(label, t, gap, expected, scale):
    seen = []
    network = GuidanceInput(lambda x, labels, c: seen.append((labels, c)) or x, null=2, noise_scale=scale)
    times, classes = scale * torch.tensor([[t, gap]]), torch.tensor([label])
    network(torch.zeros(1, 2), times, Guidance.of(classes, 4.0, 0.3, 0.6))
    torch.testing.assert_close(seen[0][0], torch.cat([times, torch.tensor([expected])], 1))
    assert torch.equal(seen[0][1], classes)


def test_classes_alone_are_not_guided_and_none_is_the_null_class():
    seen = []
    network = GuidanceInput(lambda x, labels, c: seen.append((labels[:, 2:].tolist(), c.tolist())) or x, null=2)
    for c in (torch.tensor([1]), None):
        network(torch.zeros(1, 2), torch.tensor([[0.5, 0.2]]), c)
    assert seen == [([[0.0, 0.0, 1.0]], [1]), ([[0.0, 0.0, 1.0]], [2])]


def test_the_guided_velocity_of_classifier_free_guidance_is_what_the_loss_teaches():
    """With velocities a under the class and b under the null class, omega a + (1 - omega) b is its own goal."""
    m = made(label_dropout=0.1)
    a, b = torch.tensor([0.7, -0.2]), torch.tensor([0.1, 0.4])

    def network(x, labels, c):
        omega = 1 / (1 - labels[:, 2:3])
        return torch.where(c[:, None] == 2, b, omega * a + (1 - omega) * b)

    m.backbone.forward = network
    t, x, labels = torch.tensor([0.5, 0.5, 0.9, 0.5]), torch.randn(4, 2), torch.tensor([0, 1, 0, 2])
    omega = torch.tensor([4.0, 2.0, 4.0, 4.0])
    given = Guidance(labels, 1 - 1 / omega, torch.full((4,), 0.3), torch.full((4,), 0.6))
    v = torch.where(labels[:, None] == 2, b, a)  # what the data have in the mean
    found = m.objective.trajectory.velocity(x, x + v, (1 - t[:, None]) * x + t[:, None] * (x + v), t, given)
    expected = torch.stack([4 * a - 3 * b, 2 * a - b, a, b])  # the third lies outside its interval
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(m.map().velocity(x, t, given), expected)


def test_a_guided_sample_costs_one_evaluation_for_each_step():
    m, seen = made(interval=(0.4, 0.65)), []
    m.backbone.register_forward_hook(lambda network, inputs, output: seen.append(inputs[1]))
    draws = [m.sample(3, 2, guidance=w, generator=torch.Generator().manual_seed(0)) for w in (0.0, 3.0)]
    assert [len(labels) for labels in seen] == [3] * 4
    torch.testing.assert_close(seen[0][0], torch.tensor([1.0, 0.5, 0.0, 0.4, 0.65]))
    torch.testing.assert_close(seen[3][0], torch.tensor([0.5, 0.5, 0.75, 0.4, 0.65]))
    assert not torch.allclose(*draws)


def test_only_guidance_that_was_trained_is_taken():
    m = made()
    for w in (-0.5, 7.5):
        with pytest.raises(ConfigError, match=r"guidance must lie in 0 \.\.\. 7, where the network was trained, got"):
            m.sample(1, guidance=w)
    with pytest.raises(ConfigError, match=r"gives its network 5 noise .* takes 2: .* a GuidedTimesEmbedding"):
        made(TwoTimesEmbedding)
    with pytest.raises(ConfigError, match=r"label_dropout"):
        made(classes=0)
    with pytest.raises(ConfigError, match="guidance needs a class-conditional backbone and label_dropout above 0"):
        made(label_dropout=0.0)
