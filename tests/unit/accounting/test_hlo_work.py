"""Bytes and FLOPs of small programs, against counts by hand."""

import jax
import jax.numpy as jnp
import pytest

from paxlike.accounting.hlo_matmuls import count_matmuls
from paxlike.accounting.hlo_work import list_work

STACK = """HloModule m, is_scheduled=true

%read_one (p0: f32[10,8,8], p1: s32[], p2: f32[8,8]) -> f32[8,8] {
  %p0 = f32[10,8,8]{2,1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %p2 = f32[8,8]{1,0} parameter(2)
  %zero = s32[] constant(0)
  %one = f32[1,8,8]{2,1,0} dynamic-slice(%p0, %p1, %zero, %zero), dynamic_slice_sizes={1,8,8}
  %flat = f32[8,8]{1,0} bitcast(%one)
  ROOT %product = f32[8,8]{1,0} dot(%flat, %p2), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%write_one (p0: f32[10,8,8], p1: s32[], p2: f32[8,8]) -> f32[10,8,8] {
  %p0 = f32[10,8,8]{2,1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %p2 = f32[8,8]{1,0} parameter(2)
  %zero = s32[] constant(0)
  %part = f32[1,8,8]{2,1,0} bitcast(%p2)
  ROOT %whole = f32[10,8,8]{2,1,0} dynamic-update-slice(%p0, %part, %p1, %zero, %zero)
}

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add = f32[] add(%a, %b)
}

%all-reduce-scatter.1 (p0: f32[8,8]) -> f32[4,8] {
  %p0 = f32[8,8]{1,0} parameter(0)
  %whole = f32[8,8]{1,0} all-reduce(%p0), replica_groups={{0,1}}, to_apply=%sum
  %zero = s32[] constant(0)
  ROOT %mine = f32[4,8]{1,0} dynamic-slice(%whole, %zero, %zero), dynamic_slice_sizes={4,8}
}

%body (state: (s32[], f32[10,8,8], f32[8,8])) -> (s32[], f32[10,8,8], f32[8,8]) {
  %state = (s32[], f32[10,8,8]{2,1,0}, f32[8,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %stack = f32[10,8,8]{2,1,0} get-tuple-element(%state), index=1
  %x = f32[8,8]{1,0} get-tuple-element(%state), index=2
  %gather = (f32[8,8]{1,0}, f32[16,8]{1,0}) all-gather-start(%x), replica_groups={{0,1}}, \
dimensions={0}
  %y = f32[8,8]{1,0} fusion(%stack, %i, %x), kind=kLoop, calls=%read_one
  %gathered = f32[16,8]{1,0} all-gather-done(%gather)
  %fast = f32[8,8]{1,0:T(8,128)S(1)} add(%y, %x)
  %scattered = f32[4,8]{1,0} fusion(%y), kind=kCustom, calls=%all-reduce-scatter.1
  %new = f32[10,8,8]{2,1,0} fusion(%stack, %i, %fast), kind=kLoop, calls=%write_one
  %step = s32[] constant(1)
  %next = s32[] add(%i, %step)
  ROOT %out = (s32[], f32[10,8,8]{2,1,0}, f32[8,8]{1,0}) tuple(%next, %new, %y)
}

%condition (state: (s32[], f32[10,8,8], f32[8,8])) -> pred[] {
  %state = (s32[], f32[10,8,8]{2,1,0}, f32[8,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %n = s32[] constant(10)
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (a: f32[10,8,8], b: f32[8,8]) -> (s32[], f32[10,8,8], f32[8,8]) {
  %a = f32[10,8,8]{2,1,0} parameter(0)
  %b = f32[8,8]{1,0} parameter(1)
  %zero = s32[] constant(0)
  %start = (s32[], f32[10,8,8]{2,1,0}, f32[8,8]{1,0}) tuple(%zero, %a, %b)
  ROOT %loop = (s32[], f32[10,8,8]{2,1,0}, f32[8,8]{1,0}) while(%start), \
condition=%condition, body=%body
}
"""
MATRIX = 8 * 8 * 4


def test_slices_updates_and_on_chip_memory():
    work = list_work(STACK)
    rows = {w.name: w for w in work}
    assert {w.times for w in work if w.name != "less"} == {10}
    # It reads the index, one layer and x, and writes the result.
    assert rows["y"].bytes == 4 + 3 * MATRIX and rows["y"].flops == 2 * 8 * 8 * 8
    assert rows["fast"].bytes == 2 * MATRIX  # Its result stays on the chip.
    assert rows["new"].bytes == 4 + MATRIX  # It reads only the index, and writes one layer.


def test_collectives_are_not_work():
    assert {w.name for w in list_work(STACK)} == {"y", "fast", "new", "next"}


@pytest.mark.parametrize("remat", [False, True])
def test_flops_match_count_matmuls(remat):
    def layers(x, ws):
        def body(x, w):
            return jnp.tanh(x @ w), None

        return jax.lax.scan(jax.checkpoint(body) if remat else body, x, ws)[0].sum()

    def program(depth):
        shapes = (
            jax.ShapeDtypeStruct((16, 32), jnp.float32),
            jax.ShapeDtypeStruct((depth, 32, 32), jnp.float32),
        )
        return jax.jit(jax.grad(layers, 1)).lower(*shapes).compile().as_text()

    text = program(8)
    work = list_work(text)
    assert sum(w.times * w.flops for w in work) == count_matmuls(text).total > 0

    def moved(depth):
        return sum(w.times * w.bytes for w in list_work(program(depth)))

    # If each layer read the whole stack, 4 times the layers would move 16 times the bytes.
    assert moved(32) == pytest.approx(4 * moved(8), rel=0.1)
