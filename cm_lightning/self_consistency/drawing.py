"""What the figures share: the colours of the data's components, and PNG files with a palette."""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from cm_lightning.core.oracle import MixtureOracle
from cm_lightning.files import replacing

#: A colour for each component of the data.
COLOURS = np.array([[0.20, 0.47, 0.74], [0.93, 0.56, 0.16], [0.30, 0.65, 0.35], [0.75, 0.24, 0.33]])


def colours(oracle: MixtureOracle, ends: Tensor) -> NDArray[np.float64]:
    """The colours (B, 3) of the components at which end points (B, D) lie, mixed in between."""
    nearness = (-(ends[:, None] - oracle.means).square().sum(-1) / (2 * 0.15**2)).softmax(1)
    mixed: NDArray[np.float64] = nearness.numpy() @ COLOURS[: len(oracle.means)]
    return mixed


def save(figure: plt.Figure, path: Path) -> None:  # type: ignore[name-defined]
    """Write a PNG of 256 colours, a third as large as in full colour, and close the figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=100)
    plt.close(figure)
    with replacing(path) as temporary:
        Image.open(buffer).convert("RGB").quantize(256).save(temporary, optimize=True)
