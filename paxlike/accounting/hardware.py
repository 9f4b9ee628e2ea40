"""The hardware table: dense peak FLOP/s, memory, bandwidth and links of accelerators, with sources.

Figures are per chip, without structured sparsity (data sheets of GPUs since the A100 print twice
the dense figure). A chip can be several JAX devices (`devices_per_chip`). Chips are identified by
the exact device kind: H100 SXM, H100 PCIe and H100 NVL are three rows. An unknown kind raises an
error; nothing is guessed.
"""

import dataclasses
from collections.abc import Mapping

from paxlike.accounting.units import GB, GiB
from paxlike.config import UserError

TERA = 1e12


@dataclasses.dataclass(frozen=True)
class Chip:
    name: str
    """Short name, such as `v5e` or `h100`."""
    title: str
    peaks: Mapping[str, float]
    """Number format (bfloat16, float8, int8, ...) -> dense FLOP/s or operations/s."""
    memory: int
    """Bytes of HBM, in GB or GiB as the vendor states it."""
    bandwidth: float
    """Bytes/s of HBM."""
    source: str
    device_kinds: tuple[str, ...] = ()
    """Names that JAX gives its devices (`device.device_kind`)."""
    devices_per_chip: int = 1
    links: str = ""
    """Topology of a pod or server: `2d torus`, `3d torus`, `switch`, or `mesh`."""
    link_count: int = 0
    link_bandwidth: float = 0.0
    """Bytes/s of one link in one direction."""
    network_bandwidth: float = 0.0
    """Bytes/s per chip in one direction to other pods or servers. 0 if not published."""

    def peak(self, dtype: str = "bfloat16") -> float:
        """Returns the dense FLOP/s for a number format. Raises UserError if its peak is unknown."""
        if dtype not in self.peaks:
            raise UserError(
                f"{self.title} has no peak for {dtype}. Choose one of {', '.join(self.peaks)} "
                f"(source: {self.source})."
            )
        return self.peaks[dtype]

    def chips(self, devices: int) -> float:
        """Returns the number of chips for a number of JAX devices."""
        return devices / self.devices_per_chip

    @property
    def device_memory(self) -> int:
        """Bytes of HBM per JAX device."""
        return self.memory // self.devices_per_chip

    def peak_text(self, dtype: str = "bfloat16") -> str:
        """Such as `275 TFLOP/s dense bfloat16 per TPU v4 (Google Cloud documentation, TPU v4)`."""
        unit = "TOP/s" if dtype.startswith("int") else "TFLOP/s"
        return (
            f"{self.peak(dtype) / TERA:,.4g} {unit} dense {dtype} per {self.title} ({self.source})"
        )


def _peaks(bf16: float, fp8: float | None = None, int8: float | None = None) -> dict[str, float]:
    given = {"bfloat16": bf16, "float8": fp8, "int8": int8}
    return {dtype: tera * TERA for dtype, tera in given.items() if tera is not None}


def _tpu(
    name: str, kinds: tuple[str, ...], peaks: dict, memory: int, bandwidth: float, **more
) -> Chip:
    more.setdefault("source", f"Google Cloud documentation, TPU {name}")
    return Chip(name, f"TPU {name}", peaks, memory, bandwidth, device_kinds=kinds, **more)


def _nvidia(
    name: str,
    title: str,
    kind: str,
    peaks: dict,
    memory: int,
    bandwidth: float,
    link: float = 0,
    **more,
) -> Chip:
    if link:  # NVLink through a switch: every GPU of the server or rack is one hop away
        more |= {"links": "switch", "link_count": 1, "link_bandwidth": link}
    source = f"NVIDIA {title} data sheet"
    return Chip(name, f"NVIDIA {title}", peaks, memory, bandwidth, source, (kind,), **more)


def _torus(dimensions: int, both_ways: float) -> dict:
    """Returns the links of a torus, two per dimension.

    both_ways: bytes/s of all links in both directions, as Google states them.
    """
    count = 2 * dimensions
    return {
        "links": f"{dimensions}d torus",
        "link_count": count,
        "link_bandwidth": both_ways / 2 / count,
    }


BOOK = "How to Scale Your Model (jax-ml scaling book), table of TPU specifications"

CHIPS: tuple[Chip, ...] = (
    _tpu("v2", ("TPU v2",), _peaks(46), 16 * GB, 700e9, links="2d torus"),
    _tpu("v3", ("TPU v3",), _peaks(123), 32 * GiB, 900e9, source=BOOK, **_torus(2, 8 * 1e11)),
    _tpu(
        "v4", ("TPU v4",), _peaks(275, int8=275), 32 * GiB, 1200e9,
        network_bandwidth=2.5e10 / 4, **_torus(3, 12 * 4.5e10),
    ),
    _tpu(
        "v5e", ("TPU v5 lite", "TPU v5e"), _peaks(197, int8=393), 16 * GB, 819e9,
        network_bandwidth=2 * 100e9 / 8 / 8, **_torus(2, 400e9),
    ),
    _tpu(
        "v5p", ("TPU v5", "TPU v5p"), _peaks(459, 459, 918), 95 * GiB, 2765e9,
        network_bandwidth=50e9 / 8, **_torus(3, 1200e9),
    ),
    _tpu(
        "v6e", ("TPU v6 lite", "TPU v6e"), _peaks(918, 918, 1836), 32 * GiB, 1638e9,
        network_bandwidth=100e9 / 8, **_torus(2, 800e9),
    ),
    _tpu(
        "v7x", ("TPU7x",), _peaks(2307, 4614), 192 * GiB, 7380e9,
        source="Google Cloud documentation, TPU7x", devices_per_chip=2,
        network_bandwidth=100e9 / 8, **_torus(3, 1200e9),
    ),
    _nvidia(
        "a100", "A100 80GB SXM", "NVIDIA A100-SXM4-80GB", _peaks(312, int8=624), 80 * GB, 2039e9,
        300e9,
    ),
    _nvidia(
        "h100", "H100 SXM", "NVIDIA H100 80GB HBM3", _peaks(989, 1979, 1979), 80 * GB, 3350e9,
        450e9, network_bandwidth=400e9 / 8,
    ),
    _nvidia("h100-pcie", "H100 PCIe", "NVIDIA H100 PCIe", _peaks(756, 1513, 1513), 80 * GB, 2000e9),
    _nvidia("h100-nvl", "H100 NVL", "NVIDIA H100 NVL", _peaks(835), 94 * GB, 3900e9),
    _nvidia(
        "h200", "H200 SXM", "NVIDIA H200", _peaks(989, 1979, 1979), 141 * GB, 4800e9, 450e9,
        network_bandwidth=400e9 / 8,
    ),
    _nvidia("b200", "B200", "NVIDIA B200", _peaks(2250, 4500, 4500), 192 * GB, 8000e9, 900e9),
    _nvidia("gb200", "GB200", "NVIDIA GB200", _peaks(2450, 4900), 186 * GB, 8000e9, 900e9),
    Chip(
        "mi300x", "AMD Instinct MI300X", _peaks(1307, 2615, 2615), 192 * GB, 5300e9,
        "AMD Instinct MI300X data sheet",
        ("AMD Instinct MI300X",), links="mesh", link_count=7, link_bandwidth=448e9 / 7,
    ),
)  # fmt: skip

_HOW_TO_ADD = (
    "Add a row to CHIPS in paxlike/accounting/hardware.py with its dense peaks (without sparsity), "
    "memory, bandwidth, the vendor's page as source, and this device kind"
)


def chip_named(name: str) -> Chip:
    """Returns the row with a short name (`v4`, `h100`). Raises UserError if there is none."""
    for chip in CHIPS:
        if chip.name == name.lower():
            return chip
    raise UserError(
        f"there is no chip {name!r} in the hardware table; it has "
        f"{', '.join(c.name for c in CHIPS)}. {_HOW_TO_ADD}."
    )


def chip_of_device(device_kind: str) -> Chip:
    """Returns the row for `device.device_kind`. Raises UserError for an unknown kind."""
    for chip in CHIPS:
        if device_kind in chip.device_kinds:
            return chip
    kinds = ", ".join(repr(kind) for chip in CHIPS for kind in chip.device_kinds)
    raise UserError(
        f"the device {device_kind!r} has no row in the hardware table, so its peak is unknown. "
        f"{_HOW_TO_ADD}. Known kinds: {kinds}."
    )


def measured_cpu(flops_per_second: float, dtype: str, devices: int = 1) -> Chip:
    """Returns a row for this machine's CPU, from a measured matmul rate.

    flops_per_second: rate of the whole machine. devices: JAX devices (including simulated ones)
    that share it and together count as one chip. Raises UserError if the rate is not positive.
    """
    if flops_per_second <= 0:
        raise UserError(
            f"the measured matmul rate is {flops_per_second} FLOP/s, but must be greater than 0. "
            "Measure it again."
        )
    return Chip(
        "cpu", "CPU", {dtype: flops_per_second}, 0, 0.0, "measured with one matmul on this machine",
        ("cpu",), devices,
    )  # fmt: skip
