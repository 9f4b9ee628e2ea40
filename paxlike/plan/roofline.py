"""How long a step takes, from what the compiled program does: matrix time, memory time, link time.

    device time  sum over the program's instructions of the longer of its matrix time and its memory time (inside an instruction both
                 run at once; instructions follow one another)
    waiting      collectives that are one instruction in the compiled program: the device does nothing else meanwhile
    beside       collectives that have a start and a done: hidden behind device time, as long as there is any

    step = device time + waiting + max(0, beside - device time)

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
    waiting: float
    beside: float

    @property
    def hidden(self) -> float:
        return min(self.beside, self.device)

    @property
    def step(self) -> float:
        return self.device + self.waiting + self.beside - self.hidden


def times(work: list[tuple], waiting: float, beside: float, chip: Chip, dtype: str = "bfloat16") -> Times:
    """work: (runs, FLOPs, bytes, whether an attention kernel, whether it runs beside other work). waiting, beside: seconds of
    collectives at the links' full bandwidth."""
    reached = efficiency(chip)
    peak = chip.peak(dtype) / chip.devices_per_chip
    bandwidth = chip.bandwidth / chip.devices_per_chip * reached.memory
    matrix = memory = device = 0.0
    for runs, flops, moved, kernel, apart in work:
        rate = peak * (reached.kernel / CAUSAL if kernel else reached.matmul)
        in_matrix, in_memory = runs * flops / rate, runs * moved / bandwidth
        matrix, memory = matrix + in_matrix, memory + in_memory
        device += 0.0 if apart else max(in_matrix, in_memory)
    return Times(matrix, memory, device, waiting / reached.link, beside / reached.link)
