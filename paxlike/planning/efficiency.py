"""The fractions of their data-sheet peaks that chips reach, and latencies, by generation.

None is fitted to a single training run. docs/planning.md compares predictions with published runs.

A product's fraction is a measured one where one is published. Elsewhere it is at least the hardware
FLOP utilization of the best published large dense run, which is MFU x 4/3 under full
rematerialization, plus a few percent for what is not a product.
"""

import dataclasses

from paxlike.accounting.hardware import Chip

CAUSAL = 0.5
"""Fraction of a causal kernel's tiles that is not skipped, without the half tile per row that the
diagonal adds.
"""


@dataclasses.dataclass(frozen=True)
class Efficiency:
    matmul: float
    """Fraction of the dense peak, in a large bf16 matrix product on random data."""
    kernel: float
    """Fraction of the dense peak, in a flash-attention kernel, over tiles that are not skipped."""
    memory: float
    """Fraction of the data sheet's bandwidth, in a streaming pass."""
    link: float
    """Fraction of a link's bandwidth within a pod or host, in a large collective."""
    network: float
    """Fraction of the network's bandwidth between pods or hosts, in a large collective."""
    hop: float
    """Seconds from one device to the next within a pod or host."""
    network_hop: float
    """Seconds from one pod or host to another."""
    source: str
    """Of `matmul`."""


def _tpu(matmul: float, source: str) -> Efficiency:
    # Latencies: How to Scale Your Model, chapter 3 (about 1 us per hop of the torus).
    return Efficiency(matmul, 0.40, 0.85, 0.90, 0.90, 1e-6, 2e-5, source)


def _gpu(matmul: float, source: str) -> Efficiency:
    return Efficiency(matmul, 0.50, 0.85, 0.80, 0.60, 2e-6, 1e-5, source)


_OTHER_TPU = _tpu(0.80, "assumed, as TPU v4")
_OTHER_GPU = _gpu(0.70, "assumed: a large product reaches 0.80 on an H200; clocks fall under load")
EFFICIENCIES = {
    "v4": _tpu(0.80, "MaxText 52B: 58.9 % MFU with full rematerialization, 78.5 % HFU"),
    "v5e": _tpu(0.93, "MaxText 32B: 66.9 % MFU with full rematerialization, 89.2 % HFU"),
    "v6e": _tpu(0.70, "Llama 3.1 70B: 50.4 % MFU with full rematerialization, 67.2 % HFU"),
    "v7x": _tpu(0.83, "measured in a large product, 83 %"),
}


def efficiency(chip: Chip) -> Efficiency:
    """The constants of a TPU or GPU."""
    return EFFICIENCIES.get(chip.name, _OTHER_TPU if "torus" in chip.links else _OTHER_GPU)
