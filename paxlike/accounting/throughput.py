"""Computes MFU and HFU with all their inputs, and goodput: the wall time of a run by cause.

MFU = tokens/s * model FLOPs per token / (chips * peak FLOP/s)
HFU = tokens/s * hardware FLOPs per token / (chips * peak FLOP/s)

Source: PaLM (arXiv 2204.02311), appendix B.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping

from paxlike.accounting.flops import CONVENTIONS, Count, model_flops
from paxlike.accounting.hardware import TERA, Chip
from paxlike.config import ModelConfig, UserError

MAX_PLAUSIBLE = 0.85
"""Fraction of the peak above which a warning is given: large matmuls alone reach 80 to 83 %."""
STEPS_FOR_WARNINGS = 20
"""Fewer steps give no warning: the duration of a single step can be far too short, where the device
is ahead of the process that measures it."""

_CAUSES_OF_EXCESS = (
    "time measured without waiting for the device (dispatch is asynchronous)",
    "tokens counted twice (the batch size already covers all devices)",
    "a wrong number of chips (a TPU v7x has two devices per chip)",
    "the peak of another chip or number format",
    "a CPU peak measured while other programs ran",
)


@dataclasses.dataclass(frozen=True)
class Utilization:
    """A fraction of the peak, with the inputs of its formula."""

    name: str
    """MFU or HFU."""
    tokens_per_second: float
    flops: Count
    """Per token."""
    chips: float
    chip: Chip
    dtype: str

    @property
    def flops_per_second(self) -> float:
        """Sum over all chips."""
        return self.tokens_per_second * self.flops.total

    @property
    def fraction(self) -> float:
        return self.flops_per_second / (self.chips * self.chip.peak(self.dtype))

    @property
    def formula(self) -> str:
        """The formula with its numbers. `peak` names the source of the peak."""
        return (
            f"{self.name} {self.fraction:.1%} = {self.tokens_per_second:,.6g} tokens/s x "
            f"{self.flops.total / TERA:.4g} TFLOP/token ({self.flops.name}: {self.flops.formula}) "
            f"/ ({self.chips:,.6g} chips x {self.chip.peak(self.dtype) / TERA:,.4g} TFLOP/s)"
        )

    @property
    def peak(self) -> str:
        return self.chip.peak_text(self.dtype)

    @property
    def warning(self) -> str | None:
        """A warning if the fraction is above 85 % or 100 %, else None."""
        if self.fraction <= MAX_PLAUSIBLE:
            return None
        verdict = (
            "is impossible: it is above the peak"
            if self.fraction > 1
            else "is implausible: large matmuls alone reach 80 to 83 %"
        )
        return (
            f"{self.name} of {self.fraction:.1%} {verdict}. Likely causes: "
            f"{'; '.join(_CAUSES_OF_EXCESS)}. {self.formula}."
        )


def reported_counts(model: ModelConfig, sequence_length: int) -> dict[str, Count]:
    """Returns name -> FLOPs per token for every reported MFU.

    These are the conventions, and palm without its attention term: the second figure in table 3 of
    PaLM (arXiv 2204.02311).
    """
    counts = {name: model_flops(model, sequence_length, name) for name in CONVENTIONS}
    without_attention = Count("palm without attention", counts["palm"].terms[:1])
    return {**counts, without_attention.name: without_attention}


def utilization(
    name: str,
    flops: Count,
    tokens_per_second: float,
    chips: float,
    chip: Chip,
    dtype: str = "bfloat16",
) -> Utilization:
    """Computes the fraction of the peak for any count of FLOPs, such as `executed_flops`.

    Raises UserError if a rate is not positive or the chip has no peak for the dtype.
    """
    for label, value in (("tokens per second", tokens_per_second), ("chips", chips)):
        if not value > 0:
            raise UserError(f"{label} is {value}; it must be greater than 0 to compute {name}.")
    chip.peak(dtype)
    return Utilization(name, tokens_per_second, flops, chips, chip, dtype)


# ---- goodput -------------------------------------------------------------------------------------

CAUSES = (
    "step",
    "repeated steps",
    "compile",
    "checkpoint",
    "evaluation",
    "data stall",
    "restart",
    "other",
)
PRODUCTIVE = "step"
"""If steps are repeated after a restart, only the last execution counts as productive. The earlier
ones are `repeated steps`."""


class Goodput:
    """Measures wall time by cause; all other time is `other`. The sum is exactly the wall time.

        goodput = Goodput()
        with goodput.measure("compile"): ...

    Contexts nest: the time of the inner one is not counted for the outer one. If the clock goes
    backwards, the jump adds no time and is counted in `clock_jumps`.
    """

    def __init__(self, clock: Callable[[], int] = time.monotonic_ns):
        """clock: returns nanoseconds since any fixed time."""
        self._clock = clock
        self._now = clock()
        self._nanoseconds = dict.fromkeys(CAUSES, 0)
        self._causes = ["other"]
        self.clock_jumps = 0

    @contextlib.contextmanager
    def measure(self, cause: str) -> Iterator[None]:
        """Counts the time in the context for a cause. Raises ValueError if it is not in CAUSES."""
        self._check(cause)
        self._advance()
        self._causes.append(cause)
        try:
            yield
        finally:
            self._advance()
            self._causes.pop()

    def add(self, cause: str, seconds: float) -> None:
        """Adds time from before this process. Raises ValueError if the cause is not in CAUSES."""
        self._check(cause)
        if seconds < 0:
            self.clock_jumps += 1
        self._nanoseconds[cause] += max(0, round(seconds * 1e9))

    def resume(self, earlier: Mapping[str, float], gap: float) -> None:
        """Continues from the goodput of a run's earlier attempts (cause -> seconds).

        gap: seconds from their last line until now. It counts as `restart`, including the time of
        this attempt so far, such as reading the checkpoint. Compilation comes later, as `compile`.
        """
        self._advance()
        own = sum(self._nanoseconds.values())
        self._nanoseconds = dict.fromkeys(CAUSES, 0)
        for cause, seconds in earlier.items():
            self.add(cause, seconds)
        self.clock_jumps += gap < 0
        self._nanoseconds["restart"] += max(own, round(gap * 1e9))

    def seconds(self) -> dict[str, float]:
        """Returns cause -> seconds so far."""
        self._advance()
        return {cause: spent / 1e9 for cause, spent in self._nanoseconds.items()}

    def _advance(self) -> None:
        now = self._clock()
        if now < self._now:
            self.clock_jumps += 1
        self._nanoseconds[self._causes[-1]] += max(0, now - self._now)
        self._now = now

    def _check(self, cause: str) -> None:
        if cause not in CAUSES:
            raise ValueError(
                f"unknown cause {cause!r} of wall time. Choose one of {', '.join(CAUSES)}."
            )


def fraction_productive(seconds: Mapping[str, float]) -> float:
    """Returns goodput from seconds by cause: productive time over all time."""
    wall = sum(seconds.values())
    return seconds.get(PRODUCTIVE, 0.0) / wall if wall else 0.0
