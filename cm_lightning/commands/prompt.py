"""``cm-lightning sample --pipeline``: draw images from prompts with a text-to-image model in few steps."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cm_lightning.commands.parser import CommandParser
from cm_lightning.domains import COUNT, FINITE, NON_NEGATIVE, SEED, SHARE, multiple_of
from cm_lightning.errors import ConfigError, DataError
from cm_lightning.files import require_writable
from cm_lightning.latent.few_step import compare, only_one, unsaid
from cm_lightning.viewer import show

SIDE = multiple_of(8)
_STRENGTH = 0.5
_STEPS = 4


def parser() -> CommandParser:
    """The options of ``sample --pipeline``."""
    parser = CommandParser(prog="sample --pipeline PATH", description="Draw images from prompts in few steps.")
    add_model(parser)
    add = parser.add_argument
    add("--image", type=Path, help="start from this image")
    add("--strength", type=SHARE.parse, help=f"with --image: how much of it to change, in (0, 1]; default: {_STRENGTH}")
    add("--output", type=Path, default=Path("samples.png"), help="a .png sheet, or a folder of PNG files")
    add("--columns", type=COUNT.parse, default=4, help="number of images in a row of the sheet")
    return parser


def add_model(parser: CommandParser) -> None:
    """Add the options that determine which text-to-image model draws, what, and how."""
    add = parser.add_argument
    add("--pipeline", required=True, help="a folder of diffusers or a name on the hub: SD 1.5, 2.1, XL, or an LCM")
    add(
        "--lora",
        action="append",
        default=[],
        metavar="PATH[:WEIGHT]",
        help="a LoRA of LCM, SDXL-Lightning or DMD2, or a style LoRA in addition; may repeat. A file of a model on the "
        "hub is OWNER/MODEL/FILE",
    )
    add("--unet", metavar="PATH", help="a file or folder with another UNet, such as SDXL-Lightning's, for --pipeline")
    add("--prompt", action="append", required=True, help="may repeat")
    add("--negative_prompt", help="what to avoid; needs a LoRA or a base, and --guidance above 1")
    add("--num_samples", type=COUNT.parse, help="number of images, the prompts in turn; default: one for each prompt")
    add("--steps", type=COUNT.parse, help=f"default: those that a student was distilled for, else {_STEPS}")
    add(
        "--guidance",
        type=NON_NEGATIVE.parse,
        default=1.0,
        help="guidance_scale; 1 means no guidance; above 1 a LoRA takes two evaluations per step",
    )
    add(
        "--scheduler",
        choices=("euler", "lcm", "trailing", "own"),
        help="default: the student's own if its files name it, as SDXL-Lightning's do (euler); lcm with another LoRA, "
        "else trailing",
    )
    add("--height", type=SIDE.parse, help="pixels, a multiple of 8; default: the model's")
    add("--width", type=SIDE.parse, help="pixels, a multiple of 8")
    add("--seed", type=SEED.parse, default=0)
    add("--batch_size", type=COUNT.parse, default=4)
    add("--device", default="auto", help="cpu, cuda, ...; auto uses an accelerator if there is one")
    add("--open", action="store_true", help="show the images when they are drawn")
    add("--dtype", choices=("float32", "float16", "bfloat16"), default="float32", help="type of the weights")


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    """The options, which are checked as far as possible before the model is read."""
    options = parser()
    args = options.parse_args(argv)
    if args.output.suffix not in ("", ".png"):
        options.error(f"--output {args.output}: give a .png, or a folder")
    if args.strength is not None and not args.image:
        options.error("--strength needs --image: give one, or leave it out")
    if args.image and (args.height is None) != (args.width is None):
        options.error(
            "--height and --width must be given together, or one of them would stretch the image: give both or neither"
        )
    if args.image and args.strength is None:
        args.strength = _STRENGTH
    settle(options, args)
    require_writable(args.output if args.output.suffix else args.output / "000000.png", "--output")
    return args


def settle(options: CommandParser, args: argparse.Namespace) -> None:
    """Set steps and scheduler by the student's own settings, with a note if they are missing or overridden.

    ``args.strength`` is the share of the steps that are taken, None for all. The program ends with a line if none is
    left, or if a negative prompt would have no effect.
    """
    args.lora = lora_weights(args.lora)
    parts = [*args.lora, *([args.unet] if args.unet else [])]
    told = only_one(args.pipeline, parts)
    source, args.how = told or ("", None)
    args.steps = args.steps or (args.how.steps if args.how else _STEPS)
    if args.how:
        note = compare(source, args.how, args.steps, args.guidance, args.scheduler)
    else:
        note = None if args.scheduler else unsaid(parts, args.steps, "lcm" if args.lora else "trailing")
    if note:
        sys.stderr.write(f"note: {note}\n")
    if args.strength is not None and args.steps * args.strength < 1:
        options.error(f"--steps {args.steps} at --strength {args.strength} makes less than one step: raise one of them")
    if args.negative_prompt is not None and args.guidance <= 1:
        options.error("--negative_prompt has no effect without guidance: set --guidance above 1, or leave it out")


def main(argv: Sequence[str]) -> None:
    """Parse, load, draw, write."""
    args = _parse(argv)

    from cm_lightning.images import sheet, to_unit_range, write_png
    from cm_lightning.latent.draw import draw_all, evaluations
    from cm_lightning.latent.pipelines import image_to_image

    pipe, options = load(args)
    if args.image:
        options |= {"image": _read_image(args.image, args.height, args.width), "strength": args.strength}
        pipe = image_to_image(pipe)
    else:
        options["size"] = _size(args, pipe)
    prompts = drawn_prompts(args)
    pixels = draw_all(pipe, prompts, args.steps, args.guidance, args.seed, args.batch_size, **options)
    if args.output.suffix == ".png":
        write_png(args.output, sheet(to_unit_range(pixels), args.columns))
    else:
        for i, image in enumerate(pixels):
            write_png(args.output / f"{i:06d}.png", image)
    steps = int(args.steps * args.strength) if args.image else args.steps
    print(f"{len(prompts)} images of {evaluations(pipe, steps, args.guidance)} evaluations each: {args.output}")
    if args.open:
        show([args.output])


def lora_weights(loras: Sequence[str]) -> dict[str, float]:
    """Split ``style.safetensors:0.8`` into the file and its weight, which is 1 by default."""
    weights = {}
    for lora in loras:
        path, colon, weight = lora.rpartition(":")
        if colon and not Path(lora).exists():
            try:
                weights[path] = FINITE.parse(weight)
            except argparse.ArgumentTypeError as error:
                raise ConfigError(
                    f"--lora {lora}: give PATH or PATH:WEIGHT, such as style.safetensors:0.8; the weight {error}"
                ) from error
        else:
            weights[lora] = 1.0
    return weights


def load(args: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """The pipeline, ready to draw, and the arguments that it takes for each image."""
    from cm_lightning.device import chosen_device
    from cm_lightning.latent.pipelines import few_step_pipeline

    device = chosen_device(args.device)
    pipe = few_step_pipeline(args.pipeline, args.lora, args.scheduler, device, args.dtype, unet=args.unet, how=args.how)
    if args.negative_prompt is None:
        options: dict[str, Any] = {}
    elif pipe.unet.config.time_cond_proj_dim is None:
        options = {"negative_prompt": args.negative_prompt}
    else:
        raise ConfigError(
            "--negative_prompt has no effect on a model that takes the guidance as an input: leave it out"
        )
    return pipe, options | (args.how.options(args.steps, args.scheduler) if args.how else {})


def drawn_prompts(args: argparse.Namespace) -> list[str]:
    """The prompt of each image."""
    return [args.prompt[i % len(args.prompt)] for i in range(args.num_samples or len(args.prompt))]


def _size(args: argparse.Namespace, pipe: Any) -> tuple[int, int] | None:
    if args.height is None and args.width is None:
        return None
    own = pipe.unet.config.sample_size * pipe.vae_scale_factor
    return args.height or own, args.width or own


def _read_image(path: Path, height: int | None, width: int | None) -> Any:
    from cm_lightning.data.decode import read_image

    if not path.is_file():
        raise DataError(f"--image {path}: file not found")
    image = read_image(path, f"--image {path}").convert("RGB")
    if height or width:
        image = image.resize((width or image.width, height or image.height))
    return image.resize((max(8, image.width // 8 * 8), max(8, image.height // 8 * 8)))
