"""The matrix products of a traced program, against counts computed by hand."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from helpers import mesh_of, put, sharded_attention

from paxlike.accounting.jaxpr import count_products
from paxlike.nn.attention import Scores


def counted(function, *shapes, dtype=jnp.float32):
    return count_products(
        jax.make_jaxpr(function)(*(jax.ShapeDtypeStruct(shape, dtype) for shape in shapes))
    )


def layer(x, w):
    return jnp.tanh(x @ w)


X, W = (5, 7), (7, 7)
ONCE = 2 * 5 * 7 * 7


@pytest.mark.parametrize(
    ("function", "times"),
    [
        (layer, 1),
        (jax.jit(layer), 1),
        (jax.checkpoint(layer), 1),
        (jax.grad(lambda x, w: layer(x, w).sum(), (0, 1)), 3),
        (jax.grad(lambda x, w: jax.checkpoint(layer)(x, w).sum(), (0, 1)), 4),
        (lambda x, w: jax.lax.scan(lambda x, _: (layer(x, w), None), x, None, length=6)[0], 6),
        (
            jax.grad(
                lambda x, w: jax.lax.scan(lambda x, _: (layer(x, w), None), x, None, length=6)[
                    0
                ].sum(),
                (0, 1),
            ),
            18,
        ),
        (lambda x, w: jax.lax.fori_loop(0, 4, lambda _, x: layer(x, w), x), 4),
        (lambda x, w: jax.lax.cond(x[0, 0] > 0, lambda: layer(layer(x, w), w), lambda: x), 2),
        (lambda x, w: x * 2, 0),
    ],
)
def test_products_in_control_flow(function, times):
    products = counted(function, X, W)
    assert products.total == times * ONCE
    assert products.uncounted == ()


def test_custom_gradient_counts_once():
    """With a custom gradient, the jaxpr has the forward pass twice: as it runs, and in its rule."""

    @jax.custom_vjp
    def product(x, w):
        return x @ w

    product.defvjp(lambda x, w: (x @ w, (x, w)), lambda kept, g: (g @ kept[1].T, kept[0].T @ g))
    assert counted(product, X, W).total == ONCE
    assert counted(jax.grad(lambda x, w: product(x, w).sum(), (0, 1)), X, W).total == 3 * ONCE


def test_batched_and_contracted_over_several_dimensions():
    # 3 batches; 4 x 6 outputs each, sums over 5 x 2.
    function = functools.partial(jnp.einsum, "bmij,bijn->bmn")
    assert counted(function, (3, 4, 5, 2), (3, 5, 2, 6)).total == 2 * 3 * 4 * 6 * 10


def test_convolutions_by_window_and_group():
    plain = functools.partial(jax.lax.conv, window_strides=(1, 1), padding="VALID")
    # Outputs 2 x 8 x 5 x 5, each over 4 features and a window of 3 x 3.
    assert counted(plain, (2, 4, 7, 7), (8, 4, 3, 3)).total == 2 * (2 * 8 * 5 * 5) * 4 * 9
    grouped = functools.partial(
        jax.lax.conv_general_dilated, window_strides=(1,), padding="VALID", feature_group_count=4
    )
    assert counted(grouped, (2, 4, 7), (4, 1, 3)).total == 2 * (2 * 4 * 5) * 1 * 3


@pytest.mark.parametrize("mesh", [(1, 1, 1), (1, 2, 4), (2, 2, 2)])
def test_the_body_of_a_shard_map_runs_on_every_device(mesh):
    pod, data, model = mesh
    with jax.set_mesh(mesh_of(pod, data, model)):
        specs = (jax.P(("pod", "data"), "model"), jax.P("model", None))
        product = jax.shard_map(
            lambda x, w: jax.lax.psum(x @ w, "model"),
            in_specs=specs,
            out_specs=jax.P(("pod", "data")),
        )
        arguments = [
            jax.ShapeDtypeStruct(
                shape, jnp.float32, sharding=jax.NamedSharding(jax.sharding.get_mesh(), spec)
            )
            for shape, spec in zip([(16, 24), (24, 8)], specs, strict=True)
        ]
        assert count_products(jax.make_jaxpr(product)(*arguments)).total == 2 * 16 * 24 * 8


@pytest.mark.parametrize(
    ("gradients", "products", "window"), [(False, 2, 0), (True, 2 + 3 + 4, 0), (True, 9, 32)]
)
def test_splash_attention_by_its_formula(gradients, products, window):
    """The T x S products of the forward kernel and of the two backward kernels; T x W in a
    window.
    """
    B, T, N, H = 3, 256, 4, 128
    with jax.set_mesh(mesh_of()):
        q, k = (jnp.ones(shape, jnp.bfloat16) for shape in ((B, T, N, H), (B, T, 1, H)))
        qkv = put("BTNH", q), put("BSKH", k), put("BSKH", k)

        def function(*qkv):
            scores = Scores(window=window)
            return sharded_attention(*qkv, None, "splash", scores).astype(jnp.float32).sum()

        found = count_products(
            jax.make_jaxpr(jax.grad(function, (0, 1, 2)) if gradients else function)(*qkv)
        )
    # The backward pass also multiplies the output and its gradient, outside of the kernels.
    keys = window or T
    assert found.total == products * 2 * B * N * T * keys * H + gradients * 2 * B * N * T * H
    assert found.uncounted == ()


def test_cudnn_attention_by_its_formula(monkeypatch):
    """Traced as on a GPU; only JAX's check of the cuDNN version is patched."""
    fused = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    monkeypatch.setattr(fused, "check_cudnn_version", lambda: 91000)
    B, T, N, H = 2, 128, 4, 8
    with jax.set_mesh(mesh_of()):
        q, k = (jnp.ones(shape, jnp.bfloat16) for shape in ((B, T, N, H), (B, T, 1, H)))
        qkv = put("BTNH", q), put("BSKH", k), put("BSKH", k)

        def function(*qkv):
            return sharded_attention(*qkv, None, "cudnn").astype(jnp.float32).sum()

        found = count_products(jax.make_jaxpr(jax.grad(function, (0, 1, 2)))(*qkv))
    assert found.total == (2 + 5) * 2 * B * N * T * T * H
    assert found.uncounted == ()


def test_the_result_names_what_it_cannot_count():
    def halve(x, w):
        return jax.lax.while_loop(lambda x: x[0, 0] > 1, lambda x: layer(x, w) / 2, x)

    products = counted(halve, X, W)
    assert products.total == ONCE
    assert "while loop in the program" in products.uncounted[0]

    unknown = SimpleNamespace(
        primitive=SimpleNamespace(name="pallas_call"),
        params={"name": "mine"},
        invars=[],
        source_info=SimpleNamespace(name_stack=""),
    )
    program = SimpleNamespace(jaxpr=SimpleNamespace(eqns=[unknown]))
    assert count_products(program).uncounted == ("kernel mine",)
