"""Collectives in compiled programs, and all notations of replica groups."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from paxlike.accounting.hlo_collectives import list_collectives, summarize

MESH = {"pod": 2, "data": 2, "model": 2}


def program(*instructions: str) -> str:
    parameter = "%x = bf16[16,64]{1,0} parameter(0)"
    return (
        "HloModule m\n\nENTRY %main (x: bf16[16,64]) -> f32[] {\n  "
        + "\n  ".join((parameter, *instructions))
        + "\n}\n"
    )


def one(instruction: str, mesh=MESH):
    (found,) = list_collectives(program(f"ROOT %c = {instruction}"), mesh)
    return found


@pytest.fixture(scope="module")
def step_text():
    """A scan over 3 layers on 2 x 4 devices. It gathers over data, sums over model, and
    reduce-scatters gradients over data.
    """
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)

    def device(ws, x):
        def block(x, w):
            whole = jax.lax.all_gather(w, "data", axis=0, tiled=True)
            return jax.lax.psum(jnp.tanh(x @ whole) @ whole.T, "model"), None

        return jax.lax.scan(block, x, ws)[0]

    def loss(ws, x):
        body = jax.shard_map(
            device, mesh=mesh,
            in_specs=(PartitionSpec(None, "data", "model"), PartitionSpec("data")),
            out_specs=PartitionSpec("data"),
        )  # fmt: skip
        return body(ws, x).sum()

    def shape(dims, *spec):
        return jax.ShapeDtypeStruct(
            dims, jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(*spec))
        )

    return (
        jax.jit(jax.grad(loss))
        .lower(shape((3, 32, 64), None, "data", "model"), shape((16, 32), "data"))
        .compile()
        .as_text()
    )


def test_scanned_step_on_simulated_devices(step_text):
    found = list_collectives(step_text, {"data": 2, "model": 4})
    gathers = [c for c in found if c.kind == "all-gather"]
    weight = 32 * 16 * 4  # gathered over data: [32, 64 / 4] of float32
    assert gathers and all(
        (c.axis, c.group_size, c.result_bytes, c.operand_bytes, c.times, c.in_loop)
        == ("data", 2, weight, weight // 2, 3, True)
        for c in gathers
    )
    assert {c.axis for c in found if c.kind == "reduce-scatter"} == {"data"}
    sums = [c for c in found if c.kind == "all-reduce" and c.axis == "model"]
    assert sums and all(c.payload == 8 * 32 * 4 and c.times == 3 for c in sums)
    rows = summarize(found)
    assert sum(row.times for row in rows) == sum(c.times for c in found)
    assert [row.sent_bytes for row in rows] == sorted(
        (row.sent_bytes for row in rows), reverse=True
    )


def test_a_ragged_all_to_all_sends_as_many_rows_as_the_smaller_array_holds():
    """On average. The other one has room for the most that can come, or return from it."""
    offsets = ", ".join(f"%{name}" for name in ("a", "b", "c", "d"))
    parameters = [
        "  %x = bf16[16,64]{1,0} parameter(0)",
        "  %buffer = bf16[48,64]{1,0} parameter(1)",
        *(f"  %{name} = s32[8]{{0}} parameter({2 + n})" for n, name in enumerate("abcd")),
    ]
    lines = {"there": ("48", "%x, %buffer"), "back": ("16", "%buffer, %x")}
    for rows, arrays in lines.values():
        text = "\n".join(
            [
                "HloModule m, is_scheduled=true\n",
                "ENTRY %main (x: bf16[16,64]) -> bf16[48,64] {",
                *parameters,
                f"  ROOT %r = bf16[{rows},64]{{1,0}} ragged-all-to-all({arrays}, {offsets}), "
                "channel_id=1, replica_groups={{0,1},{2,3}}",
                "}",
            ]
        )
        (found,) = list_collectives(text, {"data": 2, "expert": 2})
        assert (found.kind, found.axis, found.payload) == ("ragged-all-to-all", "expert", 2048)
        assert found.sent_bytes == 1024


@pytest.mark.parametrize(
    ("groups", "axis", "size"),
    [
        ("{{0,1},{2,3},{4,5},{6,7}}", "model", 2),
        ("{{0,2},{1,3},{4,6},{5,7}}", "data", 2),
        ("{{0,4},{1,5},{2,6},{3,7}}", "pod", 2),
        ("{{0,1,2,3},{4,5,6,7}}", "data+model", 4),
        ("{}", "pod+data+model", 8),
        ("[4,2]<=[8]", "model", 2),
        ("[4,2]<=[2,2,2]T(0,2,1)", "data", 2),
        ("[4,2]<=[2,4]T(1,0)", "pod", 2),
        ("[2,4]<=[8]", "data+model", 4),
        ("[1,8]<=[8]", "pod+data+model", 8),
        ("mesh['a'=4,'b'=2] {'b'}", "model", 2),
        ("mesh['a'=2,'b'=2,'c'=2] {'a','b'}", "pod+data", 4),
        ("mesh['axis_0'=8] {'axis_0':(2)2}", "data", 2),
        ("mesh['axis_0'=8] {'axis_0':(1)2}", "pod", 2),
        ("mesh['x'=2,'y'=4], device_ids=([4,2]T(1,0)) {'x'}", "model", 2),
        ("mesh['x'=4,'y'=2], device_ids=(0,4,1,5,2,6,3,7) {'y'}", "pod", 2),
        ("{{0,3},{1,2},{4,7},{5,6}}", "part of data+model", 2),
    ],
)
def test_notations_of_replica_groups(groups, axis, size):
    found = one(
        f"bf16[16,64]{{1,0}} all-reduce(%x), channel_id=1, replica_groups={groups}, "
        'use_global_device_ids=true, to_apply=%add, metadata={op_name="jit(step)/psum"}'
    )
    assert (found.axis, found.group_size, found.kind) == (axis, size, "all-reduce")
    assert found.op_name == "jit(step)/psum"


def test_groups_of_one_device_are_omitted():
    text = (
        "ROOT %c = bf16[16,64]{1,0} all-reduce(%x), "
        "replica_groups={{0},{1},{2},{3},{4},{5},{6},{7}}, to_apply=%add"
    )
    assert list_collectives(program(text), MESH) == []


SIZE = 16 * 64 * 2


@pytest.mark.parametrize(
    ("instructions", "kind", "operand", "result", "sent"),
    [
        (["ROOT %c = bf16[64,64]{1,0} all-gather(%x), replica_groups={{0,1,2,3},{4,5,6,7}}, "
          "dimensions={0}"],
         "all-gather", SIZE, 4 * SIZE, 3 * SIZE),
        (["%s = (bf16[16,64]{1,0}, bf16[64,64]{1,0}) all-gather-start(%x), "
          "replica_groups=[2,4]<=[8], dimensions={0}",
          "ROOT %d = bf16[64,64]{1,0} all-gather-done(%s)"],
         "all-gather", SIZE, 4 * SIZE, 3 * SIZE),
        (["%s = bf16[16,64]{1,0} all-reduce-start(%x), replica_groups=[2,4]<=[8], to_apply=%add",
          "ROOT %d = bf16[16,64]{1,0} all-reduce-done(%s)"],
         "all-reduce", SIZE, SIZE, 2 * SIZE * 3 // 4),
        (["ROOT %c = bf16[4,64]{1,0} reduce-scatter(%x), replica_groups=[2,4]<=[8], "
          "dimensions={0}, to_apply=%add"],
         "reduce-scatter", SIZE, SIZE // 4, SIZE * 3 // 4),
        (["%s = ((bf16[16,64]{1,0}), bf16[4,64]{1,0}) reduce-scatter-start(%x), "
          "replica_groups=[2,4]<=[8], dimensions={0}",
          "ROOT %d = bf16[4,64]{1,0} reduce-scatter-done(%s)"],
         "reduce-scatter", SIZE, SIZE // 4, SIZE * 3 // 4),
        (["%s = (bf16[16,64]{1,0}, bf16[16,64]{1,0}, u32[], u32[]) collective-permute-start(%x), "
          "source_target_pairs={{0,2},{2,0},{1,3},{3,1}}",
          "ROOT %d = bf16[16,64]{1,0} collective-permute-done(%s)"],
         "collective-permute", SIZE, SIZE, SIZE),
        (["%after = token[] after-all()",
          "%s = (bf16[16,64]{1,0}, u32[], token[]) send(%x, %after), channel_id=8, "
          "is_host_transfer=true, "
          'frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",'
          '_xla_megascale_target="{1,2}x{0:15}",_xla_megascale_transfer_type="ALL_REDUCE"}',
          "%r = (bf16[16,64]{1,0}, u32[], token[]) recv(%after), channel_id=9, "
          "is_host_transfer=true, "
          'frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}',
          "ROOT %d = token[] send-done(%s)"],
         "all-reduce", SIZE, SIZE, SIZE),
    ],
)  # fmt: skip
def test_bytes_and_asynchronous_pairs(instructions, kind, operand, result, sent):
    (found,) = list_collectives(program(*instructions), MESH)
    assert (found.kind, found.operand_bytes, found.result_bytes, found.sent_bytes) == (
        kind,
        operand,
        result,
        sent,
    )
    assert found.dtype == "bf16" and not found.in_loop


def test_operation_in_an_asynchronous_computation():
    text = """HloModule m

%wrapped (p: bf16[16,64]) -> bf16[4,64] {
  %p = bf16[16,64]{1,0} parameter(0)
  ROOT %rs = bf16[4,64]{1,0} reduce-scatter(%p), replica_groups=[2,4]<=[8], \
dimensions={0}, to_apply=%add
}

ENTRY %main (x: bf16[16,64]) -> bf16[4,64] {
  %x = bf16[16,64]{1,0} parameter(0)
  %start = ((bf16[16,64]{1,0}), bf16[4,64]{1,0}) async-start(%x), calls=%wrapped
  ROOT %done = bf16[4,64]{1,0} async-done(%start), calls=%wrapped
}
"""
    (found,) = list_collectives(text, MESH)
    assert (found.kind, found.axis, found.times) == ("reduce-scatter", "data+model", 1)


def test_variadic_collectives_sum_their_arrays():
    found = one(
        "(bf16[16,64]{1,0}, /*index=1*/bf16[16,64]{1,0}) all-reduce(%x, %x), "
        "replica_groups=[4,2]<=[8], to_apply=%add"
    )
    assert found.payload == 2 * SIZE


def test_program_of_one_slice_uses_axes_of_the_whole_mesh():
    """libtpu compiles one program per slice, with devices numbered from 0."""
    mesh = {"pod": 2, "data": 8, "model": 2}
    found = one(
        "bf16[16,64]{1,0} all-reduce(%x), "
        "replica_groups={{0,2,4,6,8,10,12,14},{1,3,5,7,9,11,13,15}}, to_apply=%a",
        mesh,
    )
    assert (found.axis, found.group_size) == ("data", 8)
    assert (
        one("bf16[16,64]{1,0} all-reduce(%x), replica_groups={{0,99}}, to_apply=%a", mesh).axis
        == "unknown"
    )


def test_all_reduce_fused_with_slice_is_a_reduce_scatter():
    """The TPU compiler writes some reduce-scatters like this."""
    text = """HloModule m

%all-reduce-scatter.1 (p0: f32[8,8]) -> f32[4,8] {
  %p0 = f32[8,8]{1,0} parameter(0)
  %whole = f32[8,8]{1,0} all-reduce(%p0), replica_groups={{0,1}}, to_apply=%sum
  %zero = s32[] constant(0)
  ROOT %mine = f32[4,8]{1,0} dynamic-slice(%whole, %zero, %zero), dynamic_slice_sizes={4,8}
}

ENTRY %main (a: f32[8,8]) -> f32[4,8] {
  %a = f32[8,8]{1,0} parameter(0)
  %start = (f32[8,8]{1,0}, f32[16,8]{1,0}) all-gather-start(%a), replica_groups={{0,1}}, \
dimensions={0}
  ROOT %out = f32[4,8]{1,0} fusion(%a), kind=kCustom, calls=%all-reduce-scatter.1
}
"""
    gather, scatter = list_collectives(text, {"data": 2})
    assert (scatter.kind, scatter.operand_bytes, scatter.result_bytes, scatter.sent_bytes) == (
        "reduce-scatter",
        256,
        128,
        128,
    )
    assert scatter.alone and not gather.alone
