"""The files that drawing commands write: a sheet, an animation, arrays for evaluation programs, or a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cm_lightning.commands.parser import CommandParser
from cm_lightning.files import replacing, require_writable

if TYPE_CHECKING:
    from torch import Tensor


def check_outputs(options: CommandParser, outputs: Sequence[Path], endings: Sequence[str] = (".png", ".npz")) -> None:
    """End the program with a line unless each output is writable, and a folder or a file with one of the endings."""
    if wrong := [output for output in outputs if output.suffix not in ("", *endings)]:
        options.error(f"--output {wrong[0]}: give a {', '.join(endings)}, or a folder")
    for output in outputs:
        require_writable(output if output.suffix else output / "000000.png", "--output")


def write_results(
    output: Path,
    images: Tensor,
    labels: Tensor | None,
    columns: int,
    around: tuple[Sequence[Tensor], Sequence[Tensor]] = ((), ()),
    scale: int = 1,
) -> None:
    """Write images in the format of the output's suffix: .png, .gif, .npz, or a folder of PNG files.

    The .npz has ``images`` (uint8 NHWC, or the samples if they are not images) and ``labels``, and for images
    ``arr_0``, the same in RGB, under the name that OpenAI's evaluator reads.

    Args:
        output: the file or folder.
        images: (N, C, H, W) in [-1, 1], or samples of another shape, which only an .npz holds.
        labels: (N,), or None.
        columns: images in a row of the sheet.
        around: further images (C, H, W) in [-1, 1], which a sheet shows before and after these.
        scale: factor by which pixels are enlarged in a sheet and an animation.
    """
    from cm_lightning.images import sheet, to_pixels, write_gif, write_png

    if output.suffix == ".png":
        before, after = around
        write_png(output, sheet(_stacked([*before, *images, *after]), columns, scale))
    elif output.suffix == ".gif":
        write_gif(output, [sheet(image[None], 1, scale) for image in images])
    elif output.suffix == ".npz":
        _write_arrays(output, images, labels)
    else:
        for i, pixels in enumerate(to_pixels(images)):
            name = f"{i:06d}.png" if labels is None else f"{i:06d}_class{int(labels[i])}.png"
            write_png(output / name, pixels)


def _stacked(images: Sequence[Tensor]) -> Tensor:
    import torch

    return torch.stack([image.cpu() for image in images])


def _write_arrays(output: Path, images: Tensor, labels: Tensor | None) -> None:
    import numpy as np

    from cm_lightning.images import to_pixels

    arrays: dict[str, Any] = {"labels": np.empty(0, np.int64) if labels is None else labels.numpy()}
    if images.ndim == 4:
        pixels = to_pixels(images)
        arrays["images"] = pixels.permute(0, 2, 3, 1).numpy()
        arrays["arr_0"] = pixels.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()
    else:
        arrays["images"] = images.numpy()
    with replacing(output) as path:
        np.savez_compressed(path, **arrays)
