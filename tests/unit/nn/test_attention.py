"""What each device attends with, and the implementations that need other hardware.

Values are tested in test_attention_gradients.py.
"""

import importlib.util
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import mesh_of, put, sharded_attention
from jax.sharding import NamedSharding

from paxlike.config import ConfigError, MeshConfig
from paxlike.parallel.mesh import make_mesh, spec
from paxlike.planning.topology import tpu_devices

B, N, H = 2, 4, 8


def arrays(T: int, segments: bool = False, dtype: str = "float32"):
    """q, k and v of one key/value head, and document numbers or None."""
    random = np.random.default_rng(T)
    made = [
        np.asarray(random.standard_normal((B, T, heads, H)), jnp.dtype(dtype))
        for heads in (N, 1, 1)
    ]
    return *made, np.sort(random.integers(0, 3, (B, T)), -1).astype(np.int32) if segments else None


def test_each_shard_uses_the_key_value_head_of_its_query_heads():
    """2 key/value heads on 4 shards: shards 0 and 1 use the first, 2 and 3 the second.

    The values are the number of their head.
    """
    q = np.zeros((1, 4, 4, 8), np.float32)
    v = np.broadcast_to(np.arange(2, dtype=np.float32)[:, None], (1, 4, 2, 8))
    with jax.set_mesh(mesh_of(model=4)):
        run = jax.jit(lambda *qkv: sharded_attention(*qkv, None, "reference"))
        out = run(put("BTNH", q), put("BSKH", np.zeros_like(v)), put("BSKH", v))
        np.testing.assert_array_equal(
            jax.device_get(out)[0, :, :, 0], np.tile([0, 0, 1, 1], (4, 1))
        )


def test_splash_reports_which_lengths_it_supports():
    q, k, v, _ = arrays(100)
    with (
        jax.set_mesh(mesh_of()),
        pytest.raises(ConfigError, match="data.sequence_length 100 is not a multiple of 128"),
    ):
        sharded_attention(put("BTNH", q), put("BSKH", k), put("BSKH", v), None, "splash")


@pytest.mark.parametrize("segments", [False, True])
def test_cudnn_lowers_to_flash_attention_on_each_devices_heads(monkeypatch, segments):
    """Lowered for a GPU that is not there; only JAX's check of the cuDNN version is patched."""
    fused = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    monkeypatch.setattr(fused, "check_cudnn_version", lambda: 91000)
    *qkv, documents = arrays(128, segments, "bfloat16")
    with jax.set_mesh(mesh_of(data=2, model=2)):
        documents = None if documents is None else put("BT", documents)
        step = jax.jit(
            jax.grad(
                lambda *qkv: sharded_attention(*qkv, documents, "cudnn").astype(jnp.float32).sum(),
                (0, 1, 2),
            )
        )
        traced = step.trace(*map(put, ("BTNH", "BSKH", "BSKH"), qkv))
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    calls = [line for line in text.splitlines() if "__cudnn$" in line]
    assert len(calls) == 2 and "Backward" in calls[1]
    for call in calls:
        assert "CAUSAL" in call
        # One of 2 sequences, 2 of 4 query heads; the key/value head is not repeated; documents are
        # a bias.
        q, k, *_ = re.search(r": \((.*?)\) ->", call).group(1).split(", ")
        assert (q, k) == ("tensor<1x128x2x8xbf16>", "tensor<1x128x1x8xbf16>")
        assert ("tensor<1x1x128x128xbf16>" in call) == segments


def test_what_cudnn_does_not_support_raises_config_error():
    """Either there is no cuDNN, or it does not support float32."""
    q, k, v, _ = arrays(128)
    with (
        jax.set_mesh(mesh_of()),
        pytest.raises(ConfigError, match="model.attention cudnn cannot run this.*set .* to xla"),
    ):
        sharded_attention(put("BTNH", q), put("BSKH", k), put("BSKH", v), None, "cudnn")


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu (684 MB, extra tpu) is not installed"
)
@pytest.mark.parametrize(
    ("topology", "T", "width"), [("v4:2x2x1", 1024, 256), ("v5e:2x2", 384, 128)]
)
def test_splash_compiles_for_tpus(topology, T, width):
    """Attention and its gradient, with documents, at PaLM's head dim and another: tiles fit on the
    chip, and there are three kernels (forward; dq; dk and dv) on local heads."""
    mesh = make_mesh(MeshConfig(data=2, model=2), tpu_devices(topology))
    with jax.set_mesh(mesh):

        def abstract(dims, shape, dtype=jnp.bfloat16):
            return jax.ShapeDtypeStruct(
                shape, dtype, sharding=NamedSharding(mesh, spec(dims, shape))
            )

        def total(q, k, v, documents):
            return sharded_attention(q, k, v, documents, "splash").astype(jnp.float32).sum()

        q, kv = abstract("BTNH", (2, T, 4, width)), abstract("BSKH", (2, T, 1, width))
        step = jax.jit(jax.grad(total, (0, 1, 2))).lower(
            q, kv, kv, abstract("BT", (2, T), jnp.int32)
        )
        text = step.compile().as_text()
    array = rf"bf16\[(\d),{T},{width}\]"
    calls = re.findall(
        rf"%splash_mha_(fwd|dkv|dq)\w*\S* = .*{array}.*custom-call.*tpu_custom_call", text
    )
    assert sorted(calls) == [("dkv", "1"), ("dq", "2"), ("fwd", "2")]
