"""How long a step takes, from what the compiled program does: matrix time, memory time, link time.

    device time  sum over the program's instructions of the longer of its matrix time and its memory time (inside an instruction both
                 run at once; instructions follow one another)
    link time    sum over its collectives
    hidden       of it, what runs beside work: a collective that is one instruction hides nothing, one with a start and a done hides as
                 much as the program has scheduled between the two, and no work hides two collectives

    step = device time + link time - hidden

The constants are what machines reach of their data sheets in general; none is fitted to a training run (docs/planning.md compares).
"""

import dataclasses

from paxlike.accounting.hardware import Chip


@dataclasses.dataclass(frozen=True)
class Efficiency:
    """What a chip reaches of its peaks."""

    matmul: float
    """Of the dense peak, in a large bf16 matrix product on random data."""
    kernel: float
    """Of the dense peak, in a flash-attention kernel, over the tiles that it does not skip."""
    memory: float
    """Of the data sheet's bandwidth, in a streaming pass."""
    link: float
    """Of a link's bandwidth, in a large collective."""


TPU = Efficiency(matmul=0.80, kernel=0.40, memory=0.85, link=0.90)
GPU = Efficiency(matmul=0.70, kernel=0.50, memory=0.85, link=0.80)

CAUSAL = 0.5
"""Share of a causal kernel's square that is not skipped; the tiles on the diagonal add one half tile a row, which is left out."""


def efficiency(chip: Chip) -> Efficiency:
    return TPU if "torus" in chip.links else GPU


@dataclasses.dataclass(frozen=True)
class Times:
    """Seconds of a step on one device."""

    matrix: float
    """All matrix products, alone."""
    memory: float
    """All reading and writing of memory, alone."""
    device: float
    links: float
    hidden: float

    @property
    def step(self) -> float:
        return self.device + self.links - self.hidden


def times(work: list[list], collectives: list[tuple], chip: Chip, dtype: str = "bfloat16") -> Times:
    """work: [runs, FLOPs, bytes, attention kernel?, beside other work?], in the order of the schedule. collectives: (runs, seconds at the
    links' full bandwidth, the work it is under way during: (first, end) or None)."""
    reached = efficiency(chip)
    peak = chip.peak(dtype) / chip.devices_per_chip
    bandwidth = chip.bandwidth / chip.devices_per_chip * reached.memory
    matrix = memory = 0.0
    device = []
    for runs, flops, moved, kernel, beside in work:
        rate = peak * (reached.kernel / CAUSAL if kernel else reached.matmul)
        in_matrix, in_memory = runs * flops / rate, runs * moved / bandwidth
        matrix, memory = matrix + in_matrix, memory + in_memory
        device.append(0.0 if beside else max(in_matrix, in_memory))
    links = hidden = 0.0
    free = list(device)
    for runs, seconds, window in collectives:
        left = runs * seconds / reached.link
        links += left
        for i in range(*(window or (0, 0))):
            covered = min(left, free[i])
            left, hidden, free[i] = left - covered, hidden + covered, free[i] - covered
    return Times(matrix, memory, sum(device), links, hidden)
