import pytest
import torch
from torchmetrics.image.kid import poly_mmd

from cm_lightning.data.digits import embedded_digits
from cm_lightning.errors import CheckpointError
from cm_lightning.images import to_unit_range
from cm_lightning.metrics.classifier import load_classifier
from cm_lightning.metrics.extractor import MnistClassifier
from cm_lightning.metrics.feature_scores import FeatureScores
from cm_lightning.metrics.kept import KeptFeatures
from cm_lightning.metrics.kernel import KernelDistance, mean_kernel
from cm_lightning.metrics.scores import Scores, load_reference, save_reference


@pytest.fixture(scope="module")
def digits():
    images, _ = embedded_digits("val")
    return to_unit_range(images)


def distance(x, y):
    return (mean_kernel(x) + mean_kernel(y) - 2 * mean_kernel(x, y)).item()


def test_it_is_the_unbiased_estimate_with_the_cubic_kernel():
    x, y = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]]), torch.tensor([[0.0, 1.0], [2.0, 2.0], [3.0, 0.0]])

    def k(a, b):
        return (float(a @ b) / 2 + 1) ** 3

    within = [sum(k(s[i], s[j]) for i in range(3) for j in range(3) if i != j) / 6 for s in (x, y)]
    between = sum(k(a, b) for a in x for b in y) / 9
    assert distance(x, y) == pytest.approx(sum(within) - 2 * between)
    assert distance(x, y) == pytest.approx(poly_mmd(x.double(), y.double(), 3, None, 1.0).item())
    assert mean_kernel(x[:1]).isnan()


def test_its_mean_over_halves_of_one_set_is_0():
    torch.manual_seed(0)
    values = [distance(*torch.randn(60, 8).chunk(2)) for _ in range(300)]
    spread = torch.tensor(values).std().item() / 300**0.5
    assert abs(sum(values) / 300) < 3 * spread
    assert distance(torch.randn(60, 8), torch.randn(60, 8) + 1) > 20 * spread


@pytest.mark.parametrize("limit", [4, 7, 100])
@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("batch", [1, 5, 40])
def test_the_choice_is_of_the_images_not_of_batches_or_ranks(limit, ranks, batch, monkeypatch):
    features = torch.arange(40.0)[:, None]
    kept = [KeptFeatures(rank, ranks, limit) for rank in range(ranks)]
    for k in kept:
        for part in features[k.rank :: ranks].split(batch):
            k.add(part)
    monkeypatch.setattr("cm_lightning.metrics.kept.gather_all_tensors",
                        lambda t: [o.keys if t.ndim == 1 else o.features for o in kept])  # fmt: skip
    alone = KeptFeatures(limit=limit)
    alone.add(features)
    for k in kept:
        together = k.of_all_ranks(1, torch.device("cpu"))
        assert torch.equal(together.features, alone.features)
    assert len(alone.features) == min(limit, 40)


def test_the_choice_is_spread_over_a_sorted_set():
    kept = KeptFeatures(limit=100)
    kept.add(torch.arange(1000.0)[:, None])
    counts = torch.histc(kept.features, 10, 0, 1000)
    assert counts.min() >= 9
    assert counts.max() <= 11


def test_scores_tell_it_beside_the_frechet_distance(digits, tmp_path):
    made, read = (Scores([FeatureScores(MnistClassifier(), [KernelDistance()])]) for _ in range(2))
    made.add_reference(digits[::2].split(300))
    scores = made([(batch, None) for batch in digits[1::2].split(70)])
    a, b = (load_classifier()(x) for x in (digits[::2], digits[1::2]))
    assert scores["kid_mnist"] == pytest.approx(distance(a, b), rel=1e-6)
    plain = Scores([FeatureScores(MnistClassifier(), [])])
    plain.add_reference(digits[::2].split(300))
    again = plain([(batch, None) for batch in digits[1::2].split(70)])
    assert again == {"frechet_mnist": scores["frechet_mnist"]}
    assert made([(torch.rand_like(digits) * 2 - 1, None)])["kid_mnist"] > 10 * abs(scores["kid_mnist"])

    save_reference(made.measures[0], tmp_path / "r.safetensors", write=True)
    load_reference(read.measures[0], tmp_path / "r.safetensors")
    assert read([(digits[1::2], None)])["kid_mnist"] == pytest.approx(scores["kid_mnist"], rel=1e-6)
    save_reference(plain.measures[0], tmp_path / "p.safetensors", write=True)
    with pytest.raises(CheckpointError, match=r"p.safetensors does not hold reference"):
        load_reference(read.measures[0], tmp_path / "p.safetensors")


def test_a_reference_grows_and_is_of_the_measures_that_began_it(digits):
    scores = Scores([FeatureScores(MnistClassifier())])
    scores.add_reference([digits[:200]])
    few = scores([(digits[500:], None)])
    scores.add_reference([digits[200:500]])
    grown = scores([(digits[500:], None)])
    a, b = (load_classifier()(x) for x in (digits[:500], digits[500:]))
    assert grown["kid_mnist"] == pytest.approx(distance(a, b), rel=1e-6)
    assert grown["recall_mnist"] != few["recall_mnist"]
    again = Scores([FeatureScores(MnistClassifier())])
    again.add_reference([digits[:500]])
    Scores(again.measures).add_reference([digits[:200]])  # starts anew
    assert again([(digits[500:], None)]) == pytest.approx(few, rel=1e-4)
