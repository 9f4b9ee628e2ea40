"""Seconds by hand."""

import pytest

from paxlike.accounting.hardware import chip_named
from paxlike.accounting.hlo_work import Work
from paxlike.planning.efficiency import CAUSAL, efficiency
from paxlike.planning.roofline import work_seconds

V4 = chip_named("v4")
REACHED = efficiency(V4)
MATRIX = 275e12 * REACHED.matmul  # FLOPs that take a second
MEMORY = 1200e9 * REACHED.memory  # bytes that take one


def work(times=1, flops=0.0, moved=0.0, kernel=False, beside=False):
    return Work("w", "", times, flops, moved, kernel, beside)


def test_an_instruction_takes_the_longer_of_its_two_times():
    rows = [work(2, MATRIX, 0.5 * MEMORY), work(1, 0.25 * MATRIX, 3 * MEMORY)]
    seconds, matrix, memory = work_seconds(rows, V4)
    assert seconds == pytest.approx([1, 3])
    assert (matrix, memory) == (pytest.approx(2.25), pytest.approx(4))


def test_kernels_skip_the_masked_half_and_prefetches_take_no_time():
    kernel = 275e12 * REACHED.kernel / CAUSAL
    rows = [work(1, kernel, kernel=True), work(1, moved=MEMORY, beside=True)]
    seconds, _, memory = work_seconds(rows, V4)
    assert seconds == pytest.approx([1, 0]) and memory == pytest.approx(1)


def test_half_a_chip_has_half_of_its_rates():
    v7x = chip_named("v7x")
    whole = v7x.peak() * efficiency(v7x).matmul
    assert work_seconds([work(1, whole)], v7x)[0] == pytest.approx([2])
