"""The peak that a run's MFU is divided by: the chip's row in the hardware table; on a CPU, a matmul measured here and now."""

import time

import jax
import jax.numpy as jnp

from paxlike.accounting.hardware import Chip, chip_of_device, measured_cpu
from paxlike.config import UserError

SIDE = 2048
"""Of the measured matmul: large enough to keep every core busy, 0.1 s on a laptop."""


def chip_here(dtype: str) -> Chip:
    """The chip of this process's devices. Raises UserError, with the way to add it, where the table has no row for it."""
    devices = jax.devices()
    if devices[0].platform != "cpu":
        return chip_of_device(devices[0].device_kind)
    return measured_cpu(_matmul_rate(dtype), dtype, devices=len(devices))


def _matmul_rate(dtype: str) -> float:
    """FLOP/s of the best of five SIDE^3 matmuls on one device, which on a CPU has all cores."""
    with jax.set_mesh(jax.make_mesh((1,), ("one",), devices=jax.local_devices()[:1])):
        x = jnp.ones((SIDE, SIDE), dtype)
        multiply = jax.jit(jnp.matmul)
        multiply(x, x).block_until_ready()
        seconds = []
        for _ in range(5):
            begin = time.perf_counter()
            multiply(x, x).block_until_ready()
            seconds.append(time.perf_counter() - begin)
    return 2 * SIDE**3 / min(seconds)


def chip_or_note(dtype: str) -> tuple[Chip | None, str]:
    """(the chip, how its peak is known), or (None, why there is no MFU): a run is not stopped for want of a row.

    Of many processes only the first is told; it alone writes, and where it measures, the others do not disturb it.
    """
    if jax.process_index() > 0:
        return None, ""
    try:
        chip = chip_here(dtype)
        return chip, f"MFU is of {chip.peak_text(dtype)}"
    except UserError as error:
        return None, f"no MFU: {error}"
