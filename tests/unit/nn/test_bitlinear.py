"""The quantized projections: their values and gradients against the papers' formulas, and what the compiled program sends."""

import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_bitnet as reference
from helpers import device_batch, error, host_batch, host_params, mean_loss, mesh_of, model_config, place, put
from jax.sharding import NamedSharding

from paxlike.accounting.hlo_collectives import added, list_collectives
from paxlike.config import MeshConfig, QuantConfig
from paxlike.nn import bitlinear, einsum
from paxlike.parallel.mesh import make_mesh, spec, weight_spec
from paxlike.plan.topology import tpu_devices
from paxlike.quant.tiles import tiles

B, T = 8, 4
D, F, N, H = 64, 96, 8, 4
G, R = 8, 2
PROJECTIONS = {
    "DNH": ("BTD,DNH->BTNH", (D, N, H)), "DF": ("BTD,DF->BTF", (D, F)), "D1H": ("BTD,DKH->BTKH", (D, 1, H)),
    "D2H": ("BTD,DKH->BTKH", (D, 2, H)), "D8H": ("BTD,DKH->BTKH", (D, 8, H)),
    "NHD": ("BTNH,NHD->BTD", (N, H, D)), "FD": ("BTF,FD->BTD", (F, D)),
}  # fmt: skip
SHAPES = {"BTD": (B, T, D), "BTNH": (B, T, N, H), "BTF": (B, T, F)}
KINDS = {
    "paper": QuantConfig(weights="bitnet", groups=G, data_tiles=R),
    "ternary-code": QuantConfig(weights="bitnet_b158", variant="code", groups=G),
    "ungrouped": QuantConfig(weights="bitnet", statistics="token"),
}


def how(quant: QuantConfig, integer: bool = True) -> bitlinear.How:
    return bitlinear.How(quant, 1e-6, integer, "float32")


def apply(einsum_: str, how_: bitlinear.How, x, w):
    if einsum_.startswith("BTD"):
        return bitlinear.project(x, einsum_, w, how=how_)[0]
    return bitlinear.combine(einsum_, x, w, how=how_)


def terms(einsum_: str) -> tuple[str, str, str]:
    x, w = einsum_.split("->")[0].split(",")
    return x, w, einsum_.split("->")[1]


def operands(name: str, seed: int = 0):
    einsum_, shape = PROJECTIONS[name]
    x_letters, w_letters, out = terms(einsum_)
    random = np.random.default_rng(seed)
    sizes = dict(zip(x_letters + w_letters, SHAPES[x_letters] + shape, strict=True))
    draw = [SHAPES[x_letters], shape, tuple(sizes[d] for d in out)]
    return [random.standard_normal(size).astype(np.float32) for size in draw]


def value_and_pull(einsum_, how_, x, w, dy):
    y, pull = jax.vjp(functools.partial(apply, einsum_, how_), x, w)
    return y, *pull(dy)


def store(letters, w):
    """A weight on the mesh in force."""
    return jax.device_put(w, NamedSharding(jax.sharding.get_mesh(), weight_spec(letters, w.shape)))


def on_mesh(name, quant, sizes, integer=True):
    """(y, dx, dw) on the host."""
    einsum_ = PROJECTIONS[name][0]
    x_letters, w_letters, out = terms(einsum_)
    x, w, dy = operands(name)
    with jax.set_mesh(mesh_of(*sizes)):
        run = jax.jit(functools.partial(value_and_pull, einsum_, how(quant, integer)))
        return jax.device_get(run(put(x_letters, x), store(w_letters, w), put(out, dy)))


# ---- values ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", PROJECTIONS)
def test_values_and_gradients_follow_the_formulas(name, kind):
    """On 2 x 4, against float64 numpy that knows nothing of a mesh."""
    quant, (einsum_, _) = KINDS[kind], PROJECTIONS[name]
    x, w, dy = operands(name)
    inner = 2 if name == "NHD" else 1
    matrix, flat_x, flat_dy = w.reshape(int(np.prod(w.shape[:inner])), -1), x.reshape(B, T, -1), dy.reshape(B, T, -1)
    groups = quant.groups if name in ("NHD", "FD") else 1
    cut = tiles(terms(einsum_)[1], w.shape, quant)
    y, dx, dw = on_mesh(name, quant, (1, 2, 4))
    assert error(y, reference.bitlinear(flat_x, matrix, groups, cut, quant, 1e-6).reshape(y.shape)) < 2e-6
    wanted = reference.bitlinear_gradients(flat_x, matrix, flat_dy, groups, cut, quant, 1e-6)
    assert error(dx, wanted[0].reshape(x.shape)) < 2e-6
    assert error(dw, wanted[1].reshape(w.shape)) < 2e-6


def test_shifted_inputs_are_of_the_projection_before_the_non_linearity():
    """The first one onto feed-forward columns alone: the gate of SwiGLU, or up where there is no gate."""
    quant = QuantConfig(weights="bitnet", statistics="token", nonnegative=True)
    (x, gate, _), (_, up, _), (_, q, _) = operands("DF"), operands("DF", 1), operands("DNH")

    @jax.jit
    def run(x, q, gate, up):
        return bitlinear.project(x, "BTD,DNH->BTNH", q, "BTD,DF->BTF", gate, "BTD,DF->BTF", up, how=how(quant))

    with jax.set_mesh(mesh_of()):
        outs = run(put("BTD", x), store("DNH", q), store("DF", gate), store("DF", up))
    for y, w, shifted in zip(outs, (q, gate, up), (False, True, False), strict=True):
        wanted = reference.bitlinear(x, w.reshape(D, -1), 1, (1, 1), quant, 1e-6, shifted)
        assert error(y, wanted.reshape(y.shape)) < 2e-6


@pytest.mark.parametrize("name", ["DF", "D1H", "FD"])
def test_int8_products_are_the_float_emulation_to_the_bit(name):
    """Forward and gradients, with several tiles to a sum."""
    for ours, other in zip(
        *(on_mesh(name, KINDS["paper"], (1, 1, 2), integer) for integer in (True, False)), strict=True
    ):
        np.testing.assert_array_equal(ours, other)


# ---- the compiled program ----------------------------------------------------------------------------------------------


def projection_sends(name, quant, devices, dtype=jnp.float32):
    """Collectives of a projection's forward and backward on 2 x 4; unquantized with quant None.

    Key/value weights come with the queries', as in the model: with fewer heads than shards they would need no gathered x of
    their own, but where the queries' x is gathered anyway, SubLN takes its statistics from that.
    """
    einsum_, w_shape = PROJECTIONS[name]
    x_letters, w_letters, out = terms(einsum_)
    both = {"plain": (einsum.project, einsum.combine), "quantized": (bitlinear.project, bitlinear.combine)}
    project, combine = both["quantized" if quant else "plain"]
    settings = {"how": how(quant)} if quant else {"gradients": "float32"}

    def forward(x, w, wq):
        if w_letters == "DKH":
            return project(x, einsum_, w, "BTD,DNH->BTNH", wq, **settings)
        if einsum_.startswith("BTD"):
            return project(x, einsum_, w, **settings)
        return combine(einsum_, x, w, **settings)

    def run(x, w, wq):
        y, pull = jax.vjp(forward, x, w, wq)
        return y, pull(y)

    sizes = {"pod": 1, "data": 2, "model": 4}
    with jax.set_mesh(make_mesh(MeshConfig(**sizes), devices)):
        shaped = (
            (spec, x_letters, SHAPES[x_letters], dtype),
            *(
                (weight_spec, letters, shape, jnp.float32)
                for letters, shape in ((w_letters, w_shape), ("DNH", (D, N, H)))
            ),
        )
        mesh = jax.sharding.get_mesh()
        structs = [
            jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, rule(letters, shape)))
            for rule, letters, shape, dtype in shaped
        ]
        return list_collectives(jax.jit(run).lower(*structs).compile().as_text(), sizes)


GROUPED = QuantConfig(weights="bitnet", groups=G)


@pytest.mark.parametrize("name", PROJECTIONS)
def test_groups_add_nothing_to_what_a_projection_sends(name):
    """Kind, axis and bytes, forward and backward. Without groups, alpha and beta are summed over `model`."""
    plain, grouped, ungrouped = (projection_sends(name, q, jax.devices()) for q in (None, GROUPED, KINDS["ungrouped"]))
    assert plain and added(grouped, plain) == []
    assert {(row.kind, row.axis) for row in added(ungrouped, plain)} == {("all-reduce", "model")}


def block_sends(quant, devices, **words):
    """Of a scanned block's forward and backward."""
    config = model_config(layers=3, quant=quant, **words)
    with jax.set_mesh(mesh_of(data=2, model=4)):
        batch = device_batch(host_batch(config, B, 20))
        step = jax.jit(jax.grad(functools.partial(mean_loss, config)))
        text = step.lower(place(config, host_params(config)), batch).compile().as_text()
    return [c for c in list_collectives(text, {"pod": 1, "data": 2, "model": 4}) if c.in_loop]


@pytest.mark.parametrize("block", ["parallel", "serial"])
def test_groups_add_nothing_to_what_a_block_sends(block):
    words = {"block": block, "kv_heads": 2}
    plain, grouped = (block_sends(quant, jax.devices(), **words) for quant in (QuantConfig(), GROUPED))
    assert added(grouped, plain) == []
    # What is left is what the block's matmuls need: the norm's statistics and its scale's gradient are gone.
    assert not [c for c in grouped if c.kind == "all-reduce" and c.payload < 4 * B // 2 * 20 * H * 2]
    assert [c for c in plain if c.kind == "all-reduce" and c.payload < 4 * B // 2 * 20 * H * 2]


def test_without_groups_a_block_sends_statistics():
    """The tests above can fail: this is what they would see."""
    plain, ungrouped = (block_sends(quant, jax.devices()) for quant in (QuantConfig(), KINDS["ungrouped"]))
    assert {(row.kind, row.axis) for row in added(ungrouped, plain)} == {("all-reduce", "model")}
    tensor = block_sends(QuantConfig(weights="bitnet", groups=G, statistics="tensor"), jax.devices())
    statistics = [c for c in tensor if (c.kind, c.axis) == ("all-reduce", "data")]
    assert statistics and max(c.payload for c in statistics) <= 4 * 8


def test_tiles_send_one_bit_a_weight():
    """32 times fewer bytes than float32 (16 times fewer than bfloat16), and a scale for each tile; gradients go as before."""
    weights, tiles_ = F * D // 4, G // 4 * R  # on one model shard

    def over_data(kind, sent):
        return {c.dtype: c.payload for c in sent if (c.kind, c.axis) == (kind, "data")}

    whole, packed = (projection_sends("FD", quant, jax.devices()) for quant in (GROUPED, KINDS["paper"]))
    assert over_data("all-gather", whole) == {"f32": 4 * weights}
    assert over_data("all-gather", packed) == {"u8": weights // 8, "f32": 4 * tiles_}
    assert over_data("reduce-scatter", whole) == over_data("reduce-scatter", packed) == {"f32": 4 * weights}


# ---- ahead of time for TPUs --------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu (684 MB, extra tpu) is not installed")
@pytest.mark.parametrize("name", ["DNH", "D1H", "FD"])
def test_groups_add_nothing_on_tpus(name):
    devices = tpu_devices("v5p:2x2x2")
    plain, grouped, ungrouped = (
        projection_sends(name, q, devices, jnp.bfloat16) for q in (None, GROUPED, KINDS["ungrouped"])
    )
    assert plain and added(grouped, plain) == []
    assert {(row.kind, row.axis) for row in added(ungrouped, plain)} == {("all-reduce", "model")}


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu (684 MB, extra tpu) is not installed")
def test_tiles_send_a_sixteenth_of_bfloat16_on_tpus():
    """PaLM 8B's largest weight on 16 x 4 v5p chips: 134 MB of bfloat16 are gathered, or 8 MB of bits, on every model shard a quarter."""
    quant = QuantConfig(weights="bitnet", groups=4, data_tiles=16)
    sizes, shape = {"pod": 1, "data": 16, "model": 4}, (4096, 16_384)

    def gathered(settings, project):
        def run(x, w):
            y, pull = jax.vjp(lambda x, w: project(x, "BTD,DF->BTF", w, **settings)[0], x, w)
            return y, pull(y)

        with jax.set_mesh(make_mesh(MeshConfig(**sizes), tpu_devices("v5p:4x4x4"))):
            mesh = jax.sharding.get_mesh()
            x_place, w_place = (
                NamedSharding(mesh, rule) for rule in (spec("BTD", (16, 128, 4096)), weight_spec("DF", shape))
            )
            x = jax.ShapeDtypeStruct((16, 128, 4096), jnp.bfloat16, sharding=x_place)
            w = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=w_place)
            sent = list_collectives(jax.jit(run).lower(x, w).compile().as_text(), sizes)
        return {c.dtype: c.payload for c in sent if (c.kind, c.axis) == ("all-gather", "data")}

    assert gathered({"gradients": "float32"}, einsum.project) == {"bf16": 2 * 4096 * 16_384 // 4}
    packed = gathered({"how": how(quant)}, bitlinear.project)
    assert packed.pop("u8") == 4096 * 16_384 // 4 // 8
    assert sum(packed.values()) <= 4 * 16  # the tiles' scales, where they are no all-reduce
