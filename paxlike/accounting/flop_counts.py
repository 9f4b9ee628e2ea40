"""Compares the FLOPs counted in a program with the formula, term by term."""

import dataclasses

from paxlike.accounting.flops import Count
from paxlike.accounting.units import si

TOLERANCE = 0.02
"""Maximum unexplained difference, as a fraction of the formula."""


@dataclasses.dataclass(frozen=True)
class FlopComparison:
    """The FLOPs per token of one program: by the formula, and as counted in the program."""

    program: str
    formula: Count
    """FLOPs per token by the palm convention, plus every known difference as a term."""
    counted: float
    """FLOPs per token counted in the program."""
    uncounted: tuple[str, ...]
    """Operations that may contain matrix products but could not be counted."""

    @property
    def gap(self) -> float:
        """The unexplained difference, as a fraction of the formula with all its terms."""
        return self.counted / self.formula.total - 1

    @property
    def agrees(self) -> bool:
        return abs(self.gap) <= TOLERANCE and not self.uncounted

    def as_dict(self) -> dict:
        return {
            "program": self.program,
            "formula": {
                "total": self.formula.total,
                "terms": [term._asdict() for term in self.formula.terms],
            },
            "counted": self.counted,
            "gap": self.gap,
            "uncounted": list(self.uncounted),
            "agrees": self.agrees,
        }


def table_rows(comparison: FlopComparison) -> list[tuple[str, str, str, str]]:
    """Returns table rows that lead from the formula to the count.

    Columns: name, FLOPs per token, fraction of the program's count, formula (or the verdict, in the
    last row).
    """
    formula, counted = comparison.formula, comparison.counted

    def row(name: str, flops: float, note: str = "") -> tuple[str, str, str, str]:
        return name, si(flops, "FLOP"), f"{flops / counted:.3%}", note

    if comparison.uncounted:
        verdict = f"NOT COUNTED: {', '.join(comparison.uncounted)}"
    elif comparison.agrees:
        verdict = "agree"
    else:
        verdict = f"DO NOT AGREE: more than {TOLERANCE:.0%} is unexplained"
    return [
        *(row(term.name, term.flops, term.formula) for term in formula.terms),
        row("formula with all terms", formula.total),
        row(f"counted in the {comparison.program}", counted),
        row("unexplained difference", counted - formula.total, verdict),
    ]
