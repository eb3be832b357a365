"""Small captioned data sets of real images."""

import pytest
import torch

from cm_lightning.data.captions import CaptionedFashionMNIST, CaptionedMNIST, CaptionedPairs
from cm_lightning.data.digits import embedded_digits
from cm_lightning.errors import DataError
from cm_lightning.metrics.extractor import CaptionedDigits, MnistClassifier, SecondCaptionedDigits
from cm_lightning.metrics.feature_scores import FeatureScores
from cm_lightning.metrics.scores import Scores
from tests.data.files import write_mnist


def test_each_digit_comes_under_each_phrasing():
    data = CaptionedMNIST()
    train, (pixels, labels) = data.split("train"), embedded_digits("train")
    assert len(train) == 5 * 4000
    image = train[1000][0]
    assert image.shape == (3, 32, 32)
    torch.testing.assert_close(image[:, 2:-2, 2:-2], (pixels[1000].float() / 127.5 - 1).expand(3, -1, -1))
    assert (image[:, :2] == -1).all()
    assert int(labels[1000]) == 2
    assert [train[1000 + 4000 * i][1] for i in range(3)] == ["a handwritten two", "the digit two", "a drawing of a two"]
    assert train.all_captions()[5000] == train[5000][1]


@pytest.mark.parametrize("kind", [CaptionedMNIST, CaptionedPairs])
def test_prompts_are_phrased_as_no_training_image_is(kind):
    data = kind()
    trained, (prompts, labels) = set(data.split("train").all_captions()), data.prompts(300)
    assert len(prompts) == len(labels) == 300
    assert not trained & set(prompts)
    assert not trained & set(data.split("val").all_captions())
    words = {word.strip(",") for caption in trained for word in caption.split()}
    assert {word.strip(",") for prompt in prompts for word in prompt.split()} <= words  # but of words that it knows
    assert data.prompts(100)[0] == prompts[:100]


def test_pairs_say_which_digit_is_left():
    data = CaptionedPairs()
    images, labels = data.labelled("train")
    assert images.shape == (8000, 3, 32, 64)
    pixels, classes = embedded_digits("train")
    left = (images[7, 0, 2:-2, 2:30] == pixels[:, 0]).flatten(1).all(1).nonzero()[0, 0]
    assert classes[left] == labels[7, 0]
    train = data.split("train")
    a, b = (data.names[i] for i in labels[7].tolist())
    assert [train[7 + 8000 * i][1] for i in (1, 3)] == [f"a {a} to the left of a {b}", f"a {b} to the right of a {a}"]
    prompts, asked = data.prompts(200)
    assert len({tuple(row) for row in asked.tolist()}) == 100
    assert (prompts[25], asked[25].tolist()) == ("the two and the five", [2, 5])
    assert (prompts[125], asked[125].tolist()) == ("the two to the left of the five", [2, 5])  # each pair in each
    torch.testing.assert_close(CaptionedPairs().labelled("train")[1], labels)


def test_batches_are_images_and_captions():
    images, captions = next(iter(CaptionedMNIST(batch_size=6).train_dataloader()))
    assert images.shape == (6, 3, 32, 32)
    assert len(captions) == 6
    assert all(isinstance(caption, str) for caption in captions)


def test_clothes_are_described_and_need_their_files(tmp_path):
    write_mnist(tmp_path / "there")
    clothes = CaptionedFashionMNIST(str(tmp_path / "there"))
    assert clothes.split("train")[3][0].shape == (3, 32, 32)
    assert clothes.split("train")[3 + 40][1] == "a photo of a dress"
    assert clothes.split("val")[9][1] == "a photo of a grey ankle boot"
    with pytest.raises(DataError, match=r"no train-images-idx3-ubyte in"):
        CaptionedFashionMNIST(str(tmp_path)).split("train")


def test_the_classifier_reads_rows_of_digits():
    pixels, labels = embedded_digits("val")
    x = CaptionedMNIST().labelled("val")[0][:200].float() / 127.5 - 1
    one, plain = (Scores([FeatureScores(extractor)]) for extractor in (CaptionedDigits(), MnistClassifier()))
    single = pixels.float() / 127.5 - 1
    one.add_reference([x[:100]])
    plain.add_reference([single[:100]])
    ours, theirs = one([(x[100:200], labels[100:200])]), plain([(single[100:200], labels[100:200])])
    assert ours == pytest.approx(theirs, rel=1e-3)

    images, pairs = CaptionedPairs().labelled("val")
    two, row = (
        Scores([FeatureScores(CaptionedDigits(2)), FeatureScores(SecondCaptionedDigits(2))]),
        images[:300].float() / 127.5 - 1,
    )
    two.add_reference([row])
    scores = two([(row, pairs[:300])])
    half = pairs[:300].clone()
    half[:, 1] = (half[:, 1] + 1) % 10  # one of two digits is not enough
    assert min(scores["accuracy"], scores["accuracy2"]) > 0.9
    assert scores.keys() == {
        f"{kind}_{name}" for kind in ("frechet", "kid", "precision", "recall") for name in ("mnist", "mnist2")
    } | {"accuracy", "accuracy2"}
    wrong = two([(row, half)])
    assert max(wrong["accuracy"], wrong["accuracy2"]) < 0.1
