"""Every implementation of attention against float64 numpy, on one device and on a mesh, wherever it can run."""

import importlib.util
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from helpers import error, mesh_of, put
from jax.sharding import NamedSharding

from paxlike.config import ConfigError, MeshConfig
from paxlike.nn.attention import attention
from paxlike.parallel.mesh import make_mesh, spec
from paxlike.plan.topology import tpu_devices

B, N, H = 2, 4, 8
LENGTH = {"reference": 16, "xla": 16, "splash": 384}
TOLERANCE = {"float32": 1e-6, "bfloat16": 1e-2}
"""Norm of the error over the norm of the result. Probabilities and sums are rounded to the compute dtype, once or a few times."""
ONE, TWO_BY_TWO = (1, 1, 1), (1, 2, 2)


def arrays(T: int, K: int, segments: bool, dtype: str = "float32"):
    """q, k, v, a cotangent of the output, and document numbers or None."""
    random = np.random.default_rng(T + K)
    shapes = (B, T, N, H), (B, T, K, H), (B, T, K, H), (B, T, N, H)
    made = [np.asarray(random.standard_normal(shape), jnp.dtype(dtype)) for shape in shapes]
    documents = np.sort(random.integers(0, 3, (B, T)), -1).astype(np.int32) if segments else None
    return *made, documents


def run(implementation, sizes, q, k, v, cotangent, documents):
    """(output, its gradients with respect to q, k and v), on the host, in float64."""
    with jax.set_mesh(mesh_of(*sizes)):
        documents = None if documents is None else put("BT", documents)

        @jax.jit
        def both(q, k, v, cotangent):
            out, pullback = jax.vjp(lambda *qkv: attention(*qkv, documents, implementation), q, k, v)
            return out, *pullback(cotangent)

        results = both(put("BTNH", q), put("BSKH", k), put("BSKH", v), put("BTNH", cotangent))
        assert [result.dtype for result in results] == [q.dtype] * 4
        return [np.asarray(result, np.float64) for result in jax.device_get(results)]


CASES = [
    ("reference", ONE, 1, True),
    ("reference", TWO_BY_TWO, 1, True),
    ("reference", TWO_BY_TWO, 2, False),
    ("reference", TWO_BY_TWO, 4, True),
    ("xla", ONE, 2, False),
    ("xla", TWO_BY_TWO, 1, True),
    ("splash", ONE, 2, True),
    ("splash", TWO_BY_TWO, 1, True),
    ("splash", TWO_BY_TWO, 4, False),
]


@pytest.mark.parametrize(
    ("implementation", "sizes", "K", "segments"),
    CASES,
    ids=lambda value: "x".join(map(str, value)) if isinstance(value, tuple) else str(value),
)
def test_output_and_gradients(implementation, sizes, K, segments):
    """Output against numpy; gradients against slopes of the same numpy formula along random directions."""
    *qkv, cotangent, documents = arrays(LENGTH[implementation], K, segments)
    out, *gradients = run(implementation, sizes, *qkv, cotangent, documents)
    assert error(out, reference.attention(*qkv, documents)) < TOLERANCE["float32"]
    random = np.random.default_rng(0)
    for i, gradient in enumerate(gradients):
        direction = random.standard_normal(gradient.shape)
        up, down = ([*qkv[:i], qkv[i] + h * direction, *qkv[i + 1 :]] for h in (1e-6, -1e-6))
        difference = reference.attention(*up, documents) - reference.attention(*down, documents)
        slope = np.vdot(cotangent, difference) / 2e-6
        assert np.vdot(gradient, direction) == pytest.approx(slope, abs=1e-5 * np.linalg.norm(gradient)), "qkv"[i]


@pytest.mark.parametrize("implementation", ["reference", "xla", "splash"])
def test_bfloat16(implementation):
    *qkv, cotangent, documents = arrays(LENGTH["splash"], 2, True, "bfloat16")
    out, *gradients = run(implementation, ONE, *qkv, cotangent, documents)
    assert error(out, reference.attention(*qkv, documents)) < TOLERANCE["bfloat16"]
    exact = run("reference", ONE, *(x.astype(np.float32) for x in (*qkv, cotangent)), documents)
    for gradient, expected in zip(gradients, exact[1:], strict=True):
        assert error(gradient, expected) < 2 * TOLERANCE["bfloat16"]


def test_each_shard_uses_the_key_value_head_of_its_query_heads():
    """2 key/value heads on 4 shards: shards 0 and 1 use the first, 2 and 3 the second. Values say which was used."""
    q = np.zeros((1, 4, 4, 8), np.float32)
    v = np.broadcast_to(np.arange(2, dtype=np.float32)[:, None], (1, 4, 2, 8))
    with jax.set_mesh(mesh_of(model=4)):
        out = attention(put("BTNH", q), put("BSKH", np.zeros_like(v)), put("BSKH", v), None, "reference")
        np.testing.assert_array_equal(jax.device_get(out)[0, :, :, 0], np.tile([0, 0, 1, 1], (4, 1)))


def test_splash_says_which_lengths_it_takes():
    q, k, v, *_ = arrays(100, 1, False)
    with jax.set_mesh(mesh_of()), pytest.raises(ConfigError, match="data.sequence_length 100 is not a multiple of 128"):
        attention(put("BTNH", q), put("BSKH", k), put("BSKH", v), None, "splash")


@pytest.mark.parametrize("segments", [False, True])
def test_cudnn_lowers_to_flash_attention_on_each_devices_heads(monkeypatch, segments):
    """Without a GPU it cannot run. JAX's question for the cuDNN that is installed is answered for it; the rest is as there."""
    fused = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    monkeypatch.setattr(fused, "check_cudnn_version", lambda: 91000)
    *qkv, _, documents = arrays(128, 1, segments, "bfloat16")
    with jax.set_mesh(mesh_of(data=2, model=2)):
        documents = None if documents is None else put("BT", documents)
        step = jax.jit(jax.grad(lambda *qkv: attention(*qkv, documents, "cudnn").astype(jnp.float32).sum(), (0, 1, 2)))
        traced = step.trace(*map(put, ("BTNH", "BSKH", "BSKH"), qkv))
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    calls = [line for line in text.splitlines() if "__cudnn$" in line]
    assert len(calls) == 2 and "Backward" in calls[1]
    for call in calls:
        assert "CAUSAL" in call
        # One of 2 sequences, 2 of 4 query heads, the key/value head not repeated; the documents as a bias.
        q, k, *_ = re.search(r": \((.*?)\) ->", call).group(1).split(", ")
        assert (q, k) == ("tensor<1x128x2x8xbf16>", "tensor<1x128x1x8xbf16>")
        assert ("tensor<1x1x128x128xbf16>" in call) == segments


def test_what_cudnn_cannot_do_is_an_error_of_the_config():
    """There is no cuDNN here, or float32 is what it refuses."""
    q, k, v, *_ = arrays(128, 1, False)
    with (
        jax.set_mesh(mesh_of()),
        pytest.raises(ConfigError, match="model.attention cudnn cannot run this.*set .* to xla"),
    ):
        attention(put("BTNH", q), put("BSKH", k), put("BSKH", v), None, "cudnn")


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu (684 MB, extra tpu) is not installed")
def test_splash_compiles_for_tpu():
    """Attention and its gradient, by documents, for four TPU v4 chips: three kernels (forward, dq, dk and dv) on local heads."""
    mesh = make_mesh(MeshConfig(data=2, model=2), tpu_devices("v4:2x2x1"))
    with jax.set_mesh(mesh):

        def abstract(dims, shape, dtype=jnp.bfloat16):
            return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec(dims, shape)))

        q, kv = abstract("BTNH", (2, 256, 4, 128)), abstract("BSKH", (2, 256, 1, 128))
        documents = abstract("BT", (2, 256), jnp.int32)

        def total(q, k, v, documents):
            return attention(q, k, v, documents, "splash").astype(jnp.float32).sum()

        text = jax.jit(jax.grad(total, (0, 1, 2))).lower(q, kv, kv, documents).compile().as_text()
    calls = sorted(
        re.findall(r"%splash_mha_(fwd|dkv|dq)\w*\S* = .*bf16\[(\d),256,128\].*custom-call.*tpu_custom_call", text)
    )
    assert calls == [("dkv", "1"), ("dq", "2"), ("fwd", "2")]
