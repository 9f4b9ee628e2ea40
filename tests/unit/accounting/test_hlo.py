"""Parsing HLO text: programs compiled here, and examples in TPU and GPU notation."""

import jax
import jax.numpy as jnp
import pytest

from paxlike.accounting.hlo import Shape, parse, shapes_in
from paxlike.accounting.hlo_walk import called, trip_count, unknown_loops, walk

# A loop as libtpu prints it: no known_trip_count, constants outside the body, layouts with tiles,
# and a kernel's attribute with line breaks, after which a line begins with braces.
TPU = """HloModule jit_step, is_scheduled=true, num_partitions=8

%fused (p0: bf16[4,8], p1: s32[]) -> bf16[8] {
  %p0 = bf16[4,8]{1,0:T(8,128)(2,1)S(3)} parameter(0)
  %p1 = s32[]{:T(128)S(6)} parameter(1)
  ROOT %dynamic-slice.1 = bf16[8]{0} dynamic-slice(%p0, %p1), dynamic_slice_sizes={1,8}
}

%body (wide.param: (s32[], bf16[8], /*index=2*/s32[])) -> (s32[], bf16[8], s32[]) {
  %wide.param = (s32[]{:T(128)}, bf16[8]{0}, /*index=2*/s32[]{:T(128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%wide.param), index=0
  %one = s32[]{:T(128)} constant(1)
  %next = s32[]{:T(128)} add(%i, %one), \
backend_config={"flag_configs":[],"aliasing_operands":{"lists":[]}}
  %x = bf16[8]{0} get-tuple-element(%wide.param), index=1
  %bound = s32[]{:T(128)} get-tuple-element(%wide.param), index=2
  %kernel.3 = (f32[2,128]{1,0}, bf16[8]{0}) custom-call(%x, /*index=1*/%x), \
custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q\\": 128, \\"open\\": \\"{\\"}"
}}, metadata={op_name="jit(step)/while/body/kernel" stack_frame_id=16}, \
backend_config={"custom_call_config":{"body":"TUzvUg=="}}
  %y = bf16[8]{0} get-tuple-element(%kernel.3), index=1, frontend_attributes={kernel_metadata={
}
}
  ROOT %state = (s32[], bf16[8]{0}, s32[]) tuple(%next, %y, %bound)
}

%cond (param: (s32[], bf16[8], s32[])) -> pred[] {
  %param = (s32[]{:T(128)}, bf16[8]{0}, s32[]{:T(128)}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%param), index=0
  %bound.1 = s32[]{:T(128)} get-tuple-element(%param), index=2
  ROOT %lt = pred[]{:T(512)} compare(%i.1, %bound.1), direction=LT, \
metadata={op_name="jit(step)/while/cond/lt"}
}

ENTRY %main (arg: bf16[4,8]) -> (s32[], bf16[8], s32[]) {
  %arg = bf16[4,8]{1,0} parameter(0)
  %zero = s32[]{:T(128)} constant(0)
  %copy.1 = s32[]{:T(128)} copy(%zero)
  %trips = s32[]{:T(128)} constant(118)
  %slice = bf16[8]{0} fusion(%arg, %zero), kind=kLoop, calls=%fused
  %tuple.1 = (s32[], bf16[8]{0}, s32[]) tuple(%copy.1, %slice, %trips)
  ROOT %while.1 = (s32[], bf16[8]{0}, s32[]) while(%tuple.1), condition=%cond, body=%body, \
metadata={op_name="jit(step)/while"}
}
"""


def loop(module):
    return next(visit for visit in walk(module) if visit.instruction.opcode == "while")


def trips(text: str) -> int | None:
    module = parse(text)
    return trip_count(module, loop(module).computation, loop(module).instruction)


def test_shapes():
    assert shapes_in("(bf16[2,1024]{1,0:T(8,128)(2,1)S(3)}, /*index=1*/s32[], pred[7])") == (
        Shape("bf16", (2, 1024)),
        Shape("s32", ()),
        Shape("pred", (7,)),
    )
    sizes = {
        "bf16[4,8]": 64,
        "f32[]": 4,
        "s4[3]": 2,
        "pred[5]": 5,
        "f8e4m3fn[8]": 8,
        "c64[2]": 16,
        "token[]": 0,
        "f32[0]": 0,
    }
    assert {text: shapes_in(text)[0].bytes for text in sizes} == sizes


def test_tpu_program_with_line_breaks_in_attributes():
    module = parse(TPU)
    assert list(module.computations) == ["fused", "body", "cond", "main"]
    assert module.entry.name == "main" and module.entry.root.name == "while.1"
    body = module.computations["body"]
    assert len(body.instructions) == 9 and body.root.name == "state"
    kernel = body.instructions["kernel.3"]
    assert (
        kernel.operands == ("x", "x")
        and kernel.attribute("custom_call_target") == "tpu_custom_call"
    )
    assert kernel.op_name == "jit(step)/while/body/kernel"
    assert body.operand_shapes(kernel) == [Shape("bf16", (8,))] * 2
    assert called(module.entry.instructions["slice"]) == ["fused"]


def test_computation_of_a_sparse_core():
    """libtpu marks what a sparse core runs with `execution_thread`."""
    sparse_core = TPU.replace(
        "dynamic_slice_sizes={1,8}\n}",
        'dynamic_slice_sizes={1,8}\n}, execution_thread="sparsecore"',
    )
    sparse_core = sparse_core.replace(
        "fusion(%arg, %zero), kind=kLoop, calls=%fused", "call-start(%arg, %zero), to_apply=%fused"
    )
    assert sparse_core.count("sparsecore") == 1 and list(parse(sparse_core).computations) == list(
        parse(TPU).computations
    )
    assert [v.instruction.name for v in walk(parse(sparse_core))] == [
        v.instruction.name for v in walk(parse(TPU))
    ]


def test_trip_count_from_condition_and_state():
    assert trips(TPU) == 118
    assert {v.instruction.name: v.times for v in walk(parse(TPU))}["kernel.3"] == 118


@pytest.mark.parametrize(
    ("change", "count"),
    [
        (("constant(118)", "constant(0)"), 0),
        (("direction=LT", "direction=LE"), 119),
        (("direction=LT", "direction=NE"), 118),
        (("%one = s32[]{:T(128)} constant(1)", "%one = s32[]{:T(128)} constant(4)"), 30),
        (("%zero = s32[]{:T(128)} constant(0)", "%zero = s32[]{:T(128)} constant(100)"), 18),
        (("compare(%i.1, %bound.1), direction=LT", "compare(%bound.1, %i.1), direction=GT"), 118),
        (("direction=LT", "direction=GT"), None),  # never starts, or never ends
        (("tuple(%next, %y, %bound)", "tuple(%next, %y, %next)"), None),  # the bound changes
        (("add(%i, %one)", "multiply(%i, %one)"), None),
        (("%one = s32[]{:T(128)} constant(1)", "%one = s32[]{:T(128)} constant(0)"), None),
        (
            (
                "%i = s32[]{:T(128)} get-tuple-element(%wide.param)",
                "%i = s32[] get-tuple-element(%kernel.3)",
            ),
            None,
        ),
        # The initial value is unknown.
        (("%copy.1 = s32[]{:T(128)} copy(%zero)", "%copy.1 = s32[] parameter(1)"), None),
    ],
)
def test_trip_counts_of_other_loops(change, count):
    assert change[0] in TPU
    text = TPU.replace(*change)
    assert trips(text) == count
    assert unknown_loops(parse(text)) == ([] if count is not None else ["while.1"])


def test_loop_that_counts_down():
    text = TPU.replace("add(%i, %one)", "subtract(%i, %one)").replace(
        "direction=LT", "direction=GT"
    )
    text = text.replace("constant(118)", "constant(-1)").replace(
        "%zero = s32[]{:T(128)} constant(0)", "%zero = s32[] constant(9)"
    )
    assert trips(text) == 10


def test_known_trip_count_has_priority():
    config = '"known_trip_count":{"n":"7"},"known_init_step":{"init":"0","step":"1"}'
    known = f"body=%body, backend_config={{{config}}}"
    assert trips(TPU.replace("body=%body", known)) == 7


def test_invalid_text_raises_error():
    with pytest.raises(ValueError, match="has no ENTRY computation"):
        parse("module @jit_step attributes {mhlo.num_partitions = 1 : i32} {}\n")
    with pytest.raises(ValueError, match="truncated"):
        parse(TPU[: TPU.index("tuple(%copy.1") + 10])


def scanned(x, ws):
    def inner(carry, w):
        return jnp.tanh(carry @ w), None

    def outer(carry, _):
        return jax.lax.scan(inner, carry, ws)[0], None

    return jax.lax.scan(outer, x, None, length=5)[0]


@pytest.mark.parametrize("known", [True, False])
def test_nested_loops_multiply(known):
    text = jax.jit(scanned).lower(jnp.ones((8, 16)), jnp.ones((3, 16, 16))).compile().as_text()
    if not known:
        assert "known_trip_count" in text
        # The trip count must come from the conditions.
        text = text.replace("known_trip_count", "unknown")
    module = parse(text)
    dots = [visit for visit in walk(module) if visit.instruction.opcode == "dot"]
    assert [dot.times for dot in dots] == [15] and len(dots[0].loops) == 2
    assert unknown_loops(module) == []


def test_loop_that_ends_by_data_is_counted_once_and_listed():
    def step(x):
        return jax.lax.while_loop(lambda x: jnp.sum(x) < 100.0, lambda x: x @ x, x)

    module = parse(jax.jit(step).lower(jnp.ones((8, 8))).compile().as_text())
    assert len(unknown_loops(module)) == 1
    assert [v.times for v in walk(module) if v.instruction.opcode == "dot"] == [1]


def test_all_branches_of_a_conditional_count():
    def step(flag, x):
        return jax.lax.cond(flag, lambda x: x @ x, lambda x: jnp.tanh(x @ x + x) @ x, x)

    module = parse(jax.jit(step).lower(True, jnp.ones((64, 64))).compile().as_text())
    assert len([v for v in walk(module) if v.instruction.opcode == "dot"]) == 3
