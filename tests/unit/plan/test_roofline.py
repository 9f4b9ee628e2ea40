"""Seconds by hand."""

import pytest

from paxlike.accounting.hardware import chip_named
from paxlike.plan.roofline import CAUSAL, efficiency, times

V4 = chip_named("v4")
REACHED = efficiency(V4)
MATRIX = 275e12 * REACHED.matmul  # FLOPs that take a second
MEMORY = 1200e9 * REACHED.memory  # bytes that take one


def work(runs=1, flops=0.0, moved=0.0, kernel=False, beside=False):
    return [runs, flops, moved, kernel, beside]


def test_an_instruction_takes_the_longer_of_its_two_times_and_instructions_follow_one_another():
    found = times([work(2, MATRIX, 0.5 * MEMORY), work(1, 0.25 * MATRIX, 3 * MEMORY)], [], V4)
    assert (found.matrix, found.memory) == (pytest.approx(2.25), pytest.approx(4))
    assert found.device == found.step == pytest.approx(2 + 3)


def test_kernels_skip_the_masked_half_and_prefetches_take_no_time():
    kernel = 275e12 * REACHED.kernel / CAUSAL
    found = times([work(1, kernel, kernel=True), work(1, moved=MEMORY, beside=True)], [], V4)
    assert found.step == pytest.approx(1) and found.memory == pytest.approx(1)


def test_a_collective_hides_behind_the_work_between_its_start_and_its_done_and_no_work_hides_two():
    second = REACHED.link
    rows = [work(1, MATRIX), work(1, MATRIX), work(1, MATRIX)]
    waits = times(rows, [(1, second, None)], V4)
    assert (waits.links, waits.hidden, waits.step) == (pytest.approx(1), 0, pytest.approx(4))
    hidden = times(rows, [(1, 1.5 * second, (1, 3))], V4)
    assert hidden.hidden == pytest.approx(1.5) and hidden.step == pytest.approx(3)
    two = times(rows, [(1, 1.5 * second, (1, 3)), (1, 1.5 * second, (1, 3))], V4)
    assert two.hidden == pytest.approx(2) and two.step == pytest.approx(4)


def test_half_a_chip_has_half_of_its_rates():
    v7x = chip_named("v7x")
    whole = v7x.peak() * efficiency(v7x).matmul
    assert times([work(1, whole)], [], v7x).step == pytest.approx(2)
