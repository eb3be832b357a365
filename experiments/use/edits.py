"""A sheet of every kind of edit with one checkpoint: the input, the held-out image, and the results."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as nnf
from torch import Tensor

from cm_lightning import MNIST, FashionMNIST, load_module
from cm_lightning.core.editing import PatchMeans, Pixels
from cm_lightning.editing import Editor

COLUMNS = 6
NOISE = 0.7
#: The input of an edit (C, H, W), and its results (COLUMNS, C, H, W).
Row = tuple[Tensor, Tensor]


def main() -> None:
    """Draw the sheet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", help="a checkpoint of MNIST's digits, or of Fashion-MNIST's clothes")
    parser.add_argument(
        "--fashion", help="the folder of Fashion-MNIST's files; if left out, the digits that install with the package"
    )
    parser.add_argument("--image", type=int, default=3, help="which held-out image; each edit takes the next one")
    parser.add_argument("--output", default="edits.png")
    args = parser.parse_args()
    module, data = load_module(args.checkpoint), FashionMNIST(args.fashion) if args.fashion else MNIST()
    order = torch.randperm(len(data.split("val")), generator=torch.Generator().manual_seed(0))
    images, labels = data.split("val")[order[args.image : args.image + len(ROWS)]]  # type: ignore[index]
    rows = []
    for (name, draw), image, label in zip(ROWS.items(), images, labels.tolist(), strict=True):
        given, drawn = draw(Editor(module, COLUMNS, [label]), image)
        rows.append((name, given, image, drawn))
    _sheet(rows, args.output)


def _inpaint(editor: Editor, image: Tensor) -> Row:
    mask = torch.zeros(1, *image.shape, dtype=torch.bool)
    mask[..., image.shape[-1] // 2 :] = True
    return image.masked_fill(mask[0], 0), editor.fill(Pixels(image[None], mask))


def _outpaint(editor: Editor, image: Tensor) -> Row:
    mask, quarter = torch.ones(1, *image.shape, dtype=torch.bool), image.shape[-1] // 4
    mask[..., quarter:-quarter, quarter:-quarter] = False
    return image.masked_fill(mask[0], 0), editor.fill(Pixels(image[None], mask))


def _super_resolution(editor: Editor, image: Tensor) -> Row:
    small = nnf.avg_pool2d(image, 2)
    return nnf.interpolate(small[None], scale_factor=2)[0], editor.fill(PatchMeans(small[None], 2))


def _denoise(editor: Editor, image: Tensor) -> Row:
    seeds = (torch.Generator().manual_seed(i) for i in range(COLUMNS))
    noisy = [image + NOISE * torch.randn(image.shape, generator=seed) for seed in seeds]
    return noisy[0], torch.cat([editor.denoise(x, NOISE)[:1] for x in noisy])


def _stroke(editor: Editor, image: Tensor) -> Row:
    """The image as a broad pen would draw it, in two tones without detail."""
    coarse = nnf.interpolate(nnf.avg_pool2d(image, 4)[None], scale_factor=4)[0]
    strokes = torch.where(coarse > coarse.mean(), 0.8, -1.0)
    return strokes, editor.redraw(strokes)


def _variations(editor: Editor, image: Tensor) -> Row:
    return image, editor.redraw(image)


def _interpolate(editor: Editor, image: Tensor) -> Row:
    return torch.full_like(image, torch.nan), editor.interpolate([0, 1])  # no image is given


ROWS: dict[str, Callable[[Editor, Tensor], Row]] = {
    "inpaint": _inpaint,
    "outpaint": _outpaint,
    "super-resolution": _super_resolution,
    f"denoise, sigma {NOISE}": _denoise,
    "stroke": _stroke,
    "variations": _variations,
    "interpolate\n(two seeds)": _interpolate,
}


def _sheet(rows: list[tuple[str, Tensor, Tensor, Tensor]], output: str) -> None:
    figure, axes = plt.subplots(len(rows), COLUMNS + 2, figsize=(COLUMNS + 3, len(rows) + 0.4), squeeze=False)
    for line, (name, given, image, drawn) in zip(axes, rows, strict=True):
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
        held_out = torch.where(given.isnan(), torch.nan, image)
        for axis, picture in zip(line, [given, held_out, *drawn], strict=True):
            axis.imshow(picture[0], cmap="gray", vmin=-1, vmax=1)
            axis.set(xticks=[], yticks=[])
    for axis, title in zip(axes[0], ["given", "held out", "drawn"], strict=False):
        axis.set_title(title, fontsize=9)
    figure.tight_layout(pad=0.3)
    figure.savefig(output, dpi=70, bbox_inches="tight")
    print(output)


if __name__ == "__main__":
    main()
