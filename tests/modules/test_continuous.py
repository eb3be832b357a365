"""sCT, sCD and MeanFlow as modules: training, sampling, checkpoints, the zoo, export."""

from pathlib import Path

import pytest
import torch
from torch import nn

from cm_lightning.backbones.embedding import TwoTimesEmbedding
from cm_lightning.backbones.mlp import ResidualMLP
from cm_lightning.backbones.unet import UNet
from cm_lightning.checkpoint import read_checkpoint
from cm_lightning.cli import main
from cm_lightning.core.noise import LogNormal
from cm_lightning.core.parameterization import EDM, Trigonometric
from cm_lightning.core.residual import SquaredError
from cm_lightning.errors import ConfigError
from cm_lightning.modules.continuous import ContinuousConsistencyDistillation, ContinuousConsistencyTraining
from cm_lightning.modules.diffusion import DiffusionModule
from cm_lightning.modules.loading import load_module
from cm_lightning.modules.mean_flow import MeanFlow
from tests.backbones.zoo import NETWORKS, SHAPE, awake
from tests.helpers import points, trainer


def sct(**options):
    torch.manual_seed(1)
    return ContinuousConsistencyTraining(**{"backbone": ResidualMLP(2, 16, 2), "image_shape": (2,), **options})


def scd(**options):
    torch.manual_seed(1)
    teacher = DiffusionModule(ResidualMLP(2, 16, 2), (2,))
    return ContinuousConsistencyDistillation(
        **{"backbone": ResidualMLP(2, 16, 2), "image_shape": (2,), "teacher": teacher, **options}
    )


def mean_flow(**options):
    torch.manual_seed(1)
    backbone = ResidualMLP(2, 16, 2, noise_embedding=TwoTimesEmbedding(16))
    return MeanFlow(**{"backbone": backbone, "image_shape": (2,), **options})


METHODS = {"sCT": sct, "sCD": scd, "MeanFlow": mean_flow}
EACH = pytest.mark.parametrize("make", METHODS.values(), ids=METHODS)


SCT = ["--model=ContinuousConsistencyTraining"]
SCD = ["--model=ContinuousConsistencyDistillation", "--model.teacher=teacher.ckpt"]
TWO_TIMES = ["--model.backbone.noise_embedding=TwoTimesEmbedding", "--model.backbone.noise_embedding.width=16"]


@pytest.mark.parametrize("options", [SCT, SCD, ["--model=MeanFlow", *TWO_TIMES]], ids=METHODS)
def test_a_run_resumes_from_its_checkpoint_to_the_bit(options, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    network = ["--model.backbone=ResidualMLP", "--model.backbone.dim=2", "--model.backbone.width=16"]
    fit = ["fit", f"--config={Path(__file__).parents[1] / 'conf/toy.yaml'}", "--model.image_shape=[2]"]
    if "--model.teacher=teacher.ckpt" in options:
        main([*fit, "--model=DiffusionModule", *network, "--trainer.max_steps=1"])
        next(Path("runs").rglob("last.ckpt")).rename("teacher.ckpt")
    fit = [*fit, options[0], *network, *options[1:]]
    fit.append("--trainer.max_steps=7")

    def run(name, *own):
        main([*fit, f"--trainer.logger.init_args.version={name}", *own])
        return next(Path("runs").rglob(f"{name}/checkpoints/last.ckpt"))

    whole = read_checkpoint(run("whole"))
    half = run("half", "--callbacks.stop=tests.helpers.InterruptAt", "--callbacks.stop.step=3")
    rest = read_checkpoint(run("rest", f"--ckpt_path={half}"))
    assert read_checkpoint(half)["trained_steps"] == 3
    assert rest["trained_steps"] == whole["trained_steps"] == 7
    assert not any(name.startswith("frozen") for name in rest["state_dict"])
    torch.testing.assert_close(rest["state_dict"], whole["state_dict"], rtol=0, atol=0)


@EACH
def test_an_accumulated_step_is_the_step_of_the_whole_batch(make, tmp_path):
    m, clocks = make(), []
    loss = m.objective.loss
    m.objective.loss = lambda *args: (clocks.append(args[4]), loss(*args))[1]
    trainer(tmp_path, max_steps=2, accumulate_grad_batches=2).fit(m, points())
    assert [clock.step for clock in clocks] == [0, 0, 1, 1]
    assert {clock.total for clock in clocks} == {2}


@EACH
def test_mixed_precision(make, tmp_path):
    m = make()
    before = m.backbone.head.weight.clone()
    trainer(tmp_path, max_steps=2, precision="bf16-mixed").fit(m, points())
    assert m.backbone.head.weight.dtype == torch.float32
    assert not torch.equal(before, m.backbone.head.weight)
    assert m.backbone.head.weight.isfinite().all()


@EACH
def test_a_module_built_in_python_loads_from_its_checkpoint(make, tmp_path):
    m = make()
    t = trainer(tmp_path, max_steps=1)
    t.fit(m, points())
    t.save_checkpoint(tmp_path / "x.ckpt")
    again = load_module(tmp_path / "x.ckpt")
    one, two = (n.sample(3, 2, generator=torch.Generator().manual_seed(0)) for n in (m.eval(), again))
    assert torch.equal(one, two)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_tangent_passes_through_the_zoo(name):
    """This includes dropout; the result equals that by differences, which does not need forward mode."""
    tangents = []
    for options in ({"derivative": "forward_mode"}, {"derivative": "difference"}):
        torch.manual_seed(0)
        forward_mode = options["derivative"] == "forward_mode"
        network = awake(NETWORKS[name](num_classes=2, dropout=0.2, forward_mode=forward_mode))
        m = ContinuousConsistencyTraining(network, SHAPE, residual=SquaredError(), **options)
        torch.manual_seed(5)
        x = torch.randn(2, *SHAPE)
        m.loss(x, torch.tensor([1, 0]), torch.Generator().manual_seed(0)).backward()
        assert all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None)
        tangents.append(m.objective.shown["raw"].item())
    assert tangents[0] > 0
    assert tangents[1] == pytest.approx(tangents[0], rel=2e-2)


def test_attention_of_diffusers_says_when_it_cannot():
    with pytest.raises(ConfigError, match="build the network with forward_mode true"):
        ContinuousConsistencyTraining(NETWORKS["DiffusersUNet"](), SHAPE)
    ContinuousConsistencyTraining(NETWORKS["DiffusersUNet"](), SHAPE, derivative="difference")


def test_a_teacher_s_weights_start_the_student_as_its_denoiser(tmp_path):
    teacher = DiffusionModule(ResidualMLP(2, 16, 2), (2,))
    nn.init.normal_(teacher.backbone.head.weight)
    m = scd(teacher=teacher)
    m.trainer = trainer(tmp_path)
    m.setup("fit")
    x, sigma = torch.randn(4, 2), torch.tensor([0.01, 0.5, 3.0, 80.0])
    torch.testing.assert_close(m.consistency_function(x, sigma), teacher.denoiser(x, sigma), rtol=1e-4, atol=1e-5)
    told_t = scd(teacher=teacher, parameterization=Trigonometric(noise_scale=None))
    told_t.trainer = trainer(tmp_path)
    with pytest.raises(ConfigError, match=r"takes 0.25 ln sigma, this one takes t: set noise_scale .* to 0.25"):
        told_t.setup("fit")


def test_sct_and_scd_differ_in_the_trajectory_alone():
    one, two = sct(), scd()
    assert type(one.objective) is type(two.objective)
    assert type(one.objective.trajectory) is not type(two.objective.trajectory)
    for attribute in ("normalize", "c", "derivative", "h"):
        assert getattr(one.objective, attribute) == getattr(two.objective, attribute)
    assert isinstance(two.parameterization, Trigonometric)
    assert EDM().noise_scale == two.parameterization.noise_scale


def test_levels_of_sampling():
    m = sct(sampling_sigmas={2: [80.0, 0.821]})
    assert m.default_sigmas(2) == [80.0, 0.821]
    assert mean_flow().default_sigmas(4) == [1.0, 0.75, 0.5, 0.25]
    assert mean_flow(sampling_sigmas={2: [1.0, 0.4]}).default_sigmas(2) == [1.0, 0.4]
    with pytest.raises(ConfigError, match=r"sigmas must lie in 0 \.\.\. 1"):
        mean_flow().sample(1, sigmas=[80.0])
    with pytest.raises(ConfigError, match="2 steps must be 2 noise levels"):
        mean_flow(sampling_sigmas={2: [1.0]})


def test_one_step_is_a_sample_in_one_step():
    for m in (sct(), mean_flow()):
        nn.init.normal_(m.backbone.head.weight)
        z = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
        sampled = m.sample(3, 1, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(m.one_step(z, None), sampled)


def test_guidance_of_pixel_models_costs_a_second_evaluation():
    net = UNet(1, 8, (1,), 1, (), num_classes=3, patch=4)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.2)
    rows = []
    net.register_forward_hook(lambda m, inputs, output: rows.append(len(output)))
    for m in (
        ContinuousConsistencyTraining(net, (1, 8, 8), label_dropout=0.1),
        DiffusionModule(net, (1, 8, 8), label_dropout=0.1),
    ):
        drawn = []
        for w in (0.0, 1.0):
            rows.clear()
            drawn.append(m.sample(2, 3, 1, torch.Generator().manual_seed(0), guidance=w))
            assert sum(rows) == (6 if w == 0 else 12)
        assert not torch.equal(*drawn)
    with pytest.raises(ConfigError, match="trained with label_dropout"):
        ContinuousConsistencyTraining(net, (1, 8, 8)).sample(1, guidance=1.0)
    with pytest.raises(ConfigError, match="class-conditional"):
        sct().sample(1, guidance=1.0)


def test_the_raw_error_is_logged(tmp_path):
    m = mean_flow()
    t = trainer(tmp_path, max_steps=2)
    t.fit(m, points())
    assert t.callback_metrics["train/raw"] > 0


def test_points_are_not_cut():
    m = sct()
    nn.init.normal_(m.backbone.head.weight, std=3)
    assert m.sample(200, 1).abs().max() > 1
    m = ContinuousConsistencyTraining(UNet(1, 8, (1,), 1, (), patch=4), (1, 8, 8))
    for parameter in m.backbone.parameters():
        nn.init.normal_(parameter, std=1.0)
    assert m.sample(4, 1).abs().max() <= 1


def test_levels_above_those_of_sampling_may_be_trained():
    m = sct(curriculum=None)
    assert m.objective.curriculum.density.mean == -1.0
    assert LogNormal(sigma_max=800.0).sample(10_000).max() > 80
