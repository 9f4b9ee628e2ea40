"""The peak FLOP/s for a run's MFU: from the hardware table or, on a CPU, from a measured matmul."""

import time

import jax
import jax.numpy as jnp

from paxlike.accounting.hardware import Chip, chip_of_device, measured_cpu
from paxlike.config import UserError

SIDE = 2048
"""Side of the measured matmul: large enough to keep every core busy, 0.1 s on a laptop."""


def local_chip(dtype: str) -> Chip:
    """Returns the chip of this process's devices.

    Raises UserError if the hardware table has no row for it; the message says how to add one.
    """
    devices = jax.devices()
    if devices[0].platform != "cpu":
        return chip_of_device(devices[0].device_kind)
    return measured_cpu(_matmul_rate(dtype), dtype, devices=len(devices))


def _matmul_rate(dtype: str) -> float:
    """Returns the best FLOP/s of five SIDE^3 matmuls on one device; a CPU device uses all cores."""
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


def chip_and_source(dtype: str) -> tuple[Chip | None, str]:
    """Returns the chip and a description of its peak, or None and the reason for having no MFU.

    A run on a chip that is not in the hardware table still trains. Processes other than 0 return
    (None, ""): only process 0 writes metrics, and the others would disturb its measurement on a
    CPU.
    """
    if jax.process_index() > 0:
        return None, ""
    try:
        chip = local_chip(dtype)
        return chip, f"MFU relative to {chip.peak_text(dtype)}"
    except UserError as error:
        return None, f"no MFU: {error}"
