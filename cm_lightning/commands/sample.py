"""``cm-lightning sample``: draw images from a checkpoint."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def numbers(kind: type[int] | type[float]) -> Callable[[str], list[int] | list[float]]:
    """A parser of "1,2,4", for argparse."""

    def parse(text: str) -> list[Any]:
        return [kind(part) for part in text.split(",")]

    parse.__name__ = f"list of {kind.__name__}s"  # what argparse calls it in its error
    return parse


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cm-lightning sample",
        description="Draw images from a checkpoint; from prompts with --pipeline (see --pipeline --help).",
    )
    parser.add_argument("--ckpt_path", type=Path, required=True, help="a checkpoint made by cm-lightning fit")
    parser.add_argument("--num_samples", type=int, default=64)
    parser.add_argument(
        "--steps", type=int, help="evaluations of the network; default: 1, and 35 or 50 for a diffusion model"
    )
    parser.add_argument("--sigmas", type=numbers(float), help="noise levels in place of --steps: 80,0.8")
    parser.add_argument("--labels", type=numbers(int), help="classes, repeated in turn: 0,1,2; default: all in turn")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--output",
        type=Path,
        action="append",
        help="a .png sheet (default samples.png), an .npz (images uint8 NHWC, labels), or a folder; may repeat",
    )
    parser.add_argument("--columns", type=int, default=10, help="images in a row of the sheet")
    parser.add_argument("--weights", choices=("ema", "raw"), help="default: the averaged ones if there are any")
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--device", default="auto", help="cpu, cuda, ...; auto takes an accelerator if there is one")
    parser.add_argument("--trust", action="append", default=[], help="a package the checkpoint may take classes from")
    return parser


def main(argv: Sequence[str]) -> None:
    """Parse, draw, write."""
    if any(argument.split("=")[0] == "--pipeline" for argument in argv):
        from cm_lightning.commands.prompt import main as draw_prompts

        draw_prompts(argv)
        return
    args = _parser().parse_args(argv)
    if args.num_samples < 1 or args.batch_size < 1:
        _parser().error("--num_samples and --batch_size must be at least 1")
    outputs: list[Path] = args.output or [Path("samples.png")]
    if wrong := [output for output in outputs if output.suffix not in ("", ".png", ".npz")]:
        _parser().error(f"--output {wrong[0]}: give a .png, an .npz, or a folder")

    import torch

    from cm_lightning.core.noise import generators
    from cm_lightning.device import chosen_device
    from cm_lightning.errors import ConfigError
    from cm_lightning.modules.loading import load_module

    device = chosen_device(args.device)
    module = load_module(args.ckpt_path, args.weights, args.trust)
    if len(module.image_shape) != 3 and any(output.suffix != ".npz" for output in outputs):
        raise ConfigError("--output: this checkpoint draws no images: write its samples to an .npz file")
    try:
        module = module.to(device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"--device {device} cannot be used here: leave it out, or give cpu") from error
    labels = None
    if args.labels:
        labels = torch.tensor(args.labels)[torch.arange(args.num_samples) % len(args.labels)]
    labels = module.sample_labels(args.num_samples, labels)
    batches = []
    for first in range(0, args.num_samples, args.batch_size):
        rows = range(first, min(first + args.batch_size, args.num_samples))
        chosen = None if labels is None else labels[rows.start : rows.stop]
        batches.append(module.sample(len(rows), args.steps, chosen, generators(args.seed, rows), args.sigmas).cpu())
    images = torch.cat(batches)
    for output in outputs:
        _write(output, images, None if labels is None else labels.cpu(), args.columns)
        print(f"{len(images)} samples: {output}")


def _write(output: Path, images: Tensor, labels: Tensor | None, columns: int) -> None:
    import numpy as np

    from cm_lightning.data.images import to_pixels
    from cm_lightning.files import replacing
    from cm_lightning.grid import sheet, write_png

    if output.suffix == ".png":
        write_png(output, sheet(images, columns))
    elif output.suffix == ".npz":
        classes = np.empty(0, np.int64) if labels is None else labels.numpy()
        arrays = to_pixels(images).permute(0, 2, 3, 1) if images.ndim == 4 else images
        with replacing(output) as path:
            np.savez_compressed(path, images=arrays.numpy(), labels=classes)
    else:
        for i, pixels in enumerate(to_pixels(images)):
            name = f"{i:06d}.png" if labels is None else f"{i:06d}_class{int(labels[i])}.png"
            write_png(output / name, pixels)
