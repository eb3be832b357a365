import sys
from pathlib import Path

import pytest
import torch
import torchvision
from PIL import Image

from cm_lightning.backbones.unet import UNet
from cm_lightning.callbacks.prompt_grid import PromptGrid
from cm_lightning.callbacks.quality import Quality
from cm_lightning.callbacks.sample_grid import SampleGrid
from cm_lightning.cli import main
from cm_lightning.core.noise import generators
from cm_lightning.core.ode_sampler import DDIM
from cm_lightning.data.folder import ImageFolder
from cm_lightning.data.mnist import MNIST, FashionMNIST
from cm_lightning.data.toy import Toy
from cm_lightning.errors import CheckpointError, ConfigError
from cm_lightning.metrics.classifier import load_classifier
from cm_lightning.metrics.energy import EnergyDistance
from cm_lightning.metrics.extractor import (
    CaptionedDigits,
    FashionClassifier,
    Inception,
    MnistClassifier,
    SecondMnistClassifier,
)
from cm_lightning.metrics.feature_scores import FeatureScores
from cm_lightning.metrics.features import TorchvisionFeatures
from cm_lightning.metrics.precision_recall import PrecisionRecall
from cm_lightning.metrics.shares import PixelShares
from cm_lightning.modules.diffusion import DiffusionModule
from cm_lightning.modules.training import ConsistencyTraining
from tests.data.files import write_mnist
from tests.helpers import few_digits, module, points, trainer
from tests.processes import CONF


@pytest.fixture(autouse=True)
def less_to_measure_against(monkeypatch):
    few_digits(monkeypatch)


def tiny(kind=ConsistencyTraining, num_classes=10, **options):
    torch.manual_seed(0)
    unet = UNet(1, 8, (1,), 1, (), num_classes=num_classes, patch=4)
    torch.nn.init.normal_(unet.head[2].weight, std=0.2)
    return kind(unet, (1, 28, 28), **options)


def measure(tmp_path, m, **options):
    quality = Quality(
        **{"nfe": [1, 2], "num_samples": 30, "batch_size": 8, "cache": str(tmp_path / "cache"), **options}
    )
    t = trainer(tmp_path, callbacks=[quality])
    (measured,) = t.validate(m, MNIST(), verbose=False)
    return measured


def test_names_tell_the_evaluations_that_the_network_really_made(tmp_path):
    m = tiny(DiffusionModule)
    calls = []
    m.backbone.register_forward_hook(lambda *_: calls.append(1))
    names = set(measure(tmp_path, m, nfe=[9], num_samples=8))
    assert {"val/frechet_mnist_nfe9", "val/accuracy_nfe9", "val/frechet_mnist_floor"} <= names
    m.sampler = DDIM()
    assert "val/frechet_mnist_nfe5" in measure(tmp_path, m, nfe=[5], num_samples=8)
    validation = 2 * 1  # of the loss, 128 of 125 images at a time
    assert len(calls) == validation + 9 + 5


def test_the_batch_size_does_not_change_the_scores_and_the_seed_does(tmp_path):
    m = tiny()
    a, b = measure(tmp_path, m), measure(tmp_path, m, batch_size=30)
    assert {k: v for k, v in a.items() if "nfe" in k} == pytest.approx(
        {k: v for k, v in b.items() if "nfe" in k}, rel=1e-3
    )
    assert measure(tmp_path, m, seed=1)["val/frechet_mnist_nfe1"] != pytest.approx(
        a["val/frechet_mnist_nfe1"], rel=1e-3
    )


def test_the_reference_is_made_once_and_is_of_these_very_images(tmp_path, monkeypatch):
    first = measure(tmp_path, tiny())
    names = sorted(path.name for path in (tmp_path / "cache").iterdir())
    assert [name[:-28] for name in names] == ["frechet_mnist-MNIST-train-500-", "frechet_mnist2-MNIST-train-500-"]
    monkeypatch.setattr("cm_lightning.metrics.feature_scores.FeatureScores.add_reference", None)  # fails if called
    assert measure(tmp_path, tiny()) == pytest.approx(first)
    monkeypatch.undo()
    few_digits(monkeypatch)
    data = MNIST()
    data.split("train").samples[0] += 1
    quality = Quality(nfe=[1], num_samples=8, cache=str(tmp_path / "cache"))
    trainer(tmp_path, callbacks=[quality]).validate(tiny(), data, verbose=False)
    assert len(list((tmp_path / "cache").iterdir())) == 4


def test_the_floor_is_what_held_out_images_score(tmp_path):
    measured = measure(tmp_path, tiny(num_classes=0), num_samples=2)
    images = torch.cat([images for images, _ in MNIST().in_order("val")])
    labels = torch.cat([labels for _, labels in MNIST().in_order("val")])
    accuracy = (load_classifier().classify(images).argmax(1) == labels).float().mean().item()
    assert measured["val/accuracy_floor"] == pytest.approx(accuracy)
    assert "val/accuracy_nfe1" not in measured  # no class was asked for


def test_measuring_does_not_change_the_training(tmp_path):
    weights = []
    for callbacks in ([], [Quality(nfe=[1], num_samples=8, cache=str(tmp_path / "cache"))]):
        m = tiny()
        torch.manual_seed(3)
        options = {"max_steps": 3, "max_epochs": -1, "val_check_interval": 1, "limit_val_batches": 1}
        trainer(tmp_path, callbacks=callbacks, check_val_every_n_epoch=None, **options).fit(m, MNIST(batch_size=8))
        weights.append(m.backbone.state_dict())
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=0)


def test_another_data_set_has_another_reference(tmp_path):
    quality = Quality(nfe=[1], num_samples=8, cache=str(tmp_path / "cache"))
    other = MNIST()
    other.split("train").samples.bitwise_not_()
    scores = []
    for data in (MNIST(), other, MNIST()):
        (measured,) = trainer(tmp_path, callbacks=[quality]).validate(tiny(), data, verbose=False)
        scores.append(measured["val/frechet_mnist_nfe1"])
    assert scores[0] == pytest.approx(scores[2])
    assert scores[0] != pytest.approx(scores[1], rel=0.01)


def test_sixteen_bit_weights_are_measured_too(tmp_path):
    quality = Quality(nfe=[1], num_samples=8, cache=str(tmp_path / "cache"))
    t = trainer(tmp_path, callbacks=[quality], precision="bf16-true")
    (measured,) = t.validate(tiny(), MNIST(), verbose=False)
    assert measured["val/frechet_mnist_nfe1"] > 0


def test_what_is_missing_is_said_before_the_training(tmp_path):
    with pytest.raises(ConfigError, match="data module of this suite"):
        trainer(tmp_path, callbacks=[Quality()]).fit(module(), points())
    with pytest.raises(ConfigError, match=r"measures images of shape \(1, 28, 28\) only"):
        trainer(tmp_path, callbacks=[Quality()]).fit(module(), Toy())
    with pytest.raises(ConfigError, match="no Inception weights"):
        trainer(tmp_path, callbacks=[Quality(extractor=Inception("nowhere"))]).fit(tiny(), MNIST())
    with pytest.raises(ConfigError, match="odd number of evaluations"):
        trainer(tmp_path, callbacks=[Quality(nfe=[4])]).fit(tiny(DiffusionModule), MNIST())
    with pytest.raises(ConfigError, match="odd number of evaluations"):
        trainer(tmp_path, callbacks=[SampleGrid(nfe=[1])]).fit(tiny(DiffusionModule), MNIST())
    with pytest.raises(ConfigError, match="num_samples"):
        Quality(num_samples=1)


NAN = float("nan")


@pytest.mark.parametrize(
    ("make", "options", "line"),
    [
        (Quality, {"nfe": [0]}, "Quality: each of nfe must be a whole number of at least 1, got 0"),
        (Quality, {"nfe": [1, -2]}, "Quality: each of nfe must be a whole number of at least 1, got -2"),
        (Quality, {"nfe": [1.5]}, "Quality: each of nfe must be"),
        (Quality, {"nfe": []}, "Quality: nfe must be a list of values"),
        (Quality, {"num_samples": 1}, "Quality: num_samples must be a whole number of at least 2, got 1"),
        (Quality, {"num_samples": -5}, "Quality: num_samples must be"),
        (Quality, {"num_samples": NAN}, "Quality: num_samples must be"),
        (Quality, {"batch_size": 0}, "Quality: batch_size must be a whole number of at least 1, got 0"),
        (Quality, {"seed": -1}, "Quality: seed must be a whole number from 0"),
        (Quality, {"seed": 2**32}, "Quality: seed must be"),
        (SampleGrid, {"nfe": [0]}, "SampleGrid: each of nfe must be a whole number of at least 1, got 0"),
        (SampleGrid, {"nfe": ()}, "SampleGrid: nfe must be a list of values"),
        (SampleGrid, {"num_samples": 0}, "SampleGrid: num_samples must be a whole number of at least 1, got 0"),
        (SampleGrid, {"columns": 0}, "SampleGrid: columns must be"),
        (SampleGrid, {"columns": -3}, "SampleGrid: columns must be"),
        (SampleGrid, {"scale": 0}, "SampleGrid: scale must be"),
        (SampleGrid, {"scale": True}, "SampleGrid: scale must be"),
        (SampleGrid, {"batch_size": 0}, "SampleGrid: batch_size must be"),
        (SampleGrid, {"seed": -1}, "SampleGrid: seed must be"),
        (PromptGrid, {"steps": [0]}, "PromptGrid: each of steps must be a whole number of at least 1, got 0"),
        (PromptGrid, {"steps": []}, "PromptGrid: steps must be a list of values"),
        (PromptGrid, {"guidance": -1}, "PromptGrid: guidance must be a finite number of at least 0, got -1"),
        (PromptGrid, {"guidance": NAN}, "PromptGrid: guidance must be"),
        (PromptGrid, {"num_samples": 1}, "PromptGrid: num_samples must be 0, or a whole number of at least 2, got 1"),
        (PromptGrid, {"num_samples": -1}, "PromptGrid: num_samples must be"),
        (PromptGrid, {"scale": 0}, "PromptGrid: scale must be"),
        (PromptGrid, {"seed": -1}, "PromptGrid: seed must be"),
        (CaptionedDigits, {"digits": 0}, "CaptionedDigits: digits must be a whole number of at least 1, got 0"),
    ],
)
def test_a_number_without_meaning_is_refused_where_it_is_set(make, options, line):
    with pytest.raises(ConfigError) as error:
        make(**options)
    assert str(error.value).startswith(line)


def test_numbers_at_the_edge_of_their_domains_are_taken():
    Quality(nfe=[1], num_samples=2, batch_size=1, seed=2**32 - 1)
    SampleGrid(num_samples=1, nfe=(1,), columns=1, seed=0, scale=1, batch_size=1)
    PromptGrid(steps=(1,), guidance=0, num_samples=0)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 32, 32), (3, 28, 28)])
def test_a_model_of_another_shape_than_the_data_is_refused_for_that_first(shape, tmp_path):
    m = ConsistencyTraining(UNet(shape[0], 8, (1,), 1, (), patch=4), shape)
    with pytest.raises(ConfigError) as error:
        trainer(tmp_path, callbacks=[Quality()]).fit(m, MNIST())
    assert str(error.value).startswith(f"the data has images of shape (1, 28, 28), but the model expects {shape}: "
                                       "set --model.image_shape=[1,28,28]")  # fmt: skip
    assert "Quality" not in str(error.value)


KINDS = ("frechet", "kid", "precision", "recall")
DIGITS = {f"{kind}_{name}" for kind in KINDS for name in ("mnist", "mnist2")} | {"accuracy", "accuracy2"}
GREY = {"mid_grey", "black"}


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({}, DIGITS | GREY),
        ({"kid": True}, DIGITS | GREY),
        ({"kid": False}, {name for name in DIGITS | GREY if "kid" not in name}),
        ({"extractor": SecondMnistClassifier()}, {name for name in DIGITS if name.endswith("2")} | GREY),
        ({"measures": [PixelShares()]}, GREY),
        ({"measures": [FeatureScores(MnistClassifier(), [])]}, {"frechet_mnist", "accuracy"}),
        ({"measures": [FeatureScores(MnistClassifier(), [PrecisionRecall(1)]),
                       FeatureScores(SecondMnistClassifier(), [])]},
         {"frechet_mnist", "precision_mnist", "recall_mnist", "accuracy", "frechet_mnist2", "accuracy2"}),
    ],
)  # fmt: skip
def test_the_measures_are_logged_for_samples_and_real_images_and_from_the_cache(options, names, tmp_path):
    first = measure(tmp_path, tiny(), nfe=[1], num_samples=8, **options)
    logged = {name for name in first if name.endswith(("_nfe1", "_floor"))}
    assert logged == {f"val/{name}_{row}" for name in names for row in ("nfe1", "floor")}
    assert measure(tmp_path, tiny(), nfe=[1], num_samples=8, **options) == pytest.approx(first)


def test_the_distances_of_held_out_digits_are_small_and_their_shares_are_theirs(tmp_path, monkeypatch):
    few_digits(monkeypatch, every=1)  # all: the floor of few is uncertain
    measured = measure(tmp_path, tiny(), nfe=[1], num_samples=8)
    for network in ("mnist", "mnist2"):
        assert abs(measured[f"val/kid_{network}_floor"]) < 0.01 * measured[f"val/kid_{network}_nfe1"]
        assert measured[f"val/precision_{network}_floor"] > 0.8
        assert measured[f"val/recall_{network}_floor"] > 0.8
        assert measured[f"val/recall_{network}_nfe1"] < 0.1  # eight images of noise
    pixels = torch.cat([images for images, _ in MNIST().in_order("val")])
    assert measured["val/mid_grey_floor"] == pytest.approx((pixels.abs() < 0.5).float().mean().item(), rel=1e-4)
    assert measured["val/black_floor"] == pytest.approx((pixels < -0.98).float().mean().item(), rel=1e-4)


def test_statistics_with_other_contents_have_other_names(tmp_path):
    for comparisons in ([], [PrecisionRecall()]):
        measure(tmp_path, tiny(), nfe=[1], num_samples=8, measures=[FeatureScores(MnistClassifier(), comparisons)])
    assert len(list((tmp_path / "cache").iterdir())) == 2
    sums = FeatureScores(MnistClassifier(), [])
    assert sums.identity() != MnistClassifier().identity()  # the name of files that had no kept features


def test_measures_that_contradict_get_a_line():
    with pytest.raises(ConfigError, match=r"^Quality: give extractor or measures: in measures a FeatureScores has its"):
        Quality(extractor=MnistClassifier(), measures=[PixelShares()])
    with pytest.raises(ConfigError, match=r"^Quality: measures must have at least one: add one, or remove the callb"):
        Quality(measures=[])
    with pytest.raises(ConfigError, match=r"^Quality: measures hold frechet_mnist twice: remove one of them"):
        Quality(measures=[FeatureScores(MnistClassifier()), PixelShares(), FeatureScores(MnistClassifier())])


def test_the_table_fits_a_terminal_of_80_columns(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    measure(tmp_path, tiny(), nfe=[1, 2, 4], num_samples=8)
    rows = [line.split("│") for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert {row[1].strip() for row in rows} == DIGITS | GREY
    assert all(len(row) == 7 and all(float(value) or True for value in row[2:6]) for row in rows)  # nothing is cut


def test_measures_are_composed_in_yaml(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["cm-lightning"])
    (tmp_path / "m.yaml").write_text(
        "callbacks: {quality: {nfe: [1], num_samples: 8, measures: ["
        "{class_path: FeatureScores, init_args: {extractor: {class_path: SecondMnistClassifier}, comparisons: "
        "[{class_path: PrecisionRecall, init_args: {neighbours: 2}}]}}, {class_path: PixelShares}]}}"
    )
    monkeypatch.chdir(tmp_path)
    main(["fit", f"--config={CONF}/image.yaml", "--config=m.yaml", "--trainer.max_steps=2",
          "--trainer.val_check_interval=2"])  # fmt: skip
    (table,) = Path("runs/image").glob("version_*/metrics.csv")
    head = table.read_text().splitlines()[0].split(",")
    assert {name for name in head if name.endswith("_nfe1")} == {
        f"val/{name}_nfe1" for name in ("frechet_mnist2", "precision_mnist2", "recall_mnist2", "accuracy2", *GREY)
    }


def write_folder(n):
    generator = torch.Generator().manual_seed(0)
    Path("images").mkdir()
    for i in range(n):
        color = tuple(torch.randint(256, (3,), generator=generator).tolist())
        Image.new("RGB", (40, 40), color).save(f"images/{i}.png")


RECIPE = Path(__file__).parents[2] / "experiments/folder/ct.yaml"


def fit_the_recipe_for_folders(monkeypatch, *options):
    """Train two steps with the recipe's callbacks, unless options change them; return the run's directory."""
    monkeypatch.setattr(sys, "argv", ["cm-lightning"])
    short = ["max_steps=2", "val_check_interval=2", "accumulate_grad_batches=1", "precision=32-true", "devices=1"]
    tiny_model = ["--model.image_shape=[3,16,16]", "--model.backbone.channels=8", "--model.sampling_sigmas=null",
                  "--model.backbone.multipliers=[1, 1]", "--model.backbone.attention_levels=[1]",
                  "--model.backbone.blocks=1", "--callbacks.samples.num_samples=4"]  # fmt: skip
    data = ["--data.size=16", "--data.batch_size=8", "--data.num_workers=0", "--trainer.accelerator=cpu"]
    main(["fit", f"--config={RECIPE}", *(f"--trainer.{option}" for option in short), *tiny_model, *data, *options])
    return sorted(Path("runs/folder-ct").iterdir())[-1]


def test_the_recipe_for_folders_runs_without_weights_and_measures_with_them(tmp_path, monkeypatch, log):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", None)  # nothing is downloaded
    write_folder(20)
    run = fit_the_recipe_for_folders(monkeypatch)
    notes = [line for line in log if "Quality" in line]
    name = "resnet50-11ad3fa6.pth"
    assert notes == [
        f"Quality measures nothing, because weights are missing: put https://download.pytorch.org/models/{name} into "
        f"{tmp_path}/hub/checkpoints, or set the extractor's weights to a file of resnet50"
    ]
    assert len(list((run / "samples").glob("*_nfe?.png"))) == 2
    assert "frechet" not in (run / "metrics.csv").read_text()

    (tmp_path / "hub/checkpoints").mkdir(parents=True)
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "hub/checkpoints/resnet18-f37072fd.pth")
    smaller = ["--callbacks.quality.num_samples=4", "--callbacks.quality.extractor.model=resnet18"]  # fewer features
    run = fit_the_recipe_for_folders(monkeypatch, *smaller)
    head = (run / "metrics.csv").read_text().splitlines()[0].split(",")
    for row in ("floor", "nfe1", "nfe2"):
        assert {f"val/{kind}_resnet18_{row}" for kind in KINDS} <= set(head)
        assert f"val/mid_grey_{row}" not in head  # of colour images


def test_wrong_weights_and_too_few_images_are_said_before_the_training(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_folder(2)
    unet = UNet(3, 8, (1,), 1, (), patch=4)
    Path("damaged.pth").write_bytes(b"x")
    for weights, line in (
        ("nowhere.pth", "file not found: nowhere.pth"),
        ("damaged.pth", "damaged.pth does not hold a state dict"),
    ):
        extractor = TorchvisionFeatures("resnet18", weights)
        with pytest.raises(ConfigError, match="at least 2 images, and train has fewer"):
            trainer(tmp_path, callbacks=[Quality(extractor=extractor)]).fit(
                ConsistencyTraining(unet, (3, 16, 16)), ImageFolder("images", 16)
            )
        with pytest.raises(CheckpointError, match=line):
            trainer(tmp_path, callbacks=[Quality(extractor=extractor)]).fit(tiny(), MNIST())


@pytest.mark.parametrize("extractor", [TorchvisionFeatures(), Inception()])
def test_photographs_networks_do_not_measure_points(extractor, tmp_path):
    line = (
        r"grey and colour images, not samples of shape \(2,\): set measures to an EnergyDistance of dim 2, or remove it"
    )
    with pytest.raises(ConfigError, match=line):
        trainer(tmp_path, callbacks=[Quality(extractor=extractor)]).fit(module(), Toy())


def test_a_sheet_does_not_depend_on_how_many_are_drawn_at_a_time(tmp_path):
    sheets = []
    for batch_size in (100, 7):
        folder = tmp_path / str(batch_size)
        grid = SampleGrid(num_samples=20, nfe=[1, 2], batch_size=batch_size)
        trainer(folder, callbacks=[grid]).validate(tiny(), MNIST(), verbose=False)
        sheets.append([torchvision.io.read_image(str(p)) for p in sorted((folder / "samples").iterdir())])
    assert len(sheets[0]) == 2
    for a, b in zip(*sheets, strict=True):
        torch.testing.assert_close(a.float(), b.float(), rtol=0, atol=1)


@pytest.mark.parametrize(
    ("quality", "data", "remedy"),
    [
        ({}, "clothes", "MnistClassifier measures digits, and FashionMNIST has clothes: .*extractor FashionClassifier"),
        ({"extractor": SecondMnistClassifier()}, "clothes", "SecondMnistClassifier measures digits"),
        (
            {"extractor": FashionClassifier()},
            "digits",
            "FashionClassifier measures clothes, and MNIST has digits: .* MnistClassifier",
        ),
        (
            {"measures": [PixelShares(), FeatureScores(FashionClassifier())]},
            "digits",
            "FashionClassifier measures clothes",
        ),
        ({"extractor": FashionClassifier()}, "clothes", None),
        ({"measures": [PixelShares()]}, "clothes", None),
    ],
)
def test_a_classifier_measures_only_what_it_was_trained_on(tmp_path, quality, data, remedy):
    write_mnist(tmp_path)
    kind = MNIST() if data == "digits" else FashionMNIST(str(tmp_path), batch_size=8)
    start = Quality(num_samples=20, **quality)
    t = trainer(tmp_path, callbacks=[start], limit_val_batches=0)
    t.datamodule = kind
    if remedy is None:
        start.setup(t, tiny(), "fit")
        return
    with pytest.raises(ConfigError, match=f"^Quality: {remedy}"):
        start.setup(t, tiny(), "fit")


def measure_points(tmp_path, **options):
    quality = Quality(**{"nfe": [1, 2], "num_samples": 30, "batch_size": 8, "measures": [EnergyDistance()],
                         "cache": str(tmp_path / "cache"), **options})  # fmt: skip
    m = module()
    torch.nn.init.normal_(m.backbone.head.weight, std=0.2)
    (measured,) = trainer(tmp_path, callbacks=[quality]).validate(m, Toy(num_points=100), verbose=False)
    return m, measured


def test_points_have_an_energy_distance_from_those_of_training(tmp_path):
    m, measured = measure_points(tmp_path)
    assert {name for name in measured if "energy" in name} == {f"val/energy_{row}" for row in ("floor", "nfe1", "nfe2")}
    real, held_out = (torch.cat([points for points, _ in Toy(num_points=100).in_order(s)]) for s in ("train", "val"))
    drawn = m.sample(30, 1, generator=generators(0, range(30)))
    for name, points_of_it in (("floor", held_out), ("nfe1", drawn)):
        distances = [
            torch.cdist(a, b).mean().item() for a, b in ((points_of_it, real), (points_of_it,) * 2, (real,) * 2)
        ]
        assert measured[f"val/energy_{name}"] == pytest.approx(2 * distances[0] - distances[1] - distances[2], rel=1e-3)
    assert [path.name.rpartition("-")[0] for path in (tmp_path / "cache").iterdir()] == ["energy-Toy-train-100"]
    again = measure_points(tmp_path, num_samples=30, batch_size=30)[1]
    assert again == pytest.approx(measured, rel=1e-4)


@pytest.mark.parametrize(
    ("dim", "m", "data", "line"),
    [
        (3, module, Toy, r"EnergyDistance measures points of shape \(3,\) only: set measures to an EnergyDistance of"),
        (2, tiny, MNIST, r"EnergyDistance measures points of shape \(2,\) only: set its extractor to Inception"),
    ],
)  # fmt: skip
def test_an_energy_distance_of_another_shape_gets_a_line(dim, m, data, line, tmp_path):
    with pytest.raises(ConfigError, match=f"^Quality: {line}"):
        trainer(tmp_path, callbacks=[Quality(measures=[EnergyDistance(dim)])]).fit(m(), data())
