"""The methods of the field as modules: what they need to train, to resume to the bit, and to sample in a few steps."""

import copy

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from cm_lightning.backbones.embedding import (
    GuidedTimesEmbedding,
    JumpEmbedding,
    PositionalEmbedding,
    StepSizeEmbedding,
    TwoTimesEmbedding,
)
from cm_lightning.backbones.mlp import ResidualMLP
from cm_lightning.core.curriculum import Clock
from cm_lightning.core.target_rate import ConstantRate
from cm_lightning.errors import ConfigError
from cm_lightning.modules.consistency import ConsistencyModule
from cm_lightning.modules.diffusion import DiffusionModule
from cm_lightning.modules.guided_mean_flow import GuidedMeanFlow
from cm_lightning.modules.improved_mean_flow import ImprovedMeanFlow
from cm_lightning.modules.loading import load_module
from cm_lightning.modules.moment_matching import InductiveMomentMatching
from cm_lightning.modules.progressive import ProgressiveDistillation
from cm_lightning.modules.self_distillation import (
    EulerianSelfDistillation,
    LagrangianSelfDistillation,
    ProgressiveSelfDistillation,
)
from cm_lightning.modules.shortcut import ShortcutModel
from cm_lightning.modules.trajectory_distillation import TrajectoryDistillation
from cm_lightning.modules.truncated import TruncatedConsistencyTraining
from cm_lightning.modules.velocity_chords import AlphaFlow, SoFlow
from tests.helpers import trainer


def network(embedding=TwoTimesEmbedding):
    torch.manual_seed(1)
    net = ResidualMLP(2, 16, 2, num_classes=2, noise_embedding=embedding and embedding(16))
    torch.nn.init.normal_(net.head.weight, std=0.2)
    return net


def options(embedding=TwoTimesEmbedding, **own):
    return {
        "backbone": network(embedding), "image_shape": (2,), "label_dropout": 0.1,
        "optimizer": lambda p: torch.optim.Adam(p, 1e-2), **own,
    }  # fmt: skip


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A trained diffusion model, to start from."""
    folder = tmp_path_factory.mktemp("first")
    t = trainer(folder, max_steps=1)
    t.fit(DiffusionModule(**options(None)), batches())
    t.save_checkpoint(folder / "first.ckpt")
    return str(folder / "first.ckpt")


METHODS = {
    "LSD": lambda first: LagrangianSelfDistillation(**options()),
    "LSD, differences": lambda first: LagrangianSelfDistillation(**options(derivative="difference")),
    "ESD": lambda first: EulerianSelfDistillation(**options()),
    "ESD, differences": lambda first: EulerianSelfDistillation(**options(derivative="difference")),
    "PSD": lambda first: ProgressiveSelfDistillation(**options()),
    "shortcut": lambda first: ShortcutModel(**options(StepSizeEmbedding, finest=16, target_rate=ConstantRate(0.5))),
    "iMF": lambda first: ImprovedMeanFlow(**options(omega=2.0, interval=(0.1, 0.9))),
    "iMF, differences": lambda first: ImprovedMeanFlow(**options(derivative="difference")),
    "iMF, guidance as an input": lambda first: GuidedMeanFlow(**options(GuidedTimesEmbedding, derivative="difference")),
    "alpha-Flow": lambda first: AlphaFlow(**options()),
    "SoFlow": lambda first: SoFlow(**options()),
    "IMM": lambda first: InductiveMomentMatching(**options()),
    "CTM": lambda first: TrajectoryDistillation(**options(JumpEmbedding, teacher=first, start_from_teacher=False)),
    "TCM": lambda first: TruncatedConsistencyTraining(**options(None, start_from=first)),
    "progressive": lambda first: ProgressiveDistillation(**options(None, start_from=first, steps=4, stages=3)),
}
EACH = pytest.mark.parametrize("make", METHODS.values(), ids=METHODS)


def batches():
    """One batch, many times, so that only the method's own state tells one step from another."""
    x = 0.5 * torch.randn(16, 2, generator=torch.Generator().manual_seed(5))
    return DataLoader(TensorDataset(x.repeat(16, 1), (torch.arange(16) % 2).repeat(16)), batch_size=16)


class SaveAt(L.Callback):
    """Saves a checkpoint after a step."""

    def __init__(self, step, path):
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


@EACH
def test_a_run_trains_and_is_resumed_to_the_bit(make, first, tmp_path):
    whole, rest = make(first), make(first)
    start = copy.deepcopy(whole.backbone.state_dict())
    torch.manual_seed(7)
    trainer(tmp_path, max_steps=6, callbacks=[SaveAt(3, tmp_path / "half.ckpt")]).fit(whole, batches())
    assert any(not torch.equal(start[name], value) for name, value in whole.backbone.state_dict().items())
    trainer(tmp_path, max_steps=6).fit(rest, batches(), ckpt_path=tmp_path / "half.ckpt")
    assert rest.trained_steps == whole.trained_steps == 6
    torch.testing.assert_close(rest.state_dict(), whole.state_dict(), rtol=0, atol=0)
    loaded = load_module(tmp_path / "half.ckpt")  # also a second stage, which is not built without its first
    assert (type(loaded), loaded.trained_steps) == (type(whole), 3)
    assert loaded.sample(2).shape == (2, 2)


@EACH
def test_a_sample_costs_one_evaluation_for_each_step(make, first):
    m, rows = make(first), []
    m.backbone.register_forward_hook(lambda network, inputs, output: rows.append(len(output)))
    for steps in (1, 2, 4, 8, 16):
        rows.clear()
        assert m.sample(3, steps, generator=torch.Generator().manual_seed(0)).isfinite().all()
        assert rows == [3] * steps


def test_a_share_that_leaves_nothing_is_refused():
    for kind in (
        LagrangianSelfDistillation, EulerianSelfDistillation, ProgressiveSelfDistillation, ShortcutModel,
    ):  # fmt: skip
        for share in (0, 1):
            with pytest.raises(ConfigError, match=f"^{kind.__name__}: share must be"):
                kind(**options(share=share))
    with pytest.raises(ConfigError, match=r"^ShortcutModel: finest must be a power of 2 .*, got 12"):
        ShortcutModel(**options(finest=12))


def test_the_target_network_answers_where_there_is_one():
    m = ShortcutModel(**options(target_rate=ConstantRate(0.5)))
    assert m.objective.rest.trajectory.flow_map.network is m.target is not m.backbone
    assert m.progress(m.clock) == {"mu": 0.5}
    assert ProgressiveSelfDistillation(**options()).target_map().network is not None


def test_labels_are_dropped_throughout_the_batch():
    m, seen = ImprovedMeanFlow(**options()), []
    m.loss = lambda x, labels, generator: seen.append(labels == 2)
    for _ in range(100):
        m.batch_loss(next(iter(batches())), 1)
    share = torch.stack(seen).double().mean(0)
    assert 0 < share.min().item() <= share.max().item() < 0.3


@pytest.mark.parametrize("own", [{"label_dropout": 0.0}, {"backbone": ResidualMLP(2, 16, 2, noise_embedding=None)}])
def test_guidance_inside_needs_classes_and_dropped_labels(own):
    with pytest.raises(ConfigError, match="omega needs a class-conditional backbone and label_dropout above 0"):
        ImprovedMeanFlow(**options(omega=2.0, **own))
    with pytest.raises(ConfigError, match=r"^ImprovedMeanFlow: omega must be a finite number of at least 1, got 0.5"):
        ImprovedMeanFlow(**options(omega=0.5))


def test_guidance_inside_is_that_of_the_network_s_own_velocities():
    m = ImprovedMeanFlow(**options(omega=4.0))
    x, z, t, c = torch.randn(4, 2), torch.randn(4, 2), torch.linspace(0.2, 0.9, 4), torch.tensor([0, 1, 0, 2])
    x_t, own = (1 - t[:, None]) * x + t[:, None] * z, m.map()
    with torch.no_grad():
        found = m.objective.trajectory.velocity(x, z, x_t, t, c)
        difference = own.velocity(x_t, t, c) - own.velocity(x_t, t, torch.full_like(c, 2))
    torch.testing.assert_close(found, z - x + 0.75 * difference)
    assert torch.equal(difference[3], torch.zeros(2))  # a dropped label learns the data's velocity


def test_a_second_stage_keeps_its_first(first, tmp_path):
    m = TruncatedConsistencyTraining(**options(None, start_from=first))
    trainer(tmp_path, max_steps=2).fit(m, batches())
    held = torch.load(first, weights_only=True)["state_dict"]
    for name, value in m.first_stage.state_dict().items():
        assert torch.equal(value, held[f"backbone.{name}"])
    assert not torch.equal(m.backbone.head.weight, m.first_stage.head.weight)
    assert m.default_sigmas(2)[1] > 1
    with pytest.raises(ConfigError, match=r"sigmas must lie in 1 \.\.\. 80"):
        m.sample(2, sigmas=[80.0, 0.9])
    with pytest.raises(ConfigError, match="set start_from to a ConsistencyTraining's checkpoint"):
        TruncatedConsistencyTraining(**options(None, start_from=""))


def test_the_student_of_a_stage_is_the_teacher_of_the_next(first, tmp_path):
    m = ProgressiveDistillation(**options(None, start_from=first, steps=4, stages=3))
    (follower,), students, teachers = m.followers, [], []
    follow = follower.follow

    def noted(clock):
        follow(clock)
        students.append(m.backbone.head.weight.detach().clone())
        teachers.append(m.stage_teacher.head.weight.clone())

    follower.follow = noted
    trainer(tmp_path, max_steps=6).fit(m, batches())
    start = torch.load(first, weights_only=True)["state_dict"]["backbone.head.weight"]
    expected = [start, *[students[1]] * 2, *[students[3]] * 2, students[3]]
    assert all(torch.equal(*pair) for pair in zip(teachers, expected, strict=True))
    assert m.progress(Clock(3, 6)) == {"steps": 2}
    assert (m.default_steps, m.default_sigmas(1)) == (1, [80.0])
    assert not m.stage_teacher.training
    with pytest.raises(ConfigError, match="set start_from to a DiffusionModule's checkpoint"):
        ProgressiveDistillation(**options(None, start_from=""))


def test_imm_starts_at_its_highest_level():
    m = InductiveMomentMatching(**options(sampling_sigmas={4: [0.9, 0.6, 0.4, 0.2]}))
    assert m.default_sigmas(2) == [0.994, 0.497]
    assert m.default_sigmas(4) == [0.9, 0.6, 0.4, 0.2]
    z, labels = torch.randn(3, 2, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 0])
    sampled = m.sample(3, 1, labels=labels, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(m.one_step(z, labels), sampled)
    with pytest.raises(ConfigError, match=r"sigmas must lie in 0 \.\.\. 0.994"):
        m.sample(1, sigmas=[1.0])


def ctm(teacher, **own):
    embedding = JumpEmbedding(16, PositionalEmbedding(16, endpoint=True))
    return TrajectoryDistillation(**options(lambda width: embedding, teacher=teacher, **own))


def test_ctm_starts_as_its_teacher_s_denoiser_and_has_a_target_of_its_own(tmp_path):
    plain = DiffusionModule(**options(lambda width: PositionalEmbedding(width, endpoint=True)))
    plain.backbone.head.weight.data.add_(0.1)
    m = ctm(plain)
    m.trainer = trainer(tmp_path)
    m.setup("fit")
    x, t, labels = torch.randn(4, 2), torch.logspace(-2, 1.9, 4), torch.tensor([0, 1, 2, 0])
    with torch.no_grad():
        own = m.parameterization.denoised(m.backbone, x, t, labels)
        assert torch.equal(own, plain.denoiser(x, t, labels))
        torch.testing.assert_close(m.flow_map(x, t, 0 * t, labels), m.consistency_function(x, t, labels))
    assert m.progress(m.clock) == {"N": 18, "mu": 0.999}
    m.loss(x, labels).backward()
    assert any(p.grad.any() for p in m.backbone.parameters())
    assert all(p.grad is None for other in (m.target, plain) for p in other.parameters())


@pytest.mark.parametrize("make", [METHODS["PSD"], METHODS["CTM"]], ids=["PSD", "CTM"])
def test_gamma_draws_noise_anew_between_steps(make, first):
    m, drawn = make(first), {}
    for m.gamma in (0.0, 0.5, 1.0):
        drawn[m.gamma] = [m.sample(3, n, generator=torch.Generator().manual_seed(0)) for n in (1, 3)]
    assert torch.equal(drawn[0.0][0], drawn[1.0][0])  # one step has nothing between
    assert all(not torch.equal(drawn[0.0][1], drawn[gamma][1]) for gamma in (0.5, 1.0))
    m.gamma = 1.5
    with pytest.raises(ConfigError, match=r"^Renewal: gamma must be a number in \[0, 1\], got 1.5"):
        m.sample(3, 2)


def test_all_noise_anew_is_the_sampling_of_consistency_models(first):
    m, g = METHODS["CTM"](first).eval(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        z, labels = torch.randn(3, 2, generator=g), m.sample_labels(3, None)
        expected = ConsistencyModule.generate(m, z, labels, m.default_sigmas(3), g)
    m.gamma = 1.0
    torch.testing.assert_close(m.sample(3, 3, generator=torch.Generator().manual_seed(0)), expected)
