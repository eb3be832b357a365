"""Editing with modules of every kind, in closed form where the data are Gaussian."""

import inspect
import math
from functools import partial

import pytest
import torch

import cm_lightning
from cm_lightning.backbones.embedding import GuidedTimesEmbedding, TwoTimesEmbedding
from cm_lightning.backbones.unet import UNet
from cm_lightning.core.editing import PatchMeans, Pixels
from cm_lightning.core.noise import generators
from cm_lightning.core.oracle import GaussianOracle
from cm_lightning.core.path import Linear, TrigFlow
from cm_lightning.core.stages import Stage
from cm_lightning.editing import Editor
from cm_lightning.errors import ConfigError
from cm_lightning.modules.adversarial import AdversarialDistillation
from cm_lightning.modules.base import GenerativeModule
from cm_lightning.modules.continuous import ContinuousConsistencyTraining
from cm_lightning.modules.diffusion import DiffusionModule
from cm_lightning.modules.distribution_matching import DistributionMatchingDistillation
from cm_lightning.modules.endpoint import endpoint
from cm_lightning.modules.mean_flow import MeanFlow
from cm_lightning.modules.progressive import ProgressiveDistillation
from cm_lightning.modules.training import ConsistencyTraining
from cm_lightning.modules.truncated import TruncatedConsistencyTraining
from tests.helpers import module as points_module

SHAPE = (1, 8, 8)
IMAGE = torch.linspace(-1, 1, 64).reshape(SHAPE)
KINDS = {
    "consistency": ConsistencyTraining,
    "trigonometric": ContinuousConsistencyTraining,
    "two times": MeanFlow,
    "diffusion": DiffusionModule,
    "stages": partial(AdversarialDistillation, teacher="none", stages=[Stage(12, 6), Stage(6, 3)]),
    "matching": partial(DistributionMatchingDistillation, teacher="none", levels=[80.0, 6.0, 1.5, 0.05]),
}
EACH = pytest.mark.parametrize("kind", KINDS)
#: Those whose end points the exact denoiser or flow gives; a student's few steps do not solve the ODE.
EXACT = pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "stages"])


def network(kind, num_classes=0):
    two = {"noise_embedding": TwoTimesEmbedding(8)} if kind == "two times" else {}
    return UNet(1, 8, (1,), 1, (), num_classes=num_classes, patch=4, **two)


def make(kind, num_classes=0, **options):
    torch.manual_seed(0)
    m = KINDS[kind](network(kind, num_classes), SHAPE, **options)
    for p in m.backbone.parameters():
        torch.nn.init.normal_(p, std=0.2)
    if kind == "diffusion":
        m.sampler.default_nfe = 7
    return m.eval()


class Exact:
    """Data N(0, 0.5^2) in every pixel, in place of a network."""

    sigma_min = 0.0

    def __init__(self, kind):
        path = {"two times": Linear(), "trigonometric": TrigFlow()}.get(kind)
        self.oracle, self.denoises = GaussianOracle(0.5, path=path, sigma_min=0.0), kind in ("diffusion", "stages")

    def __call__(self, network, x, t, class_label=None, r=None):
        if self.denoises:
            return self.oracle.denoiser(x, t)
        return self.oracle.flow(x, t, torch.zeros_like(t))


def exact(kind):
    m = make(kind)
    m.parameterization = Exact(kind)
    if kind == "diffusion":
        m.sampler.default_nfe = 79
    return m


@EXACT
@pytest.mark.parametrize("sigma", [0.05, 1.0, 5.38])
def test_denoising_in_closed_form(kind, sigma):
    (found,) = Editor(exact(kind)).denoise(IMAGE, sigma)
    expected = IMAGE * 0.5 / (0.25 + sigma**2) ** 0.5
    torch.testing.assert_close(found, expected, rtol=0.02 if kind == "diffusion" else 1e-4, atol=1e-5)


@EXACT
def test_redrawing_in_closed_form(kind):
    m, sigma = exact(kind), 1.0
    level = endpoint(m).level(sigma)
    drawn = Editor(m, 400, sigmas=[level], seed=1).redraw(0.2 * IMAGE)
    error = 0.02 if kind == "diffusion" else 0
    assert float((drawn.mean(0) - 0.4472135955 * 0.2 * IMAGE).abs().max()) < 0.09 + error  # 4 / sqrt(400) of 0.447
    assert float(drawn.std()) == pytest.approx(0.44, abs=0.02)  # cut off at 1


@EACH
@pytest.mark.parametrize("num_classes", [0, 3])
def test_the_known_part_is_kept_whatever_the_module(kind, num_classes):
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[:, :4] = True
    editor = Editor(make(kind, num_classes), 4, steps=3)
    drawn = editor.fill(Pixels(IMAGE[None], mask))
    assert drawn.shape == (4, *SHAPE)
    assert torch.equal(drawn[..., 4:], IMAGE[..., 4:].expand(4, -1, -1, -1))
    assert float(drawn[..., :4].std(0).mean()) > 0.1
    assert float(drawn.abs().max()) <= 1
    labels = None if editor.labels is None else editor.labels.tolist()
    assert labels == ([0, 1, 2, 0] if num_classes else None)


def test_classes_matter_and_are_repeated_in_turn():
    m = make("consistency", 3)
    known = PatchMeans(torch.zeros(1, 1, 4, 4), 2)
    editor = Editor(m, 4, labels=[2, 0], steps=2)
    assert editor.labels.tolist() == [2, 0, 2, 0]
    as_two = Editor(m, 4, labels=[2], steps=2).fill(known)
    drawn = editor.fill(known)
    torch.testing.assert_close(drawn[::2], as_two[::2])
    assert not torch.allclose(drawn[1::2], as_two[1::2], atol=1e-3)


@EACH
def test_a_result_does_not_depend_on_the_batch(kind):
    known = PatchMeans(torch.zeros(1, 1, 4, 4), 2)
    together, alone = (Editor(make(kind), 3, steps=3, seed=5, batch_size=size) for size in (256, 1))
    torch.testing.assert_close(together.fill(known), alone.fill(known), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together.vary(0.5), alone.vary(0.5), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "calls"), [("consistency", 5), ("trigonometric", 5), ("two times", 5), ("diffusion", None)]
)
def test_each_level_is_one_evaluation_except_of_a_diffusion_model(kind, calls):
    m, seen = make(kind), []
    m.backbone.register_forward_hook(lambda *_: seen.append(1))
    Editor(m, 2, steps=5).fill(PatchMeans(torch.zeros(1, 1, 4, 4), 2))
    assert len(seen) == calls if calls else len(seen) > 10


@EACH
def test_interpolation_begins_and_ends_with_samples(kind):
    m, steps = make(kind, 3), 3 if kind == "diffusion" else 1
    m.contrast = {1: 1.5}
    frames = Editor(m, 5, labels=[1], steps=steps).interpolate([3, 8, 4])
    for place, seed in ((0, 3), (2, 8), (4, 4)):
        sample = m.sample(1, steps, labels=1, generator=generators(seed, [0]))
        torch.testing.assert_close(frames[place : place + 1], sample, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(frames[1], frames[0], atol=1e-3)


def test_the_first_frame_of_several_steps_is_that_sample():
    m = make("consistency")
    frames = Editor(m, 3, steps=3).interpolate([3, 8])
    torch.testing.assert_close(frames[:1], m.sample(1, 3, generator=generators(3, [0])))


def test_variations_of_a_sample_go_from_itself_to_other_samples():
    m = make("consistency")
    samples = m.sample(4, 1, generator=generators(2, range(4)))
    editor = Editor(m, 4, seed=2)
    near, middle, far = (editor.vary(amount) for amount in (0.0, 0.5, 1.0))
    torch.testing.assert_close(near, samples[:1].expand_as(near), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(far, samples, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(middle[:1], samples[:1], rtol=1e-4, atol=1e-5)


def test_between_two_images_the_noise_is_the_same():
    frames = Editor(exact("consistency"), 5, sigmas=[0.5], seed=3).between(0.4 * IMAGE, -0.4 * IMAGE)
    steps = frames.diff(dim=0)
    torch.testing.assert_close(steps, steps[:1].expand_as(steps), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(frames[0] - frames[-1], 0.8 * IMAGE * 0.5**0.5, rtol=1e-3, atol=1e-3)


@EACH
def test_levels_and_noise_levels_correspond(kind):
    end = endpoint(make(kind))
    for sigma in (0.002, 0.5, 80.0):
        assert end.sigma(end.level(sigma)) == pytest.approx(sigma)
    assert end.level(1.0) == (0.5 if kind == "two times" else 1.0)
    assert end.levels(1) == [1.0 if kind == "two times" else 80.0]


def test_the_module_s_mode_stays():
    m = make("consistency").train()
    Editor(m).denoise(IMAGE, 0.5)
    assert m.backbone.training


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Editor(points_module()), "needs a module of images"),
        (lambda: Editor(make("consistency"), 0), "n must be"),
        (lambda: Editor(make("consistency"), seed=-1), "seed must be"),
        (lambda: Editor(make("consistency"), labels=[1]), "unconditional"),
        (lambda: Editor(make("consistency", 3), labels=[7]), "labels must lie in 0"),
        (lambda: Editor(make("consistency"), guidance=1.0), "guidance needs a class-conditional"),
        (lambda: Editor(make("consistency"), sigmas=[81.0]).redraw(IMAGE), "sigmas must lie in 0.002"),
        (lambda: Editor(make("two times"), sigmas=[5.0]).redraw(IMAGE), "sigmas must lie in 0 ... 1"),
        (lambda: Editor(make("consistency"), sigmas=[1.0, 2.0]).redraw(IMAGE), "descend"),
        (lambda: Editor(make("consistency")).redraw(IMAGE[:, :4]), "the image must have the shape"),
        (lambda: Editor(make("consistency")).denoise(IMAGE, 0.0), "sigma must be a finite number above 0"),
        (lambda: Editor(make("consistency")).denoise(IMAGE, 100.0), "sigmas must lie in"),
        (lambda: Editor(make("consistency")).vary(1.5), "amount must be"),
        (lambda: Editor(make("consistency")).interpolate([1]), "at least two seeds are needed"),
    ],
)
def test_what_an_editor_refuses(call, message):
    with pytest.raises(ConfigError, match=message):
        call()


def test_another_kind_of_module_has_no_end_points():
    with pytest.raises(ConfigError, match="a Module does not map points to the ends of trajectories: give one of"):
        endpoint(torch.nn.Module())


def test_a_student_of_stages_goes_down_its_own_few_steps():
    m = exact("stages")
    first, second, third = m.default_sigmas(3)
    (found,) = Editor(m).denoise(IMAGE, 5.38)

    def shrunk(sigma, below):
        """What an Euler step from sigma to the level below leaves of a point."""
        return 1 + (below - sigma) / sigma * (1 - 0.25 / (0.25 + sigma**2))

    assert first > second > 5.38 > third
    torch.testing.assert_close(found, IMAGE * shrunk(5.38, third) * shrunk(third, 0.0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kind", "calls"), [("stages", 3 + 2 + 1), ("matching", 3)])
def test_students_of_few_steps_take_few_evaluations(kind, calls):
    m, seen = make(kind), []
    m.backbone.register_forward_hook(lambda *_: seen.append(1))
    Editor(m, 2, steps=3).fill(PatchMeans(torch.zeros(1, 1, 4, 4), 2))
    assert len(seen) == calls


def test_a_student_that_halved_its_steps_takes_those_that_it_has_now():
    m, seen = ProgressiveDistillation(network("diffusion"), SHAPE, "none", steps=4, stages=3), []
    m.backbone.register_forward_hook(lambda *_: seen.append(1))
    Editor(m, 2).fill(PatchMeans(torch.zeros(1, 1, 4, 4), 2))
    assert m.default_steps == 1
    assert len(seen) == 4  # one for each level on which its first stage trained it


@pytest.mark.parametrize("kind", ["stages", "matching"])
def test_without_levels_those_are_taken_on_which_the_student_was_trained(kind):
    m, seen = make(kind), []
    trained = m.default_sigmas(6) if kind == "stages" else m.levels
    end = endpoint(m)
    noised = end.noised
    end.noised = lambda noise: lambda x, level: seen.append(level) or noised(noise)(x, level)
    editor = Editor(m)
    editor.end = end
    editor.fill(PatchMeans(torch.zeros(1, 1, 4, 4), 2))
    assert seen == trained
    seen.clear()
    editor.redraw(IMAGE)
    assert seen == [min(trained, key=lambda level: abs(math.log(level / sigma))) for sigma in (5.38, 2.24)]


SINGLE = {
    "matching": partial(DistributionMatchingDistillation, teacher="none"),
    "stages": partial(AdversarialDistillation, teacher="none", stages=[Stage(4, 1), Stage(4, 1, "unconditional")]),
    "halved": partial(ProgressiveDistillation, start_from="none", steps=1, stages=1),
}


@pytest.mark.parametrize("kind", SINGLE)
def test_a_student_that_saw_noise_alone_varies_samples_and_edits_no_images(kind):
    m = SINGLE[kind](network(kind), SHAPE)
    editor = Editor(m, 3)
    assert editor.vary(0.5).shape == editor.interpolate([1, 2]).shape == (3, *SHAPE)
    with pytest.raises(ConfigError, match=rf"this {type(m).__name__} was trained at noise level 80 alone, where nothi"):
        editor.redraw(IMAGE)


def test_a_truncated_model_is_edited_with_above_the_level_where_it_was_trained():
    m = TruncatedConsistencyTraining(network("truncated"), SHAPE, "none")
    m.low = 3.0
    end = endpoint(m)
    assert end.sigmas == (3.0, 80.0)
    assert end.levels_near([90.0, 5.38, 2.24, 1.0]) == [80.0, 5.38, 3.0]
    assert Editor(m).redraw(IMAGE).shape == (1, *SHAPE)


#: The modules of images that the suite names.
OF_THE_SUITE = [
    kind
    for kind in (getattr(cm_lightning, name) for name in cm_lightning.__all__)
    if isinstance(kind, type) and issubclass(kind, GenerativeModule) and not inspect.isabstract(kind)
]
GIVEN = {
    AdversarialDistillation: {"stages": [Stage(4, 2), Stage(2, 1)]},
    DistributionMatchingDistillation: {"levels": [80.0, 5.0]},
}


@pytest.mark.parametrize("kind", OF_THE_SUITE)
def test_every_module_of_images_edits(kind):
    embedding = {1: None, 2: TwoTimesEmbedding(8), 5: GuidedTimesEmbedding(8)}[kind.noise_labels_given]
    needed = {name for name, given in inspect.signature(kind).parameters.items() if given.default is given.empty}
    teacher = dict.fromkeys(needed & {"teacher", "start_from"}, "none")
    net = UNet(1, 8, (1,), 1, (), num_classes=3, patch=4, noise_embedding=embedding)
    editor = Editor(kind(net, SHAPE, **teacher, **GIVEN.get(kind, {}), label_dropout=0.1), steps=2)
    mask = torch.eye(8, dtype=torch.bool)
    drawn = editor.fill(Pixels(IMAGE[None], mask))
    assert torch.equal(drawn[0][:, ~mask], IMAGE[:, ~mask])
    assert editor.labels.tolist() == [3]
    assert editor.end.levels_near([5.38, 2.24])


def test_the_modules_of_the_suite_are_found():
    assert {AdversarialDistillation, MeanFlow, DiffusionModule} < set(OF_THE_SUITE)
