"""What each kind of edit draws, from its options and the images that they name."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch.nn.functional as nnf
from torch import Tensor

from cm_lightning.commands.pictures import place_on, read_mask, read_picture, require_size
from cm_lightning.core.editing import Brightness, Known, PatchMeans, Pixels, brightness
from cm_lightning.editing import Editor
from cm_lightning.errors import ConfigError


@dataclass
class Drawn:
    """The results (N, C, H, W), and the input images (C, H, W) to be shown before and after them."""

    images: Tensor
    before: Sequence[Tensor] = ()
    after: Sequence[Tensor] = ()


def _read(args: argparse.Namespace, editor: Editor) -> list[Tensor]:
    """The images of --image, (C, H, W), in the model's size."""
    shape = editor.module.image_shape
    images = [read_picture(path, "--image", shape, args.resize) for path in args.image]
    for image, path in zip(images, args.image, strict=True):
        require_size(image, path, "--image", shape)
    return [image.to(editor.device) for image in images]


def _filled(editor: Editor, known: Known) -> Drawn:
    return Drawn(editor.fill(known), list(known.start))


def _inpaint(args: argparse.Namespace, editor: Editor) -> Drawn:
    (image,) = _read(args, editor)
    mask = read_mask(args.mask, image.shape, args.resize)
    return _filled(editor, Pixels(image[None], mask.to(editor.device)))


def _outpaint(args: argparse.Namespace, editor: Editor) -> Drawn:
    (path,), shape = args.image, editor.module.image_shape
    canvas, mask = place_on(read_picture(path, "--image", shape), path, shape[1:], args.at)
    return _filled(editor, Pixels(canvas[None].to(editor.device), mask.to(editor.device)))


def _colourise(args: argparse.Namespace, editor: Editor) -> Drawn:
    if editor.module.image_shape[0] != 3:
        raise ConfigError(f"--ckpt_path {args.ckpt_path} draws grey images: colourise needs a model of colour images")
    (image,) = _read(args, editor)
    return _filled(editor, Brightness(brightness(image[None])))


def _super_resolution(args: argparse.Namespace, editor: Editor) -> Drawn:
    (path,), (channels, height, width) = args.image, editor.module.image_shape
    small = read_picture(path, "--image", (channels, height, width)).to(editor.device)
    if args.factor and small.shape[1:] == (height, width) and height % args.factor == 0 == width % args.factor:
        small = nnf.avg_pool2d(small, args.factor)
    _, h, w = small.shape
    p = args.factor or max(height // h, 2)
    if (h * p, w * p) != (height, width):
        raise ConfigError(
            f"--image {path} has {w} x {h} pixels, and the model draws {width} x {height}: its size must be that "
            f"divided by {'--factor' if args.factor else 'a whole number from 2 up'}"
        )
    return _filled(editor, PatchMeans(small[None], p))


def _denoise(args: argparse.Namespace, editor: Editor) -> Drawn:
    (image,) = _read(args, editor)
    return Drawn(editor.denoise(image, args.sigma), [image])


def _stroke(args: argparse.Namespace, editor: Editor) -> Drawn:
    (image,) = _read(args, editor)
    return Drawn(editor.redraw(image), [image])


def _variations(args: argparse.Namespace, editor: Editor) -> Drawn:
    if args.image:
        return _stroke(args, editor)
    return Drawn(editor.vary(args.amount))


def _interpolate(args: argparse.Namespace, editor: Editor) -> Drawn:
    if args.image:
        first, second = _read(args, editor)
        return Drawn(editor.between(first, second), [first], [second])
    return Drawn(editor.interpolate([int(seed) for seed in args.seeds]))


DRAW: dict[str, Callable[[argparse.Namespace, Editor], Drawn]] = {
    "inpaint": _inpaint,
    "outpaint": _outpaint,
    "colourise": _colourise,
    "super-resolution": _super_resolution,
    "denoise": _denoise,
    "stroke": _stroke,
    "variations": _variations,
    "interpolate": _interpolate,
}
