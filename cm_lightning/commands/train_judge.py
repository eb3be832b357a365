"""``cm-lightning train-judge``: train the classifier of digits that measures samples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cm_lightning.commands.parser import CommandParser
from cm_lightning.domains import COUNT, SEED
from cm_lightning.errors import ConfigError
from cm_lightning.files import replacing, require_writable


def main(argv: Sequence[str]) -> None:
    """Train on the embedded digits, print the accuracy on the held-out ones, write the weights."""
    parser = CommandParser(prog="train-judge", description="Train the classifier of digits that measures samples.")
    parser.add_argument("--output", type=Path, required=True, help="the .safetensors file to write")
    parser.add_argument("--epochs", type=COUNT.parse, default=40)
    parser.add_argument("--seed", type=SEED.parse, default=0)
    args = parser.parse_args(argv)
    if args.output.suffix != ".safetensors":
        raise ConfigError(f"--output {args.output}: name a file that ends with .safetensors")
    require_writable(args.output, "--output")

    from safetensors.torch import save_file

    from cm_lightning.data.digits import embedded_digits
    from cm_lightning.images import to_unit_range
    from cm_lightning.metrics.judge import train_judge

    images, labels = embedded_digits("train")
    judge = train_judge(to_unit_range(images), labels, args.epochs, args.seed)
    images, labels = embedded_digits("val")
    accuracy = (judge.classify(to_unit_range(images)).argmax(1) == labels).float().mean().item()
    with replacing(args.output) as path:
        save_file(judge.state_dict(), path)
    print(f"accuracy on {len(labels)} held-out digits: {accuracy:.4f}; weights in {args.output}")
