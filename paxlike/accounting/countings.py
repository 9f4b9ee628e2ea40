"""A program's counted FLOPs held against the formula, with every stated term in which the two differ."""

import dataclasses

from paxlike.accounting.flops import Count
from paxlike.accounting.units import si

TOLERANCE = 0.02
"""Of a gap that no stated term explains."""


@dataclasses.dataclass(frozen=True)
class Counting:
    """What one program was counted to, beside the formula and the terms that lead from one to the other."""

    program: str
    formula: Count
    """The palm convention's FLOPs per token and each stated term in which the program differs from it."""
    counted: float
    """FLOPs per token found in the program."""
    uncounted: tuple[str, ...]
    """What may hold matrix products and could not be counted."""

    @property
    def gap(self) -> float:
        """What no term explains, as a share of the formula with its terms."""
        return self.counted / self.formula.total - 1

    @property
    def agrees(self) -> bool:
        return abs(self.gap) <= TOLERANCE and not self.uncounted

    def as_dict(self) -> dict:
        return {
            "program": self.program,
            "formula": {"total": self.formula.total, "terms": [term._asdict() for term in self.formula.terms]},
            "counted": self.counted,
            "gap": self.gap,
            "uncounted": list(self.uncounted),
            "agrees": self.agrees,
        }


def rows(counting: Counting) -> list[tuple[str, str, str, str]]:
    """(what, FLOP/token, share of the program's own count, formula) of a table that leads from the formula to the count."""
    share = lambda flops: f"{flops / counting.counted:.3%}"  # noqa: E731
    terms = [(t.name, si(t.flops, "FLOP"), share(t.flops), t.formula) for t in counting.formula.terms]
    together = ("formula with these terms", si(counting.formula.total, "FLOP"), share(counting.formula.total), "")
    unexplained = counting.counted - counting.formula.total
    verdict = "agree" if counting.agrees else f"DO NOT AGREE: more than {TOLERANCE:.0%} is not explained"
    if counting.uncounted:
        verdict = f"NOT COUNTED: {', '.join(counting.uncounted)}"
    return [
        *terms,
        together,
        (f"counted in the {counting.program}", si(counting.counted, "FLOP"), share(counting.counted), ""),
        ("gap that no term explains", si(unexplained, "FLOP"), share(unexplained), verdict),
    ]
