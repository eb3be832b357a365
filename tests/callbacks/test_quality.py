import pytest
import torch

from cm_lightning.backbones.unet import UNet
from cm_lightning.callbacks.quality import Quality
from cm_lightning.callbacks.sample_grid import SampleGrid
from cm_lightning.core.ode_sampler import DDIM
from cm_lightning.data.mnist import MNIST
from cm_lightning.data.toy import Toy
from cm_lightning.errors import ConfigError
from cm_lightning.metrics.extractor import Inception
from cm_lightning.metrics.judge import load_judge
from cm_lightning.modules.diffusion import DiffusionModule
from cm_lightning.modules.training import ConsistencyTraining
from tests.helpers import module, points, trainer


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
    validation = 2 * 8  # of the loss, 128 of 1,000 images at a time
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
    (path,) = (tmp_path / "cache").iterdir()
    assert path.name.startswith("frechet_mnist-MNIST-train-4000-")
    monkeypatch.setattr("cm_lightning.metrics.frechet.FrechetScores.add_reference", None)  # would fail if called
    assert measure(tmp_path, tiny()) == pytest.approx(first)
    monkeypatch.undo()
    data = MNIST()
    data.split("train").samples[0] += 1
    quality = Quality(nfe=[1], num_samples=8, cache=str(tmp_path / "cache"))
    trainer(tmp_path, callbacks=[quality]).validate(tiny(), data, verbose=False)
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_the_floor_is_what_held_out_images_score(tmp_path):
    measured = measure(tmp_path, tiny(num_classes=0), num_samples=2)
    images = torch.cat([images for images, _ in MNIST().in_order("val")])
    labels = torch.cat([labels for _, labels in MNIST().in_order("val")])
    accuracy = (load_judge().classify(images).argmax(1) == labels).float().mean().item()
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


def test_sixteen_bit_weights_are_judged_too(tmp_path):
    quality = Quality(nfe=[1], num_samples=8, cache=str(tmp_path / "cache"))
    t = trainer(tmp_path, callbacks=[quality], precision="bf16-true")
    (measured,) = t.validate(tiny(), MNIST(), verbose=False)
    assert measured["val/frechet_mnist_nfe1"] > 0


def test_what_is_missing_is_said_before_the_training(tmp_path):
    with pytest.raises(ConfigError, match="data module of this suite"):
        trainer(tmp_path, callbacks=[Quality()]).fit(module(), points())
    with pytest.raises(ConfigError, match=r"judges images of shape \(1, 28, 28\) only"):
        trainer(tmp_path, callbacks=[Quality()]).fit(module(), Toy())
    with pytest.raises(ConfigError, match="no Inception weights"):
        trainer(tmp_path, callbacks=[Quality(extractor=Inception("nowhere"))]).fit(tiny(), MNIST())
    with pytest.raises(ConfigError, match="odd number of evaluations"):
        trainer(tmp_path, callbacks=[Quality(nfe=[4])]).fit(tiny(DiffusionModule), MNIST())
    with pytest.raises(ConfigError, match="odd number of evaluations"):
        trainer(tmp_path, callbacks=[SampleGrid(nfe=[1])]).fit(tiny(DiffusionModule), MNIST())
    with pytest.raises(ConfigError, match="num_samples"):
        Quality(num_samples=1)
