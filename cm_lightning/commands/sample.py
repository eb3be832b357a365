"""``cm-lightning sample``: draw images from a checkpoint."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from cm_lightning.commands.parser import CommandParser, gives
from cm_lightning.commands.results import check_outputs, write_results
from cm_lightning.domains import COUNT, FINITE, FRACTION, NATURAL, POSITIVE, SEED
from cm_lightning.light import light_lightning
from cm_lightning.viewer import show


def parser() -> CommandParser:
    """The options of ``sample --ckpt_path``."""
    parser = CommandParser(
        prog="sample", description="Draw images from a checkpoint, or from prompts with the options of --pipeline."
    )
    parser.add_argument("--ckpt_path", type=Path, help="a checkpoint made by cm-lightning fit")
    parser.add_argument("--num_samples", type=COUNT.parse, default=64)
    parser.add_argument(
        "--steps", type=COUNT.parse, help="evaluations of the network; default: 1, and 35 or 50 for a diffusion model"
    )
    parser.add_argument("--sigmas", type=POSITIVE.parse_list, help="noise levels in place of --steps: 80,0.8")
    parser.add_argument(
        "--labels", type=NATURAL.parse_list, help="classes, repeated in turn: 0,1,2; default: all in turn"
    )
    parser.add_argument(
        "--guidance",
        type=FINITE.parse,
        default=0.0,
        help="w of c + w (c - u), for a network trained with label_dropout; it doubles the evaluations. default: 0",
    )
    parser.add_argument(
        "--gamma",
        type=FRACTION.parse,
        help="the share of the noise that a flow map redraws between its steps: from 0, the default, to 1, all",
    )
    parser.add_argument("--seed", type=SEED.parse, default=0)
    parser.add_argument(
        "--output",
        type=Path,
        action="append",
        help="a .png sheet (default samples.png), an .npz (arr_0, images: uint8 NHWC; labels), or a folder; may repeat",
    )
    parser.add_argument("--columns", type=COUNT.parse, default=10, help="number of images in a row of the sheet")
    parser.add_argument("--weights", choices=("ema", "raw"), help="default: the averaged ones if there are any")
    parser.add_argument("--batch_size", type=COUNT.parse, default=256)
    parser.add_argument("--device", default="auto", help="cpu, cuda, ...; auto uses an accelerator if there is one")
    parser.add_argument("--open", action="store_true", help="show the images when they are drawn")
    parser.add_argument("--trust", action="append", default=[], help="a package whose classes the checkpoint may use")
    return parser


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    """The options, which are checked as far as possible before the checkpoint is read."""
    options = parser()
    args = options.parse_args(argv)
    args.output = args.output or [Path("samples.png")]
    if args.ckpt_path is None:
        options.error("give --ckpt_path, a checkpoint made by cm-lightning fit, or --pipeline, a text-to-image model")
    if args.sigmas and args.steps is not None:
        options.error("--sigmas and --steps cannot be combined: --sigmas has a noise level for each step")
    if any(low >= high for high, low in pairwise(args.sigmas or [])):
        options.error(f"--sigmas must descend, got {','.join(f'{sigma:g}' for sigma in args.sigmas)}")
    check_outputs(options, args.output)
    return args


def _help() -> None:
    from cm_lightning.commands.prompt import parser as prompt_parser

    print(parser().format_help())
    print(prompt_parser().format_help())


def main(argv: Sequence[str]) -> None:
    """Parse, draw, write."""
    if "--help" in argv or "-h" in argv:
        _help()
        return
    if gives(argv, "--pipeline"):
        from cm_lightning.commands.prompt import main as draw_prompts

        draw_prompts(argv)
        return
    args = _parse(argv)

    light_lightning()
    import torch

    from cm_lightning.core.noise import generators
    from cm_lightning.device import chosen_device
    from cm_lightning.errors import ConfigError
    from cm_lightning.modules.loading import load_module

    device = chosen_device(args.device)
    module = load_module(args.ckpt_path, args.weights, args.trust)
    if len(module.image_shape) != 3 and any(output.suffix != ".npz" for output in args.output):
        raise ConfigError("--output: the samples of this checkpoint are not images: write them to an .npz file")
    if args.gamma is not None:
        if not hasattr(module, "gamma"):
            raise ConfigError(f"--gamma is an option of flow maps, but this is a {type(module).__name__}: leave it out")
        module.gamma = args.gamma
    module = module.to(device)
    labels = None
    if args.labels:
        labels = torch.tensor(args.labels)[torch.arange(args.num_samples) % len(args.labels)]
    labels = module.sample_labels(args.num_samples, labels)
    rows_seen: list[int] = []
    module.backbone.register_forward_hook(lambda network, inputs, output: rows_seen.append(len(output)))
    batches = []
    for first in range(0, args.num_samples, args.batch_size):
        rows = range(first, min(first + args.batch_size, args.num_samples))
        chosen = None if labels is None else labels[rows.start : rows.stop]
        noise = generators(args.seed, rows)
        batches.append(module.sample(len(rows), args.steps, chosen, noise, args.sigmas, args.guidance).cpu())
    images = torch.cat(batches)
    for output in args.output:
        write_results(output, images, None if labels is None else labels.cpu(), args.columns)
        print(f"{len(images)} samples: {output}")
    print(f"evaluations of the network for each: {sum(rows_seen) / len(images):g}")
    if args.open:
        show([output for output in args.output if output.suffix != ".npz"])
