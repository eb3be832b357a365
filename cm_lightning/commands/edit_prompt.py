"""``cm-lightning edit EDIT --pipeline``: edit images with a text-to-image model in few steps."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cm_lightning.commands.edit_options import EDITS, EDITS_BY_PROMPTS, add_outputs, check_edit, described, pair
from cm_lightning.commands.parser import CommandParser
from cm_lightning.commands.prompt import SIDE, add_model, drawn_prompts, load, settle
from cm_lightning.commands.results import check_outputs, write_results
from cm_lightning.domains import COUNT, SHARE
from cm_lightning.errors import ConfigError
from cm_lightning.viewer import show

if TYPE_CHECKING:
    from torch import Tensor

#: The default strengths.
_STRENGTH = {"inpaint": 1.0, "outpaint": 1.0, "stroke": 0.5, "variations": 0.5}


def parser() -> CommandParser:
    """The options of ``edit EDIT --pipeline``."""
    parser = CommandParser(
        "edit EDIT --pipeline PATH", f"Edit images with a text-to-image model. {described(EDITS_BY_PROMPTS)}"
    )
    add = parser.add_argument
    add("edit", choices=tuple(EDITS), metavar="EDIT", help=", ".join(EDITS_BY_PROMPTS))
    add_model(parser)
    add("--image", type=Path, action="append", default=[], help="an image file; its sides are multiples of 8 pixels")
    add("--mask", type=Path, help="an image of the same size: the white (or transparent) part is redrawn")
    add("--at", type=pair, metavar="TOP,LEFT", help="outpaint: position of the image, in pixels; default: the centre")
    add(
        "--strength",
        type=SHARE.parse,
        help="share of the steps that are taken, in (0, 1]; the lower, the more of the image remains. default: 0.5; "
        "inpaint and outpaint 1",
    )
    add("--resize", action="store_true", help="resize and crop images to --height and --width")
    add_outputs(parser)
    add("--columns", type=COUNT.parse, default=4, help="number of images in a row of the sheet")
    return parser


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    """The options, which are checked as far as possible before the model is read."""
    options = parser()
    args = options.parse_args(argv)
    if args.edit not in EDITS_BY_PROMPTS:
        options.error(
            f"{args.edit} needs a model in pixels: give --ckpt_path in place of --pipeline, or choose one of "
            f"{', '.join(EDITS_BY_PROMPTS)}"
        )
    check_edit(options, args, EDITS_BY_PROMPTS)
    sides = [f"--{name}" for name in ("height", "width") if getattr(args, name) is not None]
    if sides and args.edit != "outpaint" and not args.resize:
        options.error(f"{sides[0]} needs --resize: add it, or leave {sides[0]} out")
    args.strength = _STRENGTH[args.edit] if args.strength is None else args.strength
    settle(options, args)
    args.output = args.output or [Path("edited.png")]
    check_outputs(options, args.output, (".png", ".gif", ".npz"))
    return args


def main(argv: Sequence[str]) -> None:
    """Parse, read, draw, write."""
    args = _parse(argv)

    from cm_lightning.images import to_unit_range
    from cm_lightning.latent.editing import fill, redraw

    pipe, options = load(args)
    image, mask = _given(args, pipe)
    rows_seen: list[int] = []
    pipe.unet.register_forward_hook(lambda network, inputs, output: rows_seen.append(len(output[0])))
    prompts = drawn_prompts(args)
    how = (args.strength, args.steps, args.guidance, args.seed, args.batch_size)
    if mask is None:
        pixels = redraw(pipe, prompts, image, *how, **options)
    else:
        pixels = fill(pipe, prompts, image, mask, *how, **options)
    results, given = to_unit_range(pixels), to_unit_range(image)
    before = given if mask is None else given.masked_fill(mask, 0.0)
    for output in args.output:
        write_results(output, results, None, args.columns, ([before], ()))
        print(f"{len(prompts)} results: {output}")
    print(f"evaluations of the network for each: {sum(rows_seen) / len(prompts):g}")
    if args.open:
        show([output for output in args.output if output.suffix != ".npz"])


def _given(args: argparse.Namespace, pipe: Any) -> tuple[Tensor, Tensor | None]:
    """The image (3, H, W) uint8, and, if a part is known, the mask (H, W) of what is redrawn."""
    from cm_lightning.commands.pictures import place_on, read_mask, read_picture
    from cm_lightning.images import to_pixels

    (path,), side = args.image, pipe.unet.config.sample_size * pipe.vae_scale_factor
    shape = (3, args.height or side, args.width or side)
    image, mask = read_picture(path, "--image", shape, args.resize), None
    if args.edit == "outpaint":
        image, mask = place_on(image, path, shape[1:], args.at)
    if any(length not in SIDE for length in image.shape[1:]):
        _, height, width = image.shape
        raise ConfigError(
            f"--image {path} has {width} x {height} pixels, and the model draws multiples of 8: scale it, or add "
            "--resize"
        )
    if args.edit == "inpaint":
        mask = read_mask(args.mask, image.shape, args.resize)[0]
    return to_pixels(image), mask
