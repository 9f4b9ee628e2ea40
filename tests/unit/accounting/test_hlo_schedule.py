"""Every form of a collective in TPU and GPU programs is counted once, with what runs beside it."""

import pytest

from paxlike.accounting.hlo_schedule import read_schedule

MESH = {"data": 4, "model": 2}
GROUPS = "replica_groups={{0,2,4,6},{1,3,5,7}}"
HEAD = """HloModule m, is_scheduled=true

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add = f32[] add(%a, %b)
}
"""
MAIN = """
ENTRY %main (a: f32[8,8], w: f32[8,8]) -> f32[32,8] {
  %a = f32[8,8]{1,0} parameter(0)
  %w = f32[8,8]{1,0} parameter(1)
"""
PRODUCT = "dot(%a, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}"

SYNCHRONOUS = f"""{HEAD}{MAIN}
  %y = f32[8,8]{{1,0}} {PRODUCT}
  ROOT %whole = f32[32,8]{{1,0}} all-gather(%a), channel_id=7, {GROUPS}, dimensions={{0}}
}}
"""

# A TPU's TensorCore: a fusion starts it, the fusion of a product advances it, a fusion ends it.
FUSED = f"""{HEAD}
%begin (p0: f32[8,8]) -> (f32[8,8], f32[32,8], u32[]) {{
  %p0 = f32[8,8]{{1,0}} parameter(0)
  %whole = f32[32,8]{{1,0}} all-gather(%p0), channel_id=7, {GROUPS}, dimensions={{0}}
  ROOT %started = (f32[8,8]{{1,0}}, f32[32,8]{{1,0}}, u32[]{{:S(2)}}) custom-call(%p0, %whole), \
custom_call_target="AsyncCollectiveStart"
}}

%advance (p0: f32[8,8], p1: f32[32,8], p2: u32[], p3: f32[8,8]) -> (f32[8,8], f32[8,8], \
f32[32,8], u32[]) {{
  %p0 = f32[8,8]{{1,0}} parameter(0)
  %p1 = f32[32,8]{{1,0}} parameter(1)
  %p2 = u32[]{{:S(2)}} parameter(2)
  %p3 = f32[8,8]{{1,0}} parameter(3)
  %step = f32[32,8]{{1,0}} all-gather(%p0), channel_id=7, {GROUPS}, dimensions={{0}}
  %y = f32[8,8]{{1,0}} dot(%p0, %p3), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}
  ROOT %out = (f32[8,8]{{1,0}}, f32[8,8]{{1,0}}, f32[32,8]{{1,0}}, u32[]{{:S(2)}}) \
tuple(%y, %p0, %step, %p2)
}}

%end (p0: f32[8,8], p1: f32[32,8], p2: u32[]) -> f32[32,8] {{
  %p0 = f32[8,8]{{1,0}} parameter(0)
  %p1 = f32[32,8]{{1,0}} parameter(1)
  %p2 = u32[]{{:S(2)}} parameter(2)
  %last = f32[32,8]{{1,0}} all-gather(%p0), channel_id=7, {GROUPS}, dimensions={{0}}
  ROOT %done = f32[32,8]{{1,0}} custom-call(%p0, %p1, %last, %p2), \
custom_call_target="AsyncCollectiveDone"
}}
{MAIN}
  %start = (f32[8,8]{{1,0}}, f32[32,8]{{1,0}}, u32[]{{:S(2)}}) \
fusion(%a), kind=kCustom, calls=%begin
  %s0 = f32[8,8]{{1,0}} get-tuple-element(%start), index=0
  %s1 = f32[32,8]{{1,0}} get-tuple-element(%start), index=1
  %s2 = u32[]{{:S(2)}} get-tuple-element(%start), index=2
  %y = (f32[8,8]{{1,0}}, f32[8,8]{{1,0}}, f32[32,8]{{1,0}}, u32[]{{:S(2)}}) \
fusion(%s0, %s1, %s2, %w), kind=kOutput, calls=%advance
  %t0 = f32[8,8]{{1,0}} get-tuple-element(%y), index=1
  %t1 = f32[32,8]{{1,0}} get-tuple-element(%y), index=2
  %t2 = u32[]{{:S(2)}} get-tuple-element(%y), index=3
  ROOT %out = f32[32,8]{{1,0}} fusion(%t0, %t1, %t2), kind=kCustom, calls=%end
}}
"""

SPARSE_CORE = f"""{HEAD}
%on_sparse_core (p0: f32[8,8]) -> f32[32,8] {{
  %p0 = f32[8,8]{{1,0}} parameter(0)
  ROOT %whole = f32[32,8]{{1,0}} all-gather(%p0), channel_id=7, {GROUPS}, dimensions={{0}}
}}, execution_thread="sparsecore"
{MAIN}
  %start = ((f32[8,8]{{1,0}}), f32[32,8]{{1,0}}) call-start(%a), \
async_execution_thread="sparsecore", to_apply=%on_sparse_core
  %y = f32[8,8]{{1,0}} {PRODUCT}
  ROOT %out = f32[32,8]{{1,0}} call-done(%start)
}}
"""

WRAPPED = SPARSE_CORE.replace("call-start", "async-start").replace("call-done", "async-done")
WRAPPED = WRAPPED.replace("to_apply=%on", "calls=%on")

GPU_STREAM = f"""{HEAD}{MAIN}
  %start = (f32[8,8]{{1,0}}, f32[32,8]{{1,0}}) all-gather-start(%a), channel_id=7, {GROUPS}, \
dimensions={{0}}
  %y = f32[8,8]{{1,0}} {PRODUCT}
  ROOT %out = f32[32,8]{{1,0}} all-gather-done(%start)
}}
"""


def named(schedule, items):
    """Items with the names of work and the kinds of collectives."""
    found = []
    for kind, what, *inner in items:
        match kind:
            case "work":
                found.append((kind, schedule.work[what].name))
            case "loop":
                found.append((kind, what, named(schedule, inner[0])))
            case "done":
                found.append((kind, [schedule.collectives[i].kind for i in what]))
            case _:
                found.append((kind, schedule.collectives[what].kind))
    return found


def test_the_device_waits_for_a_single_instruction():
    schedule = read_schedule(SYNCHRONOUS, MESH)
    assert named(schedule, schedule.items) == [("work", "y"), ("wait", "all-gather")]


@pytest.mark.parametrize(
    "text", [FUSED, SPARSE_CORE, WRAPPED, GPU_STREAM], ids=["fused", "sparse core", "async", "gpu"]
)
def test_an_asynchronous_collective_is_counted_once_and_encloses_the_product(text):
    schedule = read_schedule(text, MESH)
    expected = [("start", "all-gather"), ("work", "y"), ("done", ["all-gather"])]
    assert named(schedule, schedule.items) == expected
    (found,), (plain,) = schedule.collectives, read_schedule(SYNCHRONOUS, MESH).collectives
    assert (found.axis, found.sent_bytes, found.times) == ("data", plain.sent_bytes, 1)
    assert found.sent_bytes == 3 * 8 * 8 * 4 and plain.alone and not found.alone


def test_the_product_beside_a_collective_moves_only_its_own_bytes():
    (work,) = read_schedule(FUSED, MESH).work
    # Two operands and a result of 8 x 8: not what the collective moves.
    assert (work.flops, work.bytes) == (2 * 8**3, 3 * 8 * 8 * 4)


NEIGHBORS = "{0,1},{1,0},{2,3},{3,2},{4,5},{5,4},{6,7},{7,6}"
LOOP = f"""{HEAD}
%body (state: (s32[], f32[8,8], (f32[8,8], f32[8,8], u32[], u32[]))) -> (s32[], f32[8,8], \
(f32[8,8], f32[8,8], u32[], u32[])) {{
  %state = (s32[], f32[8,8]{{1,0}}, (f32[8,8]{{1,0}}, f32[8,8]{{1,0}}, u32[], u32[])) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %w = f32[8,8]{{1,0}} get-tuple-element(%state), index=1
  %flying = (f32[8,8]{{1,0}}, f32[8,8]{{1,0}}, u32[], u32[]) get-tuple-element(%state), index=2
  %a = f32[8,8]{{1,0}} collective-permute-done(%flying)
  %next = (f32[8,8]{{1,0}}, f32[8,8]{{1,0}}, u32[], u32[]) collective-permute-start(%a), \
channel_id=2, source_target_pairs={{{NEIGHBORS}}}
  %y = f32[8,8]{{1,0}} {PRODUCT}
  %one = s32[] constant(1)
  %j = s32[] add(%i, %one)
  ROOT %out = (s32[], f32[8,8]{{1,0}}, (f32[8,8]{{1,0}}, f32[8,8]{{1,0}}, u32[], u32[])) \
tuple(%j, %y, %next)
}}

%condition (state: (s32[], f32[8,8], (f32[8,8], f32[8,8], u32[], u32[]))) -> pred[] {{
  %state = (s32[], f32[8,8]{{1,0}}, (f32[8,8]{{1,0}}, f32[8,8]{{1,0}}, u32[], u32[])) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %n = s32[] constant(5)
  ROOT %less = pred[] compare(%i, %n), direction=LT
}}
{MAIN.replace("f32[32,8]", "f32[8,8]")}
  %zero = s32[] constant(0)
  %first = (f32[8,8]{{1,0}}, f32[8,8]{{1,0}}, u32[], u32[]) collective-permute-start(%a), \
channel_id=1, source_target_pairs={{{NEIGHBORS}}}
  %state = (s32[], f32[8,8]{{1,0}}, (f32[8,8]{{1,0}}, f32[8,8]{{1,0}}, u32[], u32[])) \
tuple(%zero, %w, %first)
  %loop = (s32[], f32[8,8]{{1,0}}, (f32[8,8]{{1,0}}, f32[8,8]{{1,0}}, u32[], u32[])) \
while(%state), condition=%condition, body=%body
  %last = (f32[8,8]{{1,0}}, f32[8,8]{{1,0}}, u32[], u32[]) get-tuple-element(%loop), index=2
  ROOT %out = f32[8,8]{{1,0}} collective-permute-done(%last)
}}
"""


def test_a_collective_that_starts_in_the_previous_iteration():
    schedule = read_schedule(LOOP, MESH)
    before, inside = 0, 1  # in the order of the text
    assert [c.times for c in schedule.collectives] == [1, 5]
    start, (kind, times, body), last = schedule.items
    assert start == ("start", before) and (kind, times) == ("loop", 5)
    assert [item[0] for item in body] == ["done", "start", "work", "work"]
    assert sorted(body[0][1]) == [before, inside] and last == ("done", [inside])


@pytest.mark.parametrize(
    ("pairs", "shift", "block"),
    [
        ("{0,2},{2,4},{4,6},{6,0},{1,3},{3,5},{5,7},{7,1}", 1, 4),
        ("{2,0},{4,2},{6,4},{0,6},{3,1},{5,3},{7,5},{1,7}", -1, 4),
        ("{0,4},{2,6},{4,0},{6,2},{1,5},{3,7},{5,1},{7,3}", 2, 4),
        ("{0,2},{2,0},{4,6},{6,4}", 1, 2),
        ("{0,2},{2,4},{4,0}", 0, 0),
    ],
    ids=["ahead", "behind", "opposite", "in pairs", "no single distance"],
)
def test_the_distance_of_a_permutation(pairs, shift, block):
    text = f"""{HEAD}{MAIN.replace("f32[32,8]", "f32[8,8]")}
  ROOT %moved = f32[8,8]{{1,0}} collective-permute(%a), channel_id=1, \
source_target_pairs={{{pairs}}}
}}
"""
    (found,) = read_schedule(text, MESH).collectives
    assert (found.axis, found.shift, found.block) == ("data", shift, block)
