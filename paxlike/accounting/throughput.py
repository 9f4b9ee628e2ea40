"""MFU and HFU with everything that went into them, and goodput: where the wall time of a run went.

MFU = tokens/s * model FLOPs per token / (chips * peak FLOP/s)                     (PaLM, arXiv 2204.02311, appendix B)
HFU = tokens/s * hardware FLOPs per token / (chips * peak FLOP/s)
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping

from paxlike.accounting.flops import CONVENTIONS, Count, model_flops
from paxlike.accounting.hardware import TERA, Chip
from paxlike.config import ModelConfig, UserError

DOUBTFUL = 0.85
"""Above this share of the peak a figure is doubted: large matmuls alone reach 80 to 83 %."""

_CAUSES_OF_EXCESS = (
    "time taken without waiting for the device (dispatch is asynchronous)",
    "tokens counted twice (the batch is that of all devices already)",
    "a wrong number of chips (a TPU v7x shows two devices per chip)",
    "another chip's peak, or that of another number format",
    "a CPU's peak that was measured while other programs ran",
)


@dataclasses.dataclass(frozen=True)
class Utilization:
    """A share of the peak, and all that it was computed from."""

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
        """Of all chips together."""
        return self.tokens_per_second * self.flops.total

    @property
    def fraction(self) -> float:
        return self.flops_per_second / (self.chips * self.chip.peak(self.dtype))

    @property
    def formula(self) -> str:
        """The division with its numbers; the peak's source is in `peak`."""
        return (
            f"{self.name} {self.fraction:.1%} = {self.tokens_per_second:,.6g} tokens/s x {self.flops.total / TERA:.4g} TFLOP/token "
            f"({self.flops.name}: {self.flops.formula}) / ({self.chips:,.6g} chips x {self.chip.peak(self.dtype) / TERA:,.4g} TFLOP/s)"
        )

    @property
    def peak(self) -> str:
        return self.chip.peak_text(self.dtype)

    @property
    def warning(self) -> str | None:
        """What to say loudly where the figure is above 85 % or 100 % of the peak, else None."""
        if self.fraction <= DOUBTFUL:
            return None
        verdict = (
            "cannot be: it is above the peak"
            if self.fraction > 1
            else "is hardly possible: large matmuls alone reach 80 to 83 %"
        )
        return f"{self.name} of {self.fraction:.1%} {verdict}. Likely causes: {'; '.join(_CAUSES_OF_EXCESS)}. {self.formula}."


def reported_counts(model: ModelConfig, sequence_length: int) -> dict[str, Count]:
    """Name -> FLOPs per token of every MFU that is reported: the conventions, and palm without its term of attention, which is the
    second figure of PaLM's table 3 (arXiv 2204.02311)."""
    counts = {name: model_flops(model, sequence_length, name) for name in CONVENTIONS}
    bare = Count("palm without attention", counts["palm"].terms[:1])
    return {**counts, bare.name: bare}


def utilization(
    name: str, flops: Count, tokens_per_second: float, chips: float, chip: Chip, dtype: str = "bfloat16"
) -> Utilization:
    """The share of the peak for FLOPs per token of any count, such as `executed_flops`."""
    for what, value in (("tokens per second", tokens_per_second), ("chips", chips)):
        if not value > 0:
            raise UserError(f"{what} is {value}; it must be greater than 0 to compute {name}.")
    chip.peak(dtype)
    return Utilization(name, tokens_per_second, flops, chips, chip, dtype)


# ---- goodput -----------------------------------------------------------------------------------------------------------

CAUSES = ("step", "repeated steps", "compile", "checkpoint", "evaluation", "data stall", "restart", "other")
PRODUCTIVE = "step"
"""A step that is done again after a restart was productive the last time only; the times before are `repeated steps`."""


class Goodput:
    """Books wall time under causes; what nobody books is `other`. The sum is the wall time, to the nanosecond.

        goodput = Goodput()
        with goodput.book("compile"): ...

    Bookings nest: the inner one's time is not the outer one's. A clock that goes backwards books nothing for the jump and is
    counted in `clock_jumps`; the wall time is then what was seen to pass.
    """

    def __init__(self, clock: Callable[[], int] = time.monotonic_ns):
        """clock: nanoseconds, from any start."""
        self._clock = clock
        self._now = clock()
        self._booked = dict.fromkeys(CAUSES, 0)
        self._causes = ["other"]
        self.clock_jumps = 0

    @contextlib.contextmanager
    def book(self, cause: str) -> Iterator[None]:
        """Books the time inside the `with`. Raises ValueError for a cause that is not in CAUSES."""
        self._check(cause)
        self._advance()
        self._causes.append(cause)
        try:
            yield
        finally:
            self._advance()
            self._causes.pop()

    def add(self, cause: str, seconds: float) -> None:
        """Books time that passed before this process. Raises ValueError for a cause that is not in CAUSES."""
        self._check(cause)
        if seconds < 0:
            self.clock_jumps += 1
        self._booked[cause] += max(0, round(seconds * 1e9))

    def resume(self, earlier: Mapping[str, float], gap: float) -> None:
        """Goes on with the bookings of a run's earlier attempts (cause -> seconds).

        gap: seconds from their last word until now. It is a `restart`, and with it all that this attempt has spent so far, the reading
        of the checkpoint included; its compilation comes later and is a `compile`.
        """
        self._advance()
        own = sum(self._booked.values())
        self._booked = dict.fromkeys(CAUSES, 0)
        for cause, seconds in earlier.items():
            self.add(cause, seconds)
        self.clock_jumps += gap < 0
        self._booked["restart"] += max(own, round(gap * 1e9))

    def seconds(self) -> dict[str, float]:
        """Cause -> seconds so far."""
        self._advance()
        return {cause: booked / 1e9 for cause, booked in self._booked.items()}

    def _advance(self) -> None:
        now = self._clock()
        if now < self._now:
            self.clock_jumps += 1
        self._booked[self._causes[-1]] += max(0, now - self._now)
        self._now = now

    def _check(self, cause: str) -> None:
        if cause not in CAUSES:
            raise ValueError(f"there is no cause {cause!r} to book time under; causes are {', '.join(CAUSES)}.")


def fraction_productive(seconds: Mapping[str, float]) -> float:
    """Goodput of booked seconds by cause: steps over all."""
    wall = sum(seconds.values())
    return seconds.get(PRODUCTIVE, 0.0) / wall if wall else 0.0
