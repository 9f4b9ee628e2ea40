"""The sharded matmuls: their values and gradients against plain einsums, and the collectives of the program they compile to."""

import collections
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import device_batch, error, host_batch, host_params, mean_loss, mesh_of, model_config, place, put
from jax.sharding import NamedSharding

from paxlike.accounting.hlo_collectives import list_collectives
from paxlike.config import PrecisionConfig
from paxlike.nn.einsum import combine, project
from paxlike.parallel.mesh import spec, weight_spec

B, T, L = 8, 20, 3
D, F, N, H = 32, 48, 8, 4
WEIGHTS = {"DNH": (D, N, H), "DF": (D, F), "NHD": (N, H, D), "FD": (F, D)}


# ---- values ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(1, 1, 1), (1, 2, 4), (2, 2, 2)], ids=lambda sizes: "x".join(map(str, sizes)))
@pytest.mark.parametrize("K", [1, 8])
def test_project_and_combine_are_einsums(sizes, K):
    """Outputs and every gradient. With K = 1 the weight has no letter on `model`, and its product is a sum over it."""
    random = np.random.default_rng(0)
    shapes = {
        "BTD": (B, T, D),
        "BTNH": (B, T, N, H),
        "BTKH": (B, T, K, H),
        "BTF": (B, T, F),
        "DKH": (D, K, H),
        **WEIGHTS,
    }
    given = {letters: random.standard_normal(shape).astype(np.float32) for letters, shape in shapes.items()}

    def ours(a):
        q, k, h = project(
            a["BTD"], "BTD,DNH->BTNH", a["DNH"], "BTD,DKH->BTKH", a["DKH"], "BTD,DF->BTF", a["DF"], gradients="float32"
        )
        back = combine("BTNH,NHD->BTD", a["BTNH"], a["NHD"], "BTF,FD->BTD", a["BTF"], a["FD"], gradients="float32")
        return q, k, h, back

    def plain(a):
        outs = [
            jnp.einsum(f"BTD,{w}->{out}", a["BTD"], a[w])
            for w, out in (("DNH", "BTNH"), ("DKH", "BTKH"), ("DF", "BTF"))
        ]
        return *outs, jnp.einsum("BTNH,NHD->BTD", a["BTNH"], a["NHD"]) + jnp.einsum("BTF,FD->BTD", a["BTF"], a["FD"])

    def both(f, a, cotangents):
        outs, pull = jax.vjp(f, a)
        return outs, pull(cotangents)[0]

    names = ("BTNH", "BTKH", "BTF", "BTD")
    cotangents = [random.standard_normal(shapes[name]).astype(np.float32) for name in names]
    expected = both(plain, given, tuple(cotangents))
    with jax.set_mesh(mesh_of(*sizes)):
        places = {letters: (spec if letters[0] == "B" else weight_spec)(letters, shapes[letters]) for letters in shapes}
        placed = jax.device_put(
            given, {letters: NamedSharding(jax.sharding.get_mesh(), p) for letters, p in places.items()}
        )
        actual = jax.jit(functools.partial(both, ours))(placed, tuple(map(put, names, cotangents)))
        for letters, gradient in actual[1].items():
            assert jax.typeof(gradient) == jax.typeof(placed[letters]), letters
        for name, got, wanted in zip(names, jax.device_get(actual[0]), expected[0], strict=True):
            assert error(got, wanted) < 2e-6, name
        for letters, gradient in jax.device_get(actual[1]).items():
            assert error(gradient, expected[1][letters]) < 2e-6, letters


# ---- the compiled program ----------------------------------------------------------------------------------------------


def loss_gradient(config, batch):
    """The jitted gradient of a PaLM block's scan, and its parameters on the mesh in force."""
    return jax.jit(jax.grad(functools.partial(mean_loss, config))), place(config, host_params(config)), batch


def block_collectives(sizes, **changes):
    """[(kind, axis, payload)] of one layer, forward and backward, on a pod x data x model mesh."""
    config = model_config(layers=L, **changes)
    with jax.set_mesh(mesh_of(*sizes)):
        step, *arguments = loss_gradient(config, device_batch(host_batch(config, B, T)))
        text = step.lower(*arguments).compile().as_text()
    rows = list_collectives(text, dict(zip(("pod", "data", "model"), sizes, strict=True)))
    assert {row.times for row in rows if row.in_loop} == {L}
    return config.model, [(row.kind, row.axis, row.payload) for row in rows if row.in_loop]


def sent(rows):
    """Bytes by kind and axis: sums, because a compiler may join what is sent at one time."""
    sums = collections.Counter()
    for kind, axis, payload in rows:
        sums[kind, axis] += payload
    return sums


def weight_bytes(model):
    one_layer = 2 * D * N * H + 2 * D * model.kv_heads * H + 3 * D * F
    return 4 * one_layer


def test_collectives_of_a_multi_head_block():
    """1 x 2 x 4: weights gathered over data, twice; gradients scattered, once; five passages of the stream over model.

    The XLA of CPUs leaves reduce-scatters as they are written, so that the list is exact.
    """
    model, rows = block_collectives((1, 2, 4), kv_heads=8)
    gathered, stream, statistics = weight_bytes(model) // 4, 4 * (B // 2) * T * D, 4 * (B // 2) * T
    sums = sent(rows)
    assert sums.pop(("all-gather", "data")) == 2 * gathered
    assert sums.pop(("reduce-scatter", "data")) == gathered
    assert sums.pop(("all-gather", "model")) == 3 * stream  # to the projections; both sides' gradients
    assert sums.pop(("reduce-scatter", "model")) == 2 * stream  # from the block; its gradient
    assert sums.pop(("all-reduce", "data")) == 4 * D // 4  # the norm scale's gradient, as it lies
    assert sums.pop(("all-reduce", "model")) <= 4 * statistics  # of the norm, forward and backward
    assert not sums


def test_multi_query_sums_keys_and_values_over_model():
    """Beside what a multi-head block sends: the one key/value head's products, and their gradients."""
    model, rows = block_collectives((1, 2, 4), kv_heads=1)
    head, statistics = 4 * (B // 2) * T * H, 4 * (B // 2) * T
    whole = [
        payload for kind, axis, payload in rows if (kind, axis) == ("all-reduce", "model") and payload > statistics
    ]
    assert sum(whole) == 2 * 2 * head
    in_use = weight_bytes(model) // 4  # cut over model, whether by heads or by D
    assert sent(rows)["all-gather", "data"] == 2 * in_use
    assert sent(rows)["reduce-scatter", "data"] == in_use
    assert sent(rows)["all-reduce", "data"] == 4 * D // 4


def test_only_the_gradients_shards_cross_pods():
    """2 x 2 x 2: what is summed over pod is each device's own share of the gradient; nothing else goes there."""
    model, rows = block_collectives((2, 2, 2), kv_heads=8)
    across = [(kind, payload) for kind, axis, payload in rows if "pod" in axis]
    assert {kind for kind, _ in across} == {"all-reduce"}
    assert sum(payload for _, payload in across) == weight_bytes(model) // 4 + 4 * D // 2
    assert sent(rows)["reduce-scatter", "data"] == weight_bytes(model) // 2


# ---- dtypes ------------------------------------------------------------------------------------------------------------


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
    """Under bfloat16 compute: gathers and the stream in bfloat16, the reduction of gradients in `gradients`, over pod too.

    Read before compilation: the XLA of CPUs widens bfloat16 collectives to float32.
    """
    config = dataclasses.replace(model_config(kv_heads=8), precision=PrecisionConfig("bfloat16", gradients=gradients))
    with jax.set_mesh(mesh_of(2, 2, 2)):
        step, *arguments = loss_gradient(config, device_batch(host_batch(config, B, T)))
        traced = jax.make_jaxpr(step)(*arguments)
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
