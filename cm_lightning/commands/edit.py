"""``cm-lightning edit``: inpaint, colour, enlarge and denoise images with a model that was not trained for it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from cm_lightning.commands.edit_options import EDITS, add_outputs, check_edit, described, pair
from cm_lightning.commands.parser import CommandParser, gives
from cm_lightning.commands.results import check_outputs, write_results
from cm_lightning.domains import COUNT, FINITE, FRACTION, NATURAL, POSITIVE, SEED, at_least
from cm_lightning.errors import ConfigError
from cm_lightning.light import light_lightning
from cm_lightning.viewer import show

if TYPE_CHECKING:
    from cm_lightning.modules.base import GenerativeModule

_AMOUNT = 0.3


def parser() -> CommandParser:
    """The options of ``edit``."""
    parser = CommandParser("edit", f"Edit images with a model that was not trained for it. {described(EDITS)}")
    add = parser.add_argument
    add("edit", choices=tuple(EDITS), metavar="EDIT", help=", ".join(EDITS))
    add("--ckpt_path", help="a checkpoint, openai:FILE, edm:FILE or diffusers:FOLDER", required=True)
    add("--image", type=Path, action="append", default=[], help="an image file; interpolate takes two")
    add("--mask", type=Path, help="an image of the same size: the white (or transparent) part is redrawn")
    add("--at", type=pair, metavar="TOP,LEFT", help="outpaint: position of the image, in pixels; default: the centre")
    add("--factor", type=at_least(2).parse, help="super-resolution: shrink an image of the model's size by this first")
    add("--sigma", type=POSITIVE.parse, help="denoise: the noise's standard deviation, with black -1 and white 1")
    add(
        "--amount",
        type=FRACTION.parse,
        help=f"variations of --seed: how far the noise moves, from 0 to 1; default: {_AMOUNT}",
    )
    add("--seeds", type=SEED.parse_list, help="interpolate: two or more seeds in place of images: 0,1")
    add(
        "--steps",
        type=COUNT.parse,
        help="number of noise levels; default: 40; 18 for a diffusion model; a student's own; 1 from seeds",
    )
    add(
        "--sigmas",
        type=POSITIVE.parse_list,
        help="noise levels; low ones keep more of the image. default: 5.38,2.24, or a student's own near them",
    )
    add("--resize", action="store_true", help="resize and crop images to the model's size")
    add("--num_samples", type=COUNT.parse, help="number of results or frames; default: 10; denoise: one for each label")
    add(
        "--labels",
        type=NATURAL.parse_list,
        help="classes, repeated in turn: 0,1,2; default: none, or all in turn for a model without label_dropout",
    )
    add("--guidance", type=FINITE.parse, default=0.0, help="as in sample; it doubles the evaluations. default: 0")
    add("--seed", type=SEED.parse, default=0)
    add_outputs(parser)
    add("--columns", type=COUNT.parse, default=11, help="number of images in a row of the sheet")
    add("--scale", type=COUNT.parse, default=1, help="enlarge the pixels of a sheet or .gif by this factor")
    add("--weights", choices=("ema", "raw"), help="default: the averaged ones if there are any")
    add("--batch_size", type=COUNT.parse, default=256)
    add("--device", default="auto", help="cpu, cuda, ...; auto uses an accelerator if there is one")
    add("--open", action="store_true", help="show the images when they are drawn")
    add("--trust", action="append", default=[], help="a package whose classes the checkpoint may use")
    return parser


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    """The options, which are checked as far as possible before the checkpoint is read."""
    options = parser()
    args = options.parse_args(argv)
    check_edit(options, args, EDITS)
    _check_pairs(options, args)
    args.amount = _AMOUNT if args.amount is None else args.amount
    args.output = args.output or [Path("edited.png")]
    check_outputs(options, args.output, (".png", ".gif", ".npz"))
    return args


def _check_pairs(options: CommandParser, args: argparse.Namespace) -> None:
    """Refuse options that contradict each other."""
    if args.sigmas and args.steps is not None:
        options.error("--sigmas and --steps cannot be combined: --sigmas has a noise level for each step")
    if any(low >= high for high, low in pairwise(args.sigmas or [])):
        options.error(f"--sigmas must descend, got {','.join(f'{sigma:g}' for sigma in args.sigmas)}")
    from_noise = [f"--{name}" for name in ("seeds", "amount", "steps") if getattr(args, name) is not None]
    if args.edit in ("variations", "interpolate") and args.image and from_noise:
        options.error(f"{from_noise[0]} and --image cannot be combined in {args.edit}: leave one of them out")
    if args.edit == "interpolate" and not args.image and len(args.seeds or []) < 2:
        options.error("interpolate needs two --image, or --seeds with at least two: --seeds 0,1")
    if args.edit == "interpolate" and len(args.labels or []) > 1:
        options.error(f"interpolate draws one class: give --labels {args.labels[0]}")


def _help() -> None:
    from cm_lightning.commands.edit_prompt import parser as prompt_parser

    print(parser().format_help())
    print(prompt_parser().format_help())


def main(argv: Sequence[str]) -> None:
    """Parse, read, draw, write."""
    if "--help" in argv or "-h" in argv:
        _help()
        return
    if gives(argv, "--pipeline"):
        from cm_lightning.commands.edit_prompt import main as edit_with_prompts

        edit_with_prompts(argv)
        return
    args = _parse(argv)

    light_lightning()
    from cm_lightning.commands.edits import DRAW
    from cm_lightning.device import chosen_device
    from cm_lightning.editing import Editor
    from cm_lightning.modules.loading import load_module

    device = chosen_device(args.device)
    module = load_module(args.ckpt_path, args.weights, args.trust)
    if len(module.image_shape) != 3 or module.image_shape[0] not in (1, 3):
        raise ConfigError(f"--ckpt_path {args.ckpt_path} does not draw grey or colour images: give another checkpoint")
    editor = Editor(
        module.to(device), _number(args), _labels(args, module),
        args.steps, args.sigmas, args.guidance, args.seed, args.batch_size,
    )  # fmt: skip
    rows_seen: list[int] = []
    module.backbone.register_forward_hook(lambda network, inputs, output: rows_seen.append(len(output)))
    drawn = DRAW[args.edit](args, editor)
    classes = None if editor.labels is None else editor.labels.cpu()
    for output in args.output:
        write_results(output, drawn.images.cpu(), classes, args.columns, (drawn.before, drawn.after), args.scale)
        print(f"{editor.n} results: {output}")
    print(f"evaluations of the network for each: {sum(rows_seen) / editor.n:g}")
    if args.open:
        show([output for output in args.output if output.suffix != ".npz"])


def _labels(args: argparse.Namespace, module: GenerativeModule) -> list[int] | None:
    """The classes; where samples are varied, the class of the first sample of the seed."""
    unclear = module.num_classes and not module.label_dropout and not args.labels
    if unclear and args.edit == "interpolate" and args.image:
        raise ConfigError("interpolate draws images of one class: give --labels with its number")
    return [0] if module.num_classes and not (args.labels or args.image) else args.labels


def _number(args: argparse.Namespace) -> int:
    """The number of results; denoising gives the same result each time, except for another class."""
    return int(args.num_samples or (len(args.labels or [0]) if args.edit == "denoise" else 10))
