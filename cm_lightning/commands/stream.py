"""``cm-lightning stream``: redraw the frames of a folder or an animation, one after the other."""

from __future__ import annotations

import argparse
import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cm_lightning.commands.drawers import add_model, check_model, load_drawers
from cm_lightning.commands.parser import CommandParser
from cm_lightning.commands.results import check_outputs
from cm_lightning.domains import COUNT, FINITE, FRACTION, NATURAL, POSITIVE, SEED, SHARE
from cm_lightning.errors import DataError
from cm_lightning.light import light_lightning

if TYPE_CHECKING:
    from PIL import Image

    from cm_lightning.serve.wish import Wish


def parser() -> CommandParser:
    """The options of ``stream``."""
    parser = CommandParser("stream", "Redraw the frames of a folder or an animation, one after the other.")
    add = parser.add_argument
    add_model(parser)
    add("--input", type=Path, required=True, help="a folder of images, in the order of their names, or a .gif or .webp")
    add("--output", type=Path, default=Path("stream"), help="a folder of PNG files (default stream), or a .gif")
    add("--prompt", help="of --pipeline")
    add("--strength", type=SHARE.parse, help="of --pipeline: how much of a frame to change, in (0, 1]. default: 0.5")
    add("--label", type=NATURAL.parse, help="of --ckpt_path: the class; default: that of the first sample")
    add("--sigma", type=POSITIVE.parse, help="of --ckpt_path: the noise level at which it starts. default: 5.38")
    add("--steps", type=COUNT.parse, help="default: the model's own")
    add("--guidance", type=FINITE.parse, help="as for sample. default: none")
    add("--seed", type=SEED.parse, default=0, help="of the noise, the same for all frames")
    add(
        "--threshold",
        type=FRACTION.parse,
        default=1.0,
        help="cosine similarity to the last drawn frame above which its picture is repeated, such as 0.98. default: 1, "
        "at which all are drawn",
    )
    add(
        "--batch_steps",
        action="store_true",
        help="with N steps for each frame, draw N successive frames in each pass of the network, every one at another "
        "step: more frames per second, but a picture comes N - 1 frames after its frame",
    )
    return parser


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    """The options, checked as far as possible before a model is read."""
    options = parser()
    args = options.parse_args(argv)
    check_model(options, args, ("label", "sigma"), ("prompt", "strength"))
    if args.batch_steps and args.steps == 1:
        options.error("--batch_steps needs several steps for each frame: leave it out, or raise --steps")
    check_outputs(options, [args.output], (".gif",))
    return args


def main(argv: Sequence[str]) -> None:
    """Load, read, draw, write."""
    args = _parse(argv)
    frames = read_frames(args.input)

    light_lightning()
    from cm_lightning.images import write_gif, write_png
    from cm_lightning.serve.frames import redraw_frames
    from cm_lightning.serve.wish import fitted

    (model,) = load_drawers(args)
    images = (fitted(read(), model.shape) for read in frames)
    pictures = redraw_frames(model, images, wish(args), args.steps, args.threshold, args.batch_steps)
    costs, shown, whole = [], [], 0.0
    for i, picture in enumerate(pictures):
        costs.append((picture.drawn, picture.seconds))
        whole = picture.at
        if args.output.suffix == ".gif":
            shown.append(picture.pixels.expand(3, -1, -1))
        else:
            write_png(args.output / f"{i:06d}.png", picture.pixels)
    if shown:
        write_gif(args.output, shown, milliseconds=40)
    print(f"{_told(costs, whole)}: {args.output}")


def wish(args: argparse.Namespace) -> Wish:
    """The values that the pictures depend on, by the options."""
    from cm_lightning.serve.wish import Wish

    given = {field.name: getattr(args, field.name, None) for field in fields(Wish) if field.name != "steps"}
    return Wish(**{name: value for name, value in given.items() if value is not None})


def _told(costs: Sequence[tuple[bool, float]], whole: float) -> str:
    """The line on all frames, from whether each was drawn, its seconds, and those of all together."""
    drawn = [seconds for drawn, seconds in costs if drawn]
    rate = len(costs) / whole
    median, longest = 1e3 * statistics.median(drawn), 1e3 * max(drawn)
    repeated = f", {len(costs) - len(drawn)} of them repeated" if len(drawn) < len(costs) else ""
    return (
        f"{len(costs)} frames{repeated}, {rate:.3g} frames per second, {median:.3g} ms from a frame to its picture "
        f"(at most {longest:.3g})"
    )


def read_frames(path: Path) -> list[Callable[[], Image.Image]]:
    """A function for each frame, which reads it.

    Raises:
        DataError: there are none.
    """
    from cm_lightning.data.decode import ENDINGS, read_image

    if not path.is_dir():
        return _of_animation(path)
    files = sorted((file for file in path.iterdir() if file.suffix.lower() in ENDINGS), key=_by_number)
    if not files:
        raise DataError(f"--input {path} does not hold images: give a folder of frames, such as 000000.png, 000001.png")
    return [partial(read_image, file, f"--input {file}") for file in files]


def _by_number(file: Path) -> list[str | int]:
    """Frame 10 follows frame 9, with or without leading zeros."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", file.name)]


def _of_animation(path: Path) -> list[Callable[[], Image.Image]]:
    from PIL import Image

    if not path.is_file():
        raise DataError(f"--input {path}: found neither as a folder nor as a file")
    try:
        image = Image.open(path)
    except OSError as error:
        raise DataError(
            f"--input {path} is not a .gif or .webp: make a folder of frames of a video, by ffmpeg -i {path.name} "
            "frames/%06d.png"
        ) from error

    def read(i: int) -> Image.Image:
        image.seek(i)
        return image.convert("RGB")

    return [partial(read, i) for i in range(getattr(image, "n_frames", 1))]
