"""``cm-lightning self-consistency``: check numerically that the consistency function is well defined."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cm_lightning.commands.parser import CommandParser
from cm_lightning.domains import NATURAL, SEED, at_least
from cm_lightning.errors import ConfigError
from cm_lightning.files import require_writable
from cm_lightning.quiet import errors_only

_STAGES = 6


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="self-consistency",
        description="Check all claims on consistency functions (exit status 1 if one fails); train two; draw figures.",
    )
    parser.add_argument("--trajectories", type=at_least(8).parse, default=1000)
    parser.add_argument(
        "--steps", type=NATURAL.parse, default=3000, help="training steps of CD and of CT; 0 leaves training out"
    )
    parser.add_argument("--resolution", type=at_least(2).parse, default=121, help="points along a side of the maps")
    parser.add_argument("--seed", type=SEED.parse, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs/self_consistency"), help="the folder for the figures")
    return parser


def main(argv: Sequence[str]) -> None:
    """Check, train, print, draw."""
    args = _parser().parse_args(argv)
    if 0 != args.steps < _STAGES:
        raise ConfigError(f"--steps {args.steps}: give 0, or at least a step for each of {_STAGES} numbers of levels")
    require_writable(args.output / "trajectories.png", "--output")

    import torch

    from cm_lightning.self_consistency.claim import table
    from cm_lightning.self_consistency.comparison import compare
    from cm_lightning.self_consistency.comparison_figures import draw_errors, draw_regions
    from cm_lightning.self_consistency.flow import flow_claims
    from cm_lightning.self_consistency.randomness import randomness_claims
    from cm_lightning.self_consistency.right_side import right_side_claims
    from cm_lightning.self_consistency.theory_figures import draw_steepness, draw_trajectories

    with errors_only("lightning.pytorch"):
        generator = torch.Generator().manual_seed(args.seed)
        claims = right_side_claims()
        claims += flow_claims(args.trajectories, generator)
        claims += randomness_claims(args.trajectories, generator)
        draw_trajectories(args.output / "trajectories.png", generator)
        draw_steepness(args.output / "steepness.png")
        if args.steps:
            comparisons = [compare(method, args.steps, args.trajectories, args.seed) for method in ("CD", "CT")]
            claims += [claim for comparison in comparisons for claim in comparison.claims()]
            draw_regions(args.output / "regions.png", comparisons, args.resolution)
            draw_errors(args.output / "errors.png", comparisons, args.resolution)
    print(table(claims).markdown())
    print(f"figures: {args.output}")
    failed = sum(not claim.holds for claim in claims)
    if failed:
        sys.exit(f"{failed} of {len(claims)} claims failed")
