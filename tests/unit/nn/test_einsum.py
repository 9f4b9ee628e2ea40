"""Sharded matmuls: values and gradients against plain einsums, and the compiled collectives."""

import collections
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    device_batch,
    error,
    host_batch,
    host_params,
    mesh_of,
    model_config,
    place,
    put,
    stream_products,
    stream_update,
    terms,
    training_loss,
)
from jax.sharding import NamedSharding

from paxlike.accounting.hlo_collectives import list_collectives
from paxlike.config import PrecisionConfig
from paxlike.nn.collectives import on_devices
from paxlike.nn.einsum import Kernel, einsum
from paxlike.parallel.mesh import spec, weight_spec

B, T, L = 8, 20, 3
D, F, N, H = 32, 48, 8, 4
WEIGHTS = {"DNH": (D, N, H), "DF": (D, F), "NHD": (N, H, D), "FD": (F, D)}
FROM_STREAM = ("BTD,DNH->BTNH", "BTD,DKH->BTKH", "BTD,DF->BTF")
TO_STREAM = ("BTNH,NHD->BTD", "BTF,FD->BTD")


# ---- values --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sizes", [(1, 1, 1), (1, 2, 4), (2, 2, 2)], ids=lambda sizes: "x".join(map(str, sizes))
)
@pytest.mark.parametrize("K", [1, 8])
def test_values_and_gradients_are_those_of_plain_einsums(sizes, K):
    """With K = 1 no letter of wk_DKH is sharded over `model`, and its product is summed over it."""
    random = np.random.default_rng(0)
    shapes = {
        "BTD": (B, T, D), "BTNH": (B, T, N, H), "BTKH": (B, T, K, H), "BTF": (B, T, F),
        "DKH": (D, K, H), **WEIGHTS,
    }  # fmt: skip
    given = {
        letters: random.standard_normal(shape).astype(np.float32)
        for letters, shape in shapes.items()
    }

    def sharded(a):
        outs = stream_products(FROM_STREAM, a["BTD"], [a[terms(e)[1]] for e in FROM_STREAM])
        pairs = [(a[x], a[w]) for x, w, _ in map(terms, TO_STREAM)]
        return *outs, stream_update(TO_STREAM, *zip(*pairs, strict=True))

    def plain(a):
        one = {e: jnp.einsum(e, *(a[d] for d in terms(e)[:2])) for e in (*FROM_STREAM, *TO_STREAM)}
        return *(one[e] for e in FROM_STREAM), sum(one[e] for e in TO_STREAM)

    def both(f, a, cotangents):
        outs, pull = jax.vjp(f, a)
        return outs, pull(cotangents)[0]

    names = ("BTNH", "BTKH", "BTF", "BTD")
    cotangents = [random.standard_normal(shapes[name]).astype(np.float32) for name in names]
    expected = both(plain, given, tuple(cotangents))
    with jax.set_mesh(mesh_of(*sizes)):
        places = {
            letters: (spec if letters[0] == "B" else weight_spec)(letters, shapes[letters])
            for letters in shapes
        }
        mesh = jax.sharding.get_mesh()
        placed = jax.device_put(given, {d: NamedSharding(mesh, p) for d, p in places.items()})
        step = jax.jit(functools.partial(both, sharded))
        actual = step(placed, tuple(map(put, names, cotangents)))
        for letters, gradient in actual[1].items():
            assert jax.typeof(gradient) == jax.typeof(placed[letters]), letters
        for name, got, wanted in zip(names, jax.device_get(actual[0]), expected[0], strict=True):
            assert error(got, wanted) < 2e-6, name
        for letters, gradient in jax.device_get(actual[1]).items():
            assert error(gradient, expected[1][letters]) < 2e-6, letters


def test_no_gathered_array_is_kept_for_the_backward_pass():
    """It keeps the shards that it was given, of the weights and of x, and gathers them again."""
    with jax.set_mesh(mesh_of(1, 2, 4)):
        place_x, place_w = spec("BTF", (B, T, F)), weight_spec("FD", (F, D))

        def kept(x_BTF, shard_FD):
            def product(x, w):
                return einsum("BTF,FD->BTD", x, Kernel(w, tuple(place_w), "float32"))

            return jax.tree.leaves(jax.vjp(product, x_BTF, shard_FD)[1])

        run = on_devices(kept, (place_x, place_w), jax.P())
        arrays = jax.device_put(
            (jnp.zeros((B, T, F)), jnp.zeros((F, D))),
            tuple(NamedSharding(jax.sharding.get_mesh(), spec) for spec in (place_x, place_w)),
        )
        shapes = {x.shape for x in jax.eval_shape(run, *arrays)}
    assert shapes == {(B // 2, T, F // 4), (F // 4, D // 2)}


# ---- the compiled program ------------------------------------------------------------------------


def training_gradients(config, params, batch):
    return training_loss(config, params, batch)[1]


def block_collectives(sizes, **changes):
    """[(kind, axis, payload)] of one layer, forward and backward, on a pod x data x model mesh."""
    config = model_config(layers=L, **changes)
    with jax.set_mesh(mesh_of(*sizes)):
        step = jax.jit(functools.partial(training_gradients, config))
        arguments = place(config, host_params(config)), device_batch(host_batch(config, B, T))
        text = step.lower(*arguments).compile().as_text()
    rows = list_collectives(text, dict(zip(("pod", "data", "model"), sizes, strict=True)))
    assert {row.times for row in rows if row.in_loop} == {L}
    return config.model, [(row.kind, row.axis, row.payload) for row in rows if row.in_loop]


def sent(rows):
    """Bytes by kind and axis: sums, because a compiler may combine collectives."""
    sums = collections.Counter()
    for kind, axis, payload in rows:
        sums[kind, axis] += payload
    return sums


def weight_bytes(model):
    one_layer = 2 * D * N * H + 2 * D * model.kv_heads * H + 3 * D * F
    return 4 * one_layer


def test_collectives_of_a_multi_head_block():
    """1 x 2 x 4: weights are gathered twice over `data` and their gradients scattered once; the
    stream passes over `model` five times.

    XLA's CPU backend leaves reduce-scatters as they are, so that the list is exact.
    """
    model, rows = block_collectives((1, 2, 4), kv_heads=8)
    gathered, stream, statistics = weight_bytes(model) // 4, 4 * (B // 2) * T * D, 4 * (B // 2) * T
    sums = sent(rows)
    assert sums.pop(("all-gather", "data")) == 2 * gathered
    assert sums.pop(("reduce-scatter", "data")) == gathered
    # For the projections, forward and backward; the gradient of the block's output.
    assert sums.pop(("all-gather", "model")) == 3 * stream
    # The block's output; the gradient of its input.
    assert sums.pop(("reduce-scatter", "model")) == 2 * stream
    assert sums.pop(("all-reduce", "data")) == 4 * D // 4  # the norm scale's gradient, as sharded
    assert sums.pop(("all-reduce", "model")) <= 4 * statistics  # of the norm, forward and backward
    assert not sums


def test_multi_query_sums_keys_and_values_over_model():
    """In addition to what a multi-head block sends: the key/value head's products, and their
    gradients."""
    model, rows = block_collectives((1, 2, 4), kv_heads=1)
    head, statistics = 4 * (B // 2) * T * H, 4 * (B // 2) * T
    whole = [
        payload
        for kind, axis, payload in rows
        if (kind, axis) == ("all-reduce", "model") and payload > statistics
    ]
    assert sum(whole) == 2 * 2 * head
    in_use = weight_bytes(model) // 4  # sharded over model, by heads or by D
    assert sent(rows)["all-gather", "data"] == 2 * in_use
    assert sent(rows)["reduce-scatter", "data"] == in_use
    assert sent(rows)["all-reduce", "data"] == 4 * D // 4


def test_only_gradient_shards_cross_pods():
    """2 x 2 x 2: each device sums its own shard of the gradient over `pod`, and nothing else."""
    model, rows = block_collectives((2, 2, 2), kv_heads=8)
    across = [(kind, payload) for kind, axis, payload in rows if "pod" in axis]
    assert {kind for kind, _ in across} == {"all-reduce"}
    assert sum(payload for _, payload in across) == weight_bytes(model) // 4 + 4 * D // 2
    assert sent(rows)["reduce-scatter", "data"] == weight_bytes(model) // 2


# ---- dtypes --------------------------------------------------------------------------------------


def equations(jaxpr):
    """Every equation of a jaxpr and of those inside it."""
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(equation.params, is_leaf=lambda value: hasattr(value, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


@pytest.mark.parametrize("gradients", ["float32", "bfloat16"])
def test_gradients_are_reduced_in_their_own_dtype(gradients):
    """Under bfloat16 compute, gathers and the stream are bfloat16. Gradients are reduced in
    `gradients`, also over `pod`.

    Read before compilation: XLA's CPU backend widens bfloat16 collectives to float32.
    """
    config = dataclasses.replace(
        model_config(kv_heads=8), precision=PrecisionConfig("bfloat16", gradients=gradients)
    )
    with jax.set_mesh(mesh_of(2, 2, 2)):
        arguments = place(config, host_params(config)), device_batch(host_batch(config, B, T))
        traced = jax.make_jaxpr(functools.partial(training_gradients, config))(*arguments)
    dtypes = collections.defaultdict(set)
    for equation in equations(traced.jaxpr):
        axes = equation.params.get("axis_name", equation.params.get("axes"))
        if equation.primitive.name in ("all_gather", "reduce_scatter", "psum", "psum_invariant"):
            for variable in equation.invars:
                if variable.aval.ndim > 1:  # not the losses, not a token's statistics
                    dtypes[equation.primitive.name, axes if isinstance(axes, str) else axes[0]].add(
                        variable.aval.dtype.name
                    )
    assert dtypes["reduce_scatter", "data"] == {gradients}
    assert dtypes["psum", "pod"] == {gradients}
    assert dtypes["all_gather", "data"] == dtypes["all_gather", "model"] == {"bfloat16"}
    assert dtypes["reduce_scatter", "model"] == {"bfloat16"}
