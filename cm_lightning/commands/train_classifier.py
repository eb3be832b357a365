"""``cm-lightning train-classifier``: train a classifier of digits or clothes that measures samples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cm_lightning.commands.parser import CommandParser
from cm_lightning.domains import COUNT, SEED
from cm_lightning.errors import ConfigError
from cm_lightning.files import replacing, require_writable

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def main(argv: Sequence[str]) -> None:
    """Train on the embedded digits or on Fashion-MNIST, print the accuracy on held-out images, and save the weights."""
    parser = CommandParser(prog="train-classifier", description="Train a classifier of images that measures samples.")
    parser.add_argument("--output", type=Path, required=True, help="the .safetensors file to write")
    which = ("first", "second", "fashion")
    parser.add_argument("--which", choices=which, default="first", help="one of the shipped classifiers")
    parser.add_argument("--root", default="data", help="fashion: folder of the four idx files of Fashion-MNIST")
    parser.add_argument("--epochs", type=COUNT.parse, help="default: those of the shipped weights")
    parser.add_argument("--seed", type=SEED.parse, default=0)
    args = parser.parse_args(argv)
    if args.output.suffix != ".safetensors":
        raise ConfigError(f"--output {args.output}: name a file that ends with .safetensors")
    require_writable(args.output, "--output")

    from safetensors.torch import save_file

    from cm_lightning.data.digits import embedded_digits, permuted_digits
    from cm_lightning.data.mnist import FashionMNIST
    from cm_lightning.images import to_unit_range
    from cm_lightning.metrics.classifier import FIRST, load_classifier, train_classifier
    from cm_lightning.metrics.second_classifier import FASHION, SECOND

    def clothes(split: str) -> tuple[Tensor, Tensor]:
        data = FashionMNIST(args.root).load(split)
        return data.samples, data.labels

    training, load = {
        "first": (FIRST, embedded_digits), "second": (SECOND, permuted_digits), "fashion": (FASHION, clothes),
    }[args.which]  # fmt: skip
    images, labels = load("train")
    classifier = train_classifier(to_unit_range(images), labels, args.epochs or training.epochs, args.seed, training)
    with replacing(args.output) as path:
        save_file({name: _stored(tensor, training.dtype) for name, tensor in classifier.state_dict().items()}, path)
    images, labels = load("val")
    written = load_classifier(args.output, training.network)
    accuracy = (written.classify(to_unit_range(images)).argmax(1) == labels).float().mean().item()
    print(f"accuracy on {len(labels)} held-out images: {accuracy:.4f}; weights in {args.output}")


def _stored(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in the dtype of the file; counters stay whole numbers."""
    return tensor.to(dtype) if tensor.is_floating_point() else tensor
