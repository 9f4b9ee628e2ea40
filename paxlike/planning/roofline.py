"""Predicts the seconds of each instruction of the compiled program.

An instruction takes the longer of its matrix time and its memory time, because both overlap within
an instruction. `timeline` adds the collectives.
"""

from paxlike.accounting.hardware import Chip
from paxlike.accounting.hlo_work import Work
from paxlike.planning.efficiency import CAUSAL, efficiency


def work_seconds(
    work: list[Work], chip: Chip, dtype: str = "bfloat16"
) -> tuple[list[float], float, float]:
    """Returns (seconds of one execution of each instruction, seconds of all matrix products of a
    step, seconds of all memory traffic of a step).

    A prefetch takes no time: it overlaps with other work.
    """
    reached = efficiency(chip)
    peak = chip.peak(dtype) / chip.devices_per_chip
    bandwidth = chip.bandwidth / chip.devices_per_chip * reached.memory
    seconds, matrix, memory = [], 0.0, 0.0
    for w in work:
        rate = peak * (reached.kernel / CAUSAL if w.kernel else reached.matmul)
        in_matrix, in_memory = w.flops / rate, w.bytes / bandwidth
        matrix, memory = matrix + w.times * in_matrix, memory + w.times * in_memory
        seconds.append(0.0 if w.asynchronous else max(in_matrix, in_memory))
    return seconds, matrix, memory
