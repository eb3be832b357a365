"""Batches of any loader: unambiguous ones are taken, the others are refused in one line with the remedy."""

import warnings

import pytest
import torch

from cm_lightning.errors import ConfigError
from cm_lightning.modules.batch import images_and_labels, number_of_samples
from tests.helpers import module, trainer

SHAPE = (3, 8, 8)


def images(n=4, dtype=torch.float32):
    return (torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(0)) * 2 - 1).to(dtype)


LABELS = torch.tensor([0, 2, 1, 2])


@pytest.mark.parametrize(
    "labels",
    [
        LABELS,
        *(
            LABELS.to(kind)
            for kind in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.float32, torch.float64)
        ),
        LABELS[:, None],
        torch.nn.functional.one_hot(LABELS, 3),
        torch.nn.functional.one_hot(LABELS, 3).float(),
        torch.nn.functional.one_hot(LABELS, 3).bool(),
    ],
)
def test_labels_of_any_clear_kind_become_whole_numbers(labels):
    found = images_and_labels((images(), labels), SHAPE, 3, first=True)[1]
    assert found.dtype == torch.int64
    assert found.tolist() == LABELS.tolist()


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (LABELS + 1, "labels from 1 to 3, the backbone has 3 classes: number them from 0"),
        (LABELS - 1, "labels from -1 to 1"),
        (LABELS + 5, "labels from 5 to 7, the backbone has 3 classes: set --model.backbone.num_classes"),
        (LABELS + 0.5, "not whole numbers"),
        (torch.full((4,), float("nan")), "not whole numbers"),
        (LABELS > 1, "labels of type torch.bool"),
        (torch.rand(4, 3), "not one-hot"),
        (torch.ones(4, 3), "not one-hot"),
        (LABELS[:3], "labels of shape (3,): give class indices, (4,)"),
        (torch.zeros(4, 5), "labels of shape (4, 5)"),
        (torch.tensor(1), "labels of shape ()"),
        (["a cat"] * 4, "the data does not have labels: set --model.backbone.num_classes=0"),
        (None, "the data does not have labels"),
    ],
)
def test_labels_that_mean_nothing_are_refused(labels, expected):
    with pytest.raises(ConfigError) as error:
        images_and_labels((images(), labels), SHAPE, 3, first=True)
    assert expected in str(error.value)


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        ((images() + 1) * 127.5, "values from 0.315185 to 254.959"),
        ((images() + 1) * 127.5, "divide by 127.5 and subtract 1"),
        (images() * 3, "give finite floats in [-1, 1]"),
        (torch.where(images() > 0.9, torch.nan, images()), "give finite floats"),
        (images() / 0, "give finite floats"),
        ((images() * 127).to(torch.uint8), "samples of type torch.uint8: give floats in [-1, 1]"),
        ((images() * 127).long(), "samples of type torch.int64"),
        (images().permute(0, 2, 3, 1), "with the channels last: give (C, H, W)"),
        (images()[:, :1], "set --model.image_shape=[1,8,8]"),
        (images()[..., :5], "set --model.image_shape=[3,8,5]"),
        ({"picture": images()}, "batches of picture: name the images 'images'"),
        ("text", "batches of type str"),
        ([], "batches of type list"),
        ([["a.png"], 3], "batches of type list"),
    ],
)
def test_images_that_mean_nothing_are_refused(batch, expected):
    with pytest.raises(ConfigError) as error:
        images_and_labels(batch, SHAPE, 0, first=True)
    assert expected in str(error.value)


@pytest.mark.parametrize("batch", [
    images(), (images(),), [images(), LABELS], (images(), ["a cat"] * 4), {"images": images()},
    {"image": images(), "label": LABELS}, {"pixel_values": images(), "labels": LABELS},
])  # fmt: skip
def test_batches_of_any_clear_kind_are_taken(batch):
    assert torch.equal(images_and_labels(batch, SHAPE, 0, first=True)[0], images())
    assert number_of_samples(batch) == 4


@pytest.mark.parametrize("kind", [torch.float64, torch.float16, torch.bfloat16])
def test_images_take_the_precision_of_the_network(kind):
    x, _ = images_and_labels(images(dtype=kind), SHAPE, 0, first=True, dtype=torch.float32)
    assert x.dtype == torch.float32


def test_images_in_the_unit_interval_are_taken_with_a_warning():
    with pytest.warns(UserWarning, match=r"lie in \[0, 1\]"):
        images_and_labels(images().abs(), SHAPE, 0, first=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images_and_labels(images(), SHAPE, 0, first=True)


def test_values_are_looked_at_in_the_first_batch_of_training_and_of_validation(tmp_path):
    class Pixels(torch.utils.data.Dataset):
        def __init__(self, scale):
            self.scale = scale

        def __len__(self):
            return 8

        def __getitem__(self, index):
            return {"images": torch.full((3, 4, 4), self.scale * index), "labels": index % 2}

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, x, noise_label, class_label=None):
            return x * self.weight

    def fit(train, val):
        loaders = [torch.utils.data.DataLoader(Pixels(scale), batch_size=4) for scale in (train, val)]
        own = module(backbone=Net(), image_shape=(3, 4, 4))
        trainer(tmp_path, max_steps=2, val_check_interval=1).fit(own, *loaders)

    fit(-0.1, -0.1)
    for scales in ((30.0, -0.1), (-0.1, 30.0)):
        with pytest.raises(ConfigError, match=r"divide by 127.5"):
            fit(*scales)
