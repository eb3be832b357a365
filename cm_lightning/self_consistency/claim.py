"""A claim with its measured error and its tolerance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cm_lightning.report.tables import Table


@dataclass(frozen=True)
class Claim:
    """A claim holds if its error is at most its tolerance; for a bound, the error is the ratio measured / bound."""

    statement: str
    error: float
    tolerance: float

    @property
    def holds(self) -> bool:
        """False for NaN."""
        return self.error <= self.tolerance


def table(claims: Sequence[Claim]) -> Table:
    """A table with one row for each claim."""
    rows = [[c.statement, f"{c.error:.4g}", f"{c.tolerance:.4g}", "pass" if c.holds else "FAIL"] for c in claims]
    return Table("Claims", ["claim", "error", "tolerance", "result"], rows)
