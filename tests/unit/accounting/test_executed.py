"""`executed_flops` must equal the dots that XLA runs, for every kind of block and policy.

The two sides share no code: one is arithmetic on the config, the other reads the optimized HLO of
the decoder's loss and gradient.
"""

import jax
import jax.numpy as jnp
import pytest

from paxlike.accounting.executed_flops import executed_flops
from paxlike.accounting.hlo_matmuls import count_matmuls
from paxlike.config import Config, DataConfig, MeshConfig, ModelConfig, PrecisionConfig
from paxlike.models.decoder import init_params
from paxlike.nn.numerics import Numerics
from paxlike.parallel.mesh import make_mesh
from paxlike.training.step import DeviceBatch, losses_of

B = 8
SHAPE = {
    "layers": 3,
    "d_model": 64,
    "heads": 4,
    "head_dim": 8,
    "d_ff": 96,
    "vocab_size": 500,
    "vocab_multiple": 128,
}


@pytest.mark.parametrize(
    ("mesh", "changes"),
    [
        ((1, 1, 1), {"remat": "none"}),
        ((1, 1, 1), {"remat": "full", "block": "serial", "head": "untied", "kv_heads": 4}),
        ((1, 1, 1), {"remat": "attention", "block": "serial", "feed_forward": "relu2"}),
        ((1, 1, 1), {"remat": "dots", "kv_heads": 2, "feed_forward": "gelu", "attention": "xla"}),
        ((2, 2, 2), {"remat": "palm"}),
        ((1, 1, 1), {"remat": "attention", "attention": "blocked"}),
        ((1, 2, 2), {"remat": "dots", "attention": "blocked", "kv_heads": 2}),
    ],
    ids=lambda value: "-".join(map(str, value.values() if isinstance(value, dict) else value)),
)
def test_formula_equals_compiled_program(mesh, changes):
    T = 256 if changes.get("attention") == "blocked" else 16  # two blocks of queries
    model = ModelConfig(**SHAPE, **{"kv_heads": 1, "attention": "reference", **changes})
    config = Config(model=model, data=DataConfig(sequence_length=T))
    pod, data, shards = mesh
    numerics = Numerics.of(model, PrecisionConfig(), "cpu")
    with jax.set_mesh(
        make_mesh(
            MeshConfig(pod=pod, data=data, model=shards), jax.devices()[: pod * data * shards]
        )
    ):
        params = jax.eval_shape(lambda: init_params(model, numerics, 0))
        tokens = jnp.zeros(
            (B, T),
            jnp.int32,
            device=jax.NamedSharding(jax.sharding.get_mesh(), jax.P(("pod", "data"))),
        )
        batch = DeviceBatch(tokens, tokens, None)
        step = jax.jit(jax.grad(lambda p: losses_of(config, numerics, p, batch).loss))
        text = step.lower(params).compile().as_text()
    counted = count_matmuls(text)
    assert counted.uncounted == () == counted.unknown_loops
    assert (
        counted.total * pod * data * shards
        == executed_flops(model, T, model.attention).total * B * T
    )
