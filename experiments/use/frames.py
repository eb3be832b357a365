"""Sixty frames to stream: three held-out digits, each of which moves for ten frames and rests for ten.

``python experiments/use/frames.py FOLDER`` writes grey PNG files of 28 x 28; with ``--captioned`` they are 32 x 32 in
colour, as the captioned digits are.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as nnf
from PIL import Image

from cm_lightning.data.digits import embedded_digits


def main() -> None:
    """Write the frames."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--captioned", action="store_true")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    digits, _ = embedded_digits("val")
    for i in range(60):
        frame = torch.roll(digits[300 + i // 20 * 100, 0], min(i % 20, 10) - 5, 1)
        if args.captioned:
            frame = nnf.pad(frame, (2, 2, 2, 2))[..., None].expand(-1, -1, 3)
        Image.fromarray(frame.numpy()).save(args.folder / f"{i:03d}.png")


if __name__ == "__main__":
    main()
