"""The kinds of edits, and the options that each of them needs and takes."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cm_lightning.commands.parser import CommandParser
from cm_lightning.domains import NATURAL


@dataclass(frozen=True)
class Edit:
    """A kind of edit: what it does, the options that it needs, further ones that it takes, and its number of images."""

    what: str
    needs: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()
    images: tuple[int, ...] = (1,)


_LEVELS = ("steps", "sigmas")
#: The edits by models in pixels.
EDITS = {
    "inpaint": Edit("redraw what a mask covers", ("image", "mask"), (*_LEVELS, "resize")),
    "outpaint": Edit("draw what surrounds an image that is smaller than the model's", ("image",), (*_LEVELS, "at")),
    "colourise": Edit("colour an image, using only its brightness", ("image",), (*_LEVELS, "resize")),
    "super-resolution": Edit(
        "enlarge an image by a whole factor", ("image",), (*_LEVELS, "factor")
    ),
    "denoise": Edit("remove noise of a known strength", ("image", "sigma"), ("resize",)),
    "stroke": Edit("make an image from strokes", ("image",), ("sigmas", "resize")),
    "variations": Edit(
        "draw images near an image, or near the sample of --seed", (), (*_LEVELS, "image", "amount", "resize"), (0, 1)
    ),
    "interpolate": Edit(
        "go from one image to another, or from the sample of a seed to that of another",
        (), (*_LEVELS, "image", "seeds", "resize"), (0, 2),
    ),
}  # fmt: skip
#: The edits by text-to-image models.
EDITS_BY_PROMPTS = {
    "inpaint": Edit("redraw what a mask covers", ("image", "mask"), ("strength", "resize", "height", "width")),
    "outpaint": Edit("draw what surrounds a smaller image", ("image",), ("at", "strength", "height", "width")),
    "stroke": Edit("make an image from strokes", ("image",), ("strength", "resize", "height", "width")),
    "variations": Edit("draw images near an image", ("image",), ("strength", "resize", "height", "width")),
}


def described(edits: Mapping[str, Edit]) -> str:
    """A description of each edit, for the help."""
    return "; ".join(f"{name}: {edit.what}" for name, edit in edits.items()) + "."


def add_outputs(parser: CommandParser) -> None:
    """Add the option that names the files for the results."""
    parser.add_argument(
        "--output",
        type=Path,
        action="append",
        help="a .png sheet of the input and the results (default edited.png), or a .gif, .npz or folder of the "
        "results; may repeat",
    )


def pair(text: str) -> tuple[int, int]:
    """Parse two whole numbers, "3,4"."""
    values = NATURAL.parse_list(text)
    if len(values) != 2:
        raise argparse.ArgumentTypeError(f"must be two whole numbers, TOP,LEFT, got {text!r}")
    return int(values[0]), int(values[1])


def check_edit(options: CommandParser, args: argparse.Namespace, edits: Mapping[str, Edit]) -> None:
    """End the program with a line unless the edit has the options that it needs, and no others."""
    edit, of_some = edits[args.edit], {name for edit in edits.values() for name in edit.needs + edit.takes}
    given = [name for name in vars(args) if name in of_some and getattr(args, name) != options.get_default(name)]
    if missing := [name for name in edit.needs if name not in given]:
        options.error(f"{args.edit} needs --{missing[0]}")
    if strange := [name for name in given if name not in edit.needs + edit.takes]:
        others = [name for name, other in edits.items() if strange[0] in other.needs + other.takes]
        options.error(f"--{strange[0]} is not an option of {args.edit}, but of {', '.join(others)}: leave it out")
    if len(args.image) not in edit.images:
        options.error(f"{args.edit} takes {' or '.join(map(str, edit.images))} --image, got {len(args.image)}")
