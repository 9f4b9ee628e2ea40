"""Attention and its gradients, element by element, on one device and on meshes, against the
formula and its derivative in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import mesh_of, put, sharded_attention

from paxlike.nn.attention import Scores

KV_HEADS = pytest.mark.parametrize(
    "kv_heads", [1, 2, 4], ids=["multi-query", "grouped", "multi-head"]
)
SEGMENTS = pytest.mark.parametrize("segmented", [False, True], ids=["one document", "documents"])


def exact(q, k, v, segments, weights, how=Scores()):  # noqa: B008 - immutable
    """(o, dq, dk, dv) of sum(weights * o) in float64, from the formula and its derivative."""
    q, k, v, weights = (np.asarray(x, np.float64) for x in (q, k, v, weights))
    (_, T, N, H), K = q.shape, k.shape[2]
    many_k, many_v = (np.repeat(x, N // K, axis=2) for x in (k, v))
    allowed = np.arange(T)[:, None] >= np.arange(T)[None, :]
    if segments is not None:
        allowed = allowed & (segments[:, :, None] == segments[:, None, :])[:, None]
    if how.window:
        allowed = allowed & (np.arange(T)[:, None] - np.arange(T)[None, :] < how.window)
    scale = how.scale or 1 / np.sqrt(H)
    scores, slope = np.einsum("btnh,bsnh->bnts", q, many_k) * scale, 1.0
    if how.softcap:
        shares = np.tanh(scores / how.softcap)
        scores, slope = how.softcap * shares, 1 - shares**2
    scores = np.where(allowed, scores, -np.inf)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    dp = np.einsum("btnh,bsnh->bnts", weights, many_v)
    ds = p * (dp - (dp * p).sum(-1, keepdims=True)) * slope * scale

    def of_group(dx):
        return dx.reshape(*k.shape[:3], N // K, H).sum(3)

    return (
        np.einsum("bnts,bsnh->btnh", p, many_v),
        np.einsum("bnts,bsnh->btnh", ds, many_k),
        of_group(np.einsum("bnts,btnh->bsnh", ds, q)),
        of_group(np.einsum("bnts,btnh->bsnh", p, weights)),
    )


def arrays(kv_heads, segmented, *, batch=2, length=24, heads=4, head_dim=8, dtype="float32"):
    draw = np.random.default_rng(kv_heads)
    q, k, v, weights = (
        draw.normal(size=(batch, length, n, head_dim)).astype(jnp.dtype(dtype))
        for n in (heads, kv_heads, kv_heads, heads)
    )
    # Documents of any length, also of one token; the last one is 0, as padding is.
    starts = (draw.random((batch, length)) < 0.15).cumsum(1).astype(np.int32) + 1
    starts[:, length - 3 :] = 0
    return q, k, v, starts if segmented else None, weights


def computed(implementation, q, k, v, segments, weights, sizes=(1, 1, 1), how=Scores()):  # noqa: B008
    """(o, dq, dk, dv) by `attention` on a mesh of these sizes."""
    with jax.set_mesh(mesh_of(*sizes)):
        ids = None if segments is None else put("BT", segments)

        @jax.jit
        def both(q, k, v, ids, weights):
            def attend(q, k, v):
                return sharded_attention(q, k, v, ids, implementation, how)

            o, back = jax.vjp(attend, q, k, v)
            assert o.dtype == q.dtype and jax.typeof(o).sharding.spec == jax.typeof(q).sharding.spec
            return o, *back(weights)

        names = ("BTNH", q), ("BSKH", k), ("BSKH", v)
        return both(*(put(*pair) for pair in names), ids, put("BTNH", weights))


def assert_close(found, wanted, tolerance):
    """To `tolerance` of the largest element of each array."""
    for name, a, b in zip(("o", "dq", "dk", "dv"), found, wanted, strict=True):
        error = np.abs(np.asarray(a, np.float64) - b).max() / np.abs(b).max()
        assert error < tolerance, f"{name}: {error:.2e}"


@pytest.mark.parametrize("implementation", ["reference", "blocked", "xla"])
@KV_HEADS
@SEGMENTS
def test_values_and_gradients_follow_the_formula(implementation, kv_heads, segmented):
    given = arrays(kv_heads, segmented)
    assert_close(computed(implementation, *given), exact(*given), 2e-6)


@pytest.mark.parametrize("implementation", ["reference", "blocked", "xla"])
def test_the_formula_in_bfloat16(implementation):
    """bfloat16 keeps 8 bits: each rounding of probabilities and results is up to 2^-8 = 0.4 %."""
    given = arrays(2, True, dtype="bfloat16")
    assert_close(computed(implementation, *given), exact(*given), 2e-2)


@KV_HEADS
@SEGMENTS
@pytest.mark.parametrize("length", [256, 300])
def test_several_blocks_of_queries(length, kv_heads, segmented):
    """Two blocks of 128, and two with one of 44 after them."""
    given = arrays(kv_heads, segmented, length=length)
    assert_close(computed("blocked", *given), exact(*given), 2e-6)


@pytest.mark.parametrize(
    ("implementation", "length", "how"),
    [
        ("reference", 24, Scores(0.2, 1.5, 7)),
        ("blocked", 24, Scores(0.2, 1.5, 7)),
        ("blocked", 300, Scores(window=150, softcap=2.0)),
        ("xla", 24, Scores(0.2, 0.0, 7)),
        ("splash", 256, Scores(0.1, 1.5, 40)),
    ],
)
def test_windows_softcaps_and_scales(implementation, length, how):
    head_dim = 64 if implementation == "splash" else 8
    given = arrays(2, True, batch=1, length=length, head_dim=head_dim)
    tolerance = 2e-5 if implementation == "splash" else 4e-6
    assert_close(computed(implementation, *given, how=how), exact(*given, how), tolerance)


# Splash attention, interpreted. It scales q, and takes its matmuls' inputs, in the compute dtype.
@pytest.mark.parametrize(
    ("kv_heads", "segmented", "length", "head_dim", "dtype", "tolerance"),
    [
        (1, True, 128, 128, "float32", 2e-5),
        (2, False, 384, 64, "float32", 2e-5),
        (4, True, 256, 64, "bfloat16", 2e-2),
    ],
)
def test_splash_follows_the_formula(kv_heads, segmented, length, head_dim, dtype, tolerance):
    given = arrays(kv_heads, segmented, batch=1, length=length, head_dim=head_dim, dtype=dtype)
    assert_close(computed("splash", *given), exact(*given), tolerance)


@pytest.mark.parametrize("sizes", [(1, 2, 4), (2, 2, 2)])
@pytest.mark.parametrize("kv_heads", [1, 2, 4, 8])
@pytest.mark.parametrize("implementation", ["reference", "blocked"])
def test_on_a_mesh(implementation, sizes, kv_heads):
    """Heads sharded over `model`, with fewer key/value heads than shards, as many, and more."""
    given = arrays(kv_heads, True, batch=4, heads=8)
    assert_close(computed(implementation, *given, sizes), exact(*given), 2e-6)


def test_splash_on_a_mesh():
    given = arrays(2, True, batch=2, length=128, heads=4, head_dim=64)
    assert_close(computed("splash", *given, (1, 2, 4)), exact(*given), 2e-5)
