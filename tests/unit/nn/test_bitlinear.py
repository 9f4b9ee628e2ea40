"""Quantized projections: values and gradients against the papers' formulas, and what is sent."""

import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_bitnet as reference
from helpers import (
    device_batch,
    error,
    host_batch,
    host_params,
    kernel,
    mesh_of,
    model_config,
    numerics_of,
    place,
    put,
    stream_products,
    stream_update,
    terms,
    training_loss,
)
from jax.sharding import NamedSharding

from paxlike.accounting.hlo_collectives import added, list_collectives
from paxlike.architecture.stack import groups
from paxlike.config import MeshConfig, QuantConfig
from paxlike.models.block import Weights
from paxlike.nn.bitlinear import BitLinear, Settings
from paxlike.nn.collectives import on_devices
from paxlike.nn.einsum import einsum
from paxlike.nn.quantized import layout_of
from paxlike.nn.stream import Stream
from paxlike.parallel.mesh import make_mesh, spec, weight_spec
from paxlike.planning.topology import tpu_devices
from paxlike.quant.tiles import tiles

B, T = 8, 4
D, F, N, H = 64, 96, 8, 4
G, R = 8, 2
PROJECTIONS = {
    "DNH": ("BTD,DNH->BTNH", (D, N, H)),
    "DF": ("BTD,DF->BTF", (D, F)),
    "D1H": ("BTD,DKH->BTKH", (D, 1, H)),
    "D2H": ("BTD,DKH->BTKH", (D, 2, H)),
    "D8H": ("BTD,DKH->BTKH", (D, 8, H)),
    "NHD": ("BTNH,NHD->BTD", (N, H, D)),
    "FD": ("BTF,FD->BTD", (F, D)),
}
SHAPES = {"BTD": (B, T, D), "BTNH": (B, T, N, H), "BTF": (B, T, F)}
KINDS = {
    "paper": QuantConfig(weights="bitnet", groups=G, data_tiles=R),
    "ternary-code": QuantConfig(weights="bitnet_b158", variant="code", groups=G),
    "ungrouped": QuantConfig(weights="bitnet", statistics="token"),
}


def making(quant: QuantConfig, integer: bool = True, shifted: bool = False):
    """How `stream_products` and `stream_update` make their weights."""

    def made(equation, shape, shard):
        settings = Settings(quant, 1e-6, integer, "float32")
        return BitLinear(shard, layout_of(terms(equation)[1], shape, quant), settings, shifted)

    return made


def apply(equation: str, made, x, w):
    """x_BTD times w, or the stream's update from heads or columns x."""
    if equation.startswith("BTD"):
        return stream_products([equation], x, [w], made)[0]
    return stream_update([equation], [x], [w], made)


def operands(name: str, seed: int = 0):
    equation, shape = PROJECTIONS[name]
    x_letters, w_letters, out = terms(equation)
    random = np.random.default_rng(seed)
    sizes = dict(zip(x_letters + w_letters, SHAPES[x_letters] + shape, strict=True))
    draw = [SHAPES[x_letters], shape, tuple(sizes[d] for d in out)]
    return [random.standard_normal(size).astype(np.float32) for size in draw]


def value_and_pull(equation, made, x, w, dy):
    y, pull = jax.vjp(functools.partial(apply, equation, made), x, w)
    return y, *pull(dy)


def store(letters, w):
    """A weight on the active mesh."""
    return jax.device_put(w, NamedSharding(jax.sharding.get_mesh(), weight_spec(letters, w.shape)))


def on_mesh(name, quant, sizes, integer=True):
    """(y, dx, dw) on the host."""
    equation = PROJECTIONS[name][0]
    x_letters, w_letters, out = terms(equation)
    x, w, dy = operands(name)
    with jax.set_mesh(mesh_of(*sizes)):
        run = jax.jit(functools.partial(value_and_pull, equation, making(quant, integer)))
        return jax.device_get(run(put(x_letters, x), store(w_letters, w), put(out, dy)))


# ---- values --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", PROJECTIONS)
def test_values_and_gradients_follow_the_formulas(name, kind):
    """On 2 x 4, against float64 NumPy without a mesh."""
    quant, (equation, _) = KINDS[kind], PROJECTIONS[name]
    x, w, dy = operands(name)
    inner = 2 if name == "NHD" else 1
    matrix, flat_x, flat_dy = (
        w.reshape(int(np.prod(w.shape[:inner])), -1),
        x.reshape(B, T, -1),
        dy.reshape(B, T, -1),
    )
    groups = quant.groups if name in ("NHD", "FD") else 1
    cut = tiles(terms(equation)[1], w.shape, quant)
    y, dx, dw = on_mesh(name, quant, (1, 2, 4))
    assert (
        error(y, reference.bitlinear(flat_x, matrix, groups, cut, quant, 1e-6).reshape(y.shape))
        < 2e-6
    )
    wanted = reference.bitlinear_gradients(flat_x, matrix, flat_dy, groups, cut, quant, 1e-6)
    assert error(dx, wanted[0].reshape(x.shape)) < 2e-6
    assert error(dw, wanted[1].reshape(w.shape)) < 2e-6


def test_shifted_and_plain_inputs_of_one_stream():
    """Weights that share a stream share its norm, but only those before the non-linearity have
    shifted inputs."""
    quant = QuantConfig(weights="bitnet", statistics="token", nonnegative=True)
    (x, gate, _), (_, up, _), (_, q, _) = operands("DF"), operands("DF", 1), operands("DNH")
    names = "DNH", "DF", "DF"
    weights, shifts = (q, gate, up), (False, True, False)

    def device(x, *weights):
        stream, outs = Stream(x), []
        for name, w, shifted in zip(names, weights, shifts, strict=True):
            equation = PROJECTIONS[name][0]
            outs.append(
                einsum(equation, stream, making(quant, True, shifted)(equation, w.shape, w))
            )
        return outs

    with jax.set_mesh(mesh_of()):
        outs = jax.jit(on_devices(device, jax.P(), jax.P()))(x, *weights)
    for y, w, shifted in zip(outs, weights, shifts, strict=True):
        wanted = reference.bitlinear(x, w.reshape(D, -1), 1, (1, 1), quant, 1e-6, shifted)
        assert error(y, wanted.reshape(y.shape)) < 2e-6


@pytest.mark.parametrize(("feed_forward", "shifted"), [("swiglu", "wgate_DF"), ("relu", "wup_DF")])
def test_shifted_inputs_are_of_the_projection_before_the_non_linearity(feed_forward, shifted):
    """The gate of SwiGLU, or up if there is no gate; none without `nonnegative`."""
    for nonnegative in (False, True):
        quant = QuantConfig(weights="bitnet", statistics="token", nonnegative=nonnegative)
        config = model_config(quant=quant, feed_forward=feed_forward)
        ((_, block, _),) = groups(config.model)
        with jax.set_mesh(mesh_of()):
            numerics = numerics_of(config)
            params = {
                spec.name: jnp.zeros(spec.shape(config.model))
                for spec in block.weights(config.model)
            }
            w = Weights(block, config.model, numerics, params, sum_gradients=False)
        found = [name for name in params if w[name].shifted]
        assert found == ([shifted] if nonnegative else [])


@pytest.mark.parametrize("name", ["DF", "D1H", "FD"])
def test_int8_products_equal_the_float_emulation_bit_for_bit(name):
    """Forward and gradients, with several tiles to a sum."""
    for ours, other in zip(
        *(on_mesh(name, KINDS["paper"], (1, 1, 2), integer) for integer in (True, False)),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, other)


# ---- the compiled program ------------------------------------------------------------------------


def projection_sends(name, quant, devices, dtype=jnp.float32):
    """Collectives of a projection, forward and backward, on 2 x 4. quant None: unquantized.

    Key/value weights come with the queries', as in the model. With fewer heads than shards they do
    not need a gathered x; but SubLN takes its statistics from the x that is gathered for queries.
    """
    equation, w_shape = PROJECTIONS[name]
    x_letters, w_letters, _ = terms(equation)
    made = making(quant) if quant else kernel

    def forward(x, w, wq):
        if w_letters == "DKH":
            return stream_products([equation, "BTD,DNH->BTNH"], x, [w, wq], made)
        return apply(equation, made, x, w)

    def run(x, w, wq):
        y, pull = jax.vjp(forward, x, w, wq)
        return y, pull(y)

    sizes = {"pod": 1, "data": 2, "model": 4}
    with jax.set_mesh(make_mesh(MeshConfig(**sizes), devices)):
        shaped = (
            (spec, x_letters, SHAPES[x_letters], dtype),
            (weight_spec, w_letters, w_shape, jnp.float32),
            (weight_spec, "DNH", (D, N, H), jnp.float32),
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
    """Kind, axis and bytes, forward and backward. Without groups, statistics are summed over
    `model`."""
    plain, grouped, ungrouped = (
        projection_sends(name, q, jax.devices()) for q in (None, GROUPED, KINDS["ungrouped"])
    )
    assert plain and added(grouped, plain) == []
    assert {(row.kind, row.axis) for row in added(ungrouped, plain)} == {("all-reduce", "model")}


def block_sends(quant, **changes):
    """Collectives of a scanned block, forward and backward, as a training step compiles it."""
    config = model_config(layers=3, quant=quant, **changes)
    with jax.set_mesh(mesh_of(data=2, model=4)):
        arguments = place(config, host_params(config)), device_batch(host_batch(config, B, 20))
        step = jax.jit(lambda *arguments: training_loss(config, *arguments)[1])
        text = step.lower(*arguments).compile().as_text()
    return [c for c in list_collectives(text, {"pod": 1, "data": 2, "model": 4}) if c.in_loop]


@pytest.mark.parametrize("block", ["parallel", "serial"])
@pytest.mark.slow
def test_groups_add_nothing_to_what_a_block_sends(block):
    plain, grouped = (
        block_sends(quant, block=block, kv_heads=2) for quant in (QuantConfig(), GROUPED)
    )
    assert added(grouped, plain) == []
    # Only what the matmuls need is left: not the norm's statistics, nor its scale's gradient.
    small = 4 * B // 2 * 20 * H * 2
    assert not [c for c in grouped if c.kind == "all-reduce" and c.payload < small]
    assert [c for c in plain if c.kind == "all-reduce" and c.payload < small]


@pytest.mark.slow
def test_without_groups_a_block_sends_statistics():
    """What the tests above would find if groups followed the mesh."""
    plain, ungrouped = (block_sends(quant) for quant in (QuantConfig(), KINDS["ungrouped"]))
    assert {(row.kind, row.axis) for row in added(ungrouped, plain)} == {("all-reduce", "model")}
    tensor = block_sends(QuantConfig(weights="bitnet", groups=G, statistics="tensor"))
    statistics = [c for c in tensor if (c.kind, c.axis) == ("all-reduce", "data")]
    assert statistics and max(c.payload for c in statistics) <= 4 * 8


def test_tiles_send_one_bit_a_weight():
    """A 32nd of float32 (a 16th of bfloat16), and a scale a tile. Gradients do not change."""
    weights, tiles_ = F * D // 4, G // 4 * R  # on one model shard

    def over_data(kind, sent):
        return {c.dtype: c.payload for c in sent if (c.kind, c.axis) == (kind, "data")}

    whole, packed = (
        projection_sends("FD", quant, jax.devices()) for quant in (GROUPED, KINDS["paper"])
    )
    assert over_data("all-gather", whole) == {"f32": 4 * weights}
    assert over_data("all-gather", packed) == {"u8": weights // 8, "f32": 4 * tiles_}
    assert (
        over_data("reduce-scatter", whole)
        == over_data("reduce-scatter", packed)
        == {"f32": 4 * weights}
    )


# ---- ahead of time for TPUs ----------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu (684 MB, extra tpu) is not installed"
)
@pytest.mark.parametrize("name", ["DNH", "D1H", "FD"])
def test_groups_add_nothing_on_tpus(name):
    devices = tpu_devices("v5p:2x2x2")
    plain, grouped, ungrouped = (
        projection_sends(name, q, devices, jnp.bfloat16)
        for q in (None, GROUPED, KINDS["ungrouped"])
    )
    assert plain and added(grouped, plain) == []
    assert {(row.kind, row.axis) for row in added(ungrouped, plain)} == {("all-reduce", "model")}


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu (684 MB, extra tpu) is not installed"
)
def test_tiles_send_a_sixteenth_of_bfloat16_on_tpus():
    """PaLM 8B's largest weight on 16 x 4 v5p chips, a quarter on each model shard: 134 MB of
    bfloat16 are gathered, or 8 MB of bits."""
    quant = QuantConfig(weights="bitnet", groups=4, data_tiles=16)
    sizes, shape = {"pod": 1, "data": 16, "model": 4}, (4096, 16_384)

    def gathered(made):
        def run(x, w):
            y, pull = jax.vjp(functools.partial(apply, "BTD,DF->BTF", made), x, w)
            return y, pull(y)

        with jax.set_mesh(make_mesh(MeshConfig(**sizes), tpu_devices("v5p:4x4x4"))):
            mesh = jax.sharding.get_mesh()
            x_place, w_place = (
                NamedSharding(mesh, rule)
                for rule in (spec("BTD", (16, 128, 4096)), weight_spec("DF", shape))
            )
            x = jax.ShapeDtypeStruct((16, 128, 4096), jnp.bfloat16, sharding=x_place)
            w = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=w_place)
            sent = list_collectives(jax.jit(run).lower(x, w).compile().as_text(), sizes)
        return {c.dtype: c.payload for c in sent if (c.kind, c.axis) == ("all-gather", "data")}

    assert gathered(kernel) == {"bf16": 2 * 4096 * 16_384 // 4}
    packed = gathered(making(quant))
    assert packed.pop("u8") == 4096 * 16_384 // 4 // 8
    assert sum(packed.values()) <= 4 * 16  # the tiles' scales, unless they are all-reduced
