import sys
from pathlib import Path

import lightning as L
import pytest
import torch
from torch import nn

from cm_lightning.activations import Held, kept_for_backward
from cm_lightning.backbones.ddpmpp import DDPMpp
from cm_lightning.backbones.dit import DiT
from cm_lightning.backbones.embedding import TwoTimesEmbedding
from cm_lightning.backbones.unet import UNet
from cm_lightning.callbacks.ema import EMA
from cm_lightning.cli import main
from cm_lightning.core.target_rate import ConstantRate
from cm_lightning.data.toy import Toy
from cm_lightning.errors import ConfigError
from cm_lightning.memory import Memory
from cm_lightning.plan import Epoch, plan, plan_of
from tests.helpers import images, module, trainer
from tests.modules.every_method import OF_THE_BENCHMARK

ROOT = Path(__file__).parents[1]
RECIPES = sorted(p for p in (ROOT / "experiments").glob("[ci]*/*.yaml") if p.stem != "base")


class Square(nn.Module):
    """Keeps its input (for the gradient of the weight), and one output of 4 bytes per entry to be squared."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1024, 1024))

    def forward(self, x, noise_label, class_label=None):
        return (x.flatten(1) @ self.weight).square().reshape(x.shape)


@pytest.mark.parametrize(
    ("optimizer", "copies"),
    [(torch.optim.SGD, 0), (lambda p: torch.optim.SGD(p, momentum=0.9), 1), (torch.optim.RAdam, 2)],
)
def test_memory_is_counted_by_what_the_parts_keep(optimizer, copies):
    m = module(backbone=Square(), image_shape=(1, 32, 32), optimizer=optimizer, target_rate=ConstantRate(0.5))
    text = plan(m, 100, 8, 2, 3, [EMA(), EMA(0.5, evaluate=False)])
    assert "Square: 1,048,576 parameters" in text
    assert "100 steps x 24 images = 2,400 images; 4 per rank on 2 rank(s)" in text
    assert f"{(5 + copies) * 4 / 1024:.2f} GiB = 1 x weights + 1 x gradients" in text
    assert (f"{copies} x optimizer" in text) == (copies > 0)
    assert "2 x averages + 1 x target of 0.00 GiB" in text
    assert f"{2 * 4096 / 2**20:.1f} MiB per image" in text


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: "/".join(path.parts[-2:]))
def test_every_published_recipe_says_what_it_would_be(path, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)  # without data, teacher, or extractor
    monkeypatch.setattr(sys, "argv", ["cm-lightning"])
    options = ["--dry_run", "--trainer.accelerator=cpu", "--trainer.precision=32-true"]
    with pytest.raises(SystemExit) as stop:
        main(["fit", f"--config={path}", *options])
    assert stop.value.code == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    assert ("55,732,739" if "cifar10" in path.parts else "295,899,267") in said
    assert said.splitlines()[-5].startswith("0  ")
    assert not any(tmp_path.iterdir())


def test_schedules_are_the_papers(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["cm-lightning"])
    with pytest.raises(SystemExit):
        main(["fit", f"--config={ROOT}/experiments/cifar10/ct.yaml", "--dry_run", "--trainer.accelerator=cpu"])
    lines = capsys.readouterr().out.splitlines()[-5:]
    assert [line.split("  N ")[1].split()[0] for line in lines] == ["2", "76", "107", "131", "151"]  # recipes of CM
    assert "800,000" in lines[-1]


def kept(network, autocast, dtype=torch.float32):
    x = torch.zeros(1, 4, 8, 8, device="meta", dtype=dtype)
    return kept_for_backward([network], lambda: network(x), dtype, autocast)


IMAGE = 4 * 8 * 8  # entries


@pytest.mark.parametrize(
    ("layers", "autocast", "bytes_of_an_entry", "copies"),
    [
        # a convolution keeps its input, in the type it computes in; autocast keeps a copy of the weights, too
        ([nn.Conv2d(4, 4, 1)], None, 4, 0),
        ([nn.Conv2d(4, 4, 1)], torch.bfloat16, 2, 2 * (16 + 4)),
        ([nn.Conv2d(4, 4, 1), nn.SiLU()], None, 4 + 4, 0),
        ([nn.Conv2d(4, 4, 1), nn.SiLU()], torch.float16, 2 + 2, 2 * (16 + 4)),
        # a norm computes in float32 under autocast: it keeps a copy of what came in 16 bits, and SiLU what it gave
        ([nn.Conv2d(4, 4, 1), nn.GroupNorm(1, 4), nn.SiLU()], torch.bfloat16, 2 + 4 + 4, 2 * (16 + 4)),
        # the mask of dropout has a byte
        ([nn.Conv2d(4, 4, 1), nn.Dropout(0.5)], None, 4 + 1, 0),
        ([nn.Conv2d(4, 4, 1), nn.Dropout(0.0)], None, 4, 0),
    ],
)
def test_activations_are_counted_in_the_precision_of_the_trainer(layers, autocast, bytes_of_an_entry, copies):
    counted = kept(nn.Sequential(*layers), autocast)
    assert counted.image - 8 * ("GroupNorm" in str(layers)) == bytes_of_an_entry * IMAGE  # mean and deviation
    assert counted.weights == copies


def test_true_half_precision_halves_everything():
    layers = nn.Sequential(nn.Conv2d(4, 4, 1), nn.SiLU())
    assert kept(layers.bfloat16(), None, torch.bfloat16) == (2 * 2 * IMAGE, 0)
    m = module(backbone=Square(), image_shape=(1, 32, 32))
    text = plan(m, 1, 1, 1, 1, [], "bf16-true")
    assert f"{2 * 2048 / 2**20:.1f} MiB per image" in text
    assert "activations in bf16-true" in text
    assert f"memory per rank: {4 * 2 / 1024:.2f} GiB" in text
    assert torch.get_default_dtype() == torch.float32


def test_tensors_are_counted_once_until_the_last_view_of_them_is_gone():
    with Held() as held:
        a = torch.zeros(256)
        b = a + 1
        view = b.view(16, 16)[1:]
        del a, b
    assert (held.now, held.most) == (1024, 2048)
    del view
    assert held.now == 0


class AfterTheFirst(L.Callback):
    """Counts anew from the second step on, which has gradients of the first one, and the moments."""

    def __init__(self, held):
        self.held = held

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 1:
            self.held.most = self.held.now


def network(kind, two_times):
    embedding = TwoTimesEmbedding(256 if kind is DiT else 16) if two_times else None
    size = {UNet: {"multipliers": (1, 2), "blocks": 1, "head_width": 16}, DiT: {"channels": 32, "blocks": 4},
            DDPMpp: {"multipliers": (1, 2), "blocks": 1}}  # fmt: skip
    return kind(**{"channels": 16, "num_classes": 3, "noise_embedding": embedding, **size[kind]})


SHAPE = (3, 16, 16)
MEASURED = [
    ("EDM", UNet), ("ECT", UNet), ("CT with a target network", UNet), ("guided CT", UNet), ("CD", UNet), ("CD", DDPMpp),
    ("CD", DiT), ("CTM", UNet), ("sCT", UNet), ("MeanFlow", UNet), ("MeanFlow", DiT), ("shortcut", UNet), ("IMM", UNet),
    ("Lightning", UNet), ("DMD2", UNet),
    pytest.param("LSD", UNet, marks=pytest.mark.xfail(strict=True, reason="a part of the batch keeps a derivative")),
]  # fmt: skip


@pytest.mark.parametrize(("method", "kind"), MEASURED, ids=lambda value: getattr(value, "__name__", value))
def test_memory_is_that_of_a_step_s_tensors_within_15_percent(method, kind, tmp_path):
    """Measured are the storages of all tensors that operations of a real step on the CPU return, the most at once: the
    batch, weights, gradients, moments, averages, activations, and what is in between; not what a kernel needs inside.
    """

    def made():
        return OF_THE_BENCHMARK[method](lambda two_times: network(kind, two_times), SHAPE)

    with Held() as held:
        steps = 6 if method == "DMD2" else 2  # its generator trains in every fifth step
        t = trainer(tmp_path, max_steps=steps, limit_val_batches=0, callbacks=[EMA(), AfterTheFirst(held)])
        t.fit(made(), images(SHAPE, n=16, batch_size=8, classes=3))
    memory = Memory.of(made(), [EMA()])
    assert memory.constant + 8 * memory.kept.image == pytest.approx(held.most, rel=0.15)


class Wide(nn.Module):
    """Keeps 256 MiB per image, and hardly any weights."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x, noise_label, class_label=None):
        wide = x.flatten(1)[:, :1].expand(-1, 2**26).contiguous()
        return (wide * self.weight)[:, :2]


def card_lines(*arguments, **options):
    lines = plan(module(backbone=Wide()), *arguments, **options).splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("largest batch"))
    return [line.strip() for line in lines[first + 1 : -6]]


def test_cards_are_filled_and_the_images_of_a_step_kept():
    image = 2**28  # float32
    assert card_lines(10, 64, 1, 4, [], cards=[24, 0.2, 1000]) == [
        f"24 GiB: {int(0.85 * 24 * 2**30 / image)} image(s); "
        "--data.batch_size 64 --trainer.accumulate_grad_batches 4 take 256 per step",
        "0.2 GiB: not even one image fits",
        "1000 GiB: 3,399 image(s); --data.batch_size 256 --trainer.accumulate_grad_batches 1 take 256 per step",
    ]
    # of two ranks together; a batch that divides the step, not the greatest
    assert card_lines(10, 60, 2, 1, [], cards=[6]) == [
        "6 GiB: 20 image(s); --data.batch_size 30 --trainer.accumulate_grad_batches 2 take 60 per step"
    ]


def test_a_batch_that_ranks_cannot_share_evenly_is_refused_as_in_the_run():
    line = "data.batch_size 41 is that of all ranks together: make it a multiple of 2"
    with pytest.raises(ConfigError, match=line):
        plan(module(backbone=Wide()), 10, 41, 2, 1, [])


EPOCHS = [
    # points, batch, accumulate, steps of an epoch
    (64, 8, 1, 8),
    (64, 8, 3, 3),  # rounded up to whole steps
    (16, 8, 4, 1),  # a step takes two passes
    (20, 8, 2, 1),
    (10, 16, 4, 1),  # fewer images than a batch has
]


@pytest.mark.parametrize(("points", "batch", "accumulate", "steps"), EPOCHS)
def test_lightning_takes_the_steps_that_an_epoch_is_said_to_have(points, batch, accumulate, steps, tmp_path):
    data, t = Toy(num_points=points, batch_size=batch), trainer(tmp_path, max_steps=-1, max_epochs=3,
                                                                accumulate_grad_batches=accumulate)  # fmt: skip
    seen = []
    m = module()
    loss = m.loss
    m.loss = lambda x, *rest: seen.append(len(x)) or loss(x, *rest)
    m.validation_step = None
    t.fit(m, train_dataloaders=None, datamodule=data)
    epoch = Epoch.of(data, t)
    assert epoch.steps == steps
    assert t.global_step == 3 * steps
    assert sum(seen) == t.global_step * accumulate * batch


def test_the_length_of_a_run_is_told_in_steps_of_whole_batches(tmp_path):
    def text(**options):
        return plan_of(module(), Toy(num_points=20, batch_size=8), trainer(tmp_path, **options))

    assert "5 steps x 32 images = 160 images" in text(accumulate_grad_batches=4)
    assert "20 training images: 5.0 epochs" in text(accumulate_grad_batches=2)
    assert "6 steps x 16" in text(max_steps=-1, max_epochs=6, accumulate_grad_batches=2)
    assert "3 steps x 16" in text(max_steps=3, max_epochs=6, accumulate_grad_batches=2)
    assert "20 steps x 8" in text(max_steps=-1, max_epochs=20, limit_train_batches=1)
    assert "20 steps x 8" in text(max_steps=-1, max_epochs=20, limit_train_batches=0.5)


def test_a_length_that_is_not_known_gets_a_line(tmp_path):
    class Own:
        batch_size = 4

    with pytest.raises(ConfigError, match=r"needs the length of the run: set --trainer.max_steps"):
        plan_of(module(), Toy(), trainer(tmp_path, max_steps=-1, max_epochs=-1))
    with pytest.raises(ConfigError, match=r"steps of 3 epochs: Own does not give its length; or set --trainer"):
        plan_of(module(), Own(), trainer(tmp_path, max_steps=-1, max_epochs=3))
    with pytest.raises(ConfigError, match="data module with batch_size"):
        plan_of(module(), None, trainer(tmp_path))
    for memory in (0, -1, float("nan")):
        with pytest.raises(ConfigError, match="--memory must be a finite number above 0"):
            plan_of(module(), Toy(), trainer(tmp_path), memory)


FOLDER = [("ct", 64, 64), ("ct128", 16, 32), ("ct256", 4, 4)]


@pytest.mark.parametrize(("recipe", "batch", "most"), FOLDER)
def test_the_recipes_for_folders_fit_cards_of_24_and_of_80_gb(recipe, batch, most, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # the folder of images need not be there
    monkeypatch.setattr(sys, "argv", ["cm-lightning"])
    path = ROOT / f"experiments/folder/{recipe}.yaml"

    def lines(*options):
        with pytest.raises(SystemExit) as stop:
            main(["fit", f"--config={path}", "--dry_run", "--trainer.accelerator=cpu", *options])
        assert stop.value.code == 0
        return capsys.readouterr().out.splitlines()

    text = lines("--memory=24")
    assert f"100,000 steps x 128 images = 12,800,000 images; {batch} per rank" in text[1]
    (card,) = [line for line in text if line.startswith("    24 GiB")]
    assert f"--data.batch_size {most} --trainer.accumulate_grad_batches {128 // most} take 128" in card
    assert batch <= most
    large = next(line for line in path.read_text().splitlines() if line.startswith("# 80 GB: "))
    options = large.removeprefix("# 80 GB: ").split()
    (card,) = [line for line in lines("--memory=80") if line.startswith("    80 GiB")]
    assert " ".join(options[:4]) in card
    pairs = [f"{name}={value}" for name, value in zip(options[::2], options[1::2], strict=True)]
    assert "100,000 steps x 128 images" in lines(*pairs)[1]
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--memory=24"], "error: --memory needs --dry_run: add it, or leave --memory out"),
        (["--memory=-1", "--dry_run"], "error: --memory must be a finite number above 0, got -1.0"),
        (["--dry_run", "--trainer.max_steps=-1"], "error: --dry_run needs the length of the run"),
        (["--dry_run", "--trainer.max_steps=-1", "--trainer.max_epochs=2"],
         "error: --dry_run cannot compute the steps of 2 epochs: folder not found: images"),
    ],
)  # fmt: skip
def test_options_of_a_dry_run_that_mean_nothing_get_a_line(options, line, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["cm-lightning"])
    recipe = [f"--config={ROOT}/experiments/folder/ct.yaml", "--model.backbone.channels=8"]
    with pytest.raises(SystemExit) as stop:
        main(["fit", *recipe, "--trainer.accelerator=cpu", "--trainer.precision=32-true", *options])
    assert stop.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(line)
