import functools
import math

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding

from paxlike.config import MeshConfig, ModelConfig, PrecisionConfig
from paxlike.models.decoder import hidden_states, init_params
from paxlike.nn.numerics import Numerics
from paxlike.parallel.mesh import make_mesh, spec


class Model:
    """A small model on the active mesh, with its logits computed without a cache."""

    vocab = 250

    def __init__(self, compute: str = "float32", **words):
        size = {"layers": 2, "d_model": 64, "heads": 8, "kv_heads": 1, "head_dim": 16, "d_ff": 128}
        self.config = ModelConfig(
            **{**size, "vocab_size": self.vocab, "vocab_multiple": 64, **words}
        )
        self.numerics = Numerics.of(self.config, PrecisionConfig(compute=compute), "cpu")
        self.params = jax.jit(functools.partial(init_params, self.config, self.numerics, 0))()
        # The embedding is small, so that the next token depends on attention, not only on the last
        # token.
        self.params["embedding_VD"] = self.params["embedding_VD"] * 0.05
        # Biases start at 0 and scales at 1; with noise they affect the result.
        keys = iter(jax.random.split(jax.random.key(1), 64))
        for group in (group for name, group in self.params.items() if name.startswith("blocks")):
            for name, array in group.items():
                if name.startswith("b") or "scale" in name:
                    noise = jax.random.normal(next(keys), array.shape)
                    group[name] = array + jax.device_put(0.3 * noise, array.sharding)

    @functools.cached_property
    def _forward(self):
        def forward(params, tokens_BT):
            by_predictor = self.config.routed
            how = self.config, self.numerics
            return hidden_states(*how, params, tokens_BT, by_predictor=by_predictor)

        return jax.jit(forward)

    def logits(self, tokens_BT: np.ndarray) -> np.ndarray:
        """[B, T, vocab] of the full forward pass; the last product is in float64."""
        x_BTD = jax.device_get(self._forward(self.params, put("BT", tokens_BT)))
        tied = self.config.head == "tied"
        head_DV = jax.device_get(self.params["embedding_VD"].T if tied else self.params["head_DV"])
        found = x_BTD.astype(np.float64) @ head_DV.astype(np.float64) * self.config.logits_factor
        cap = self.config.logit_softcap
        return (cap * np.tanh(found / cap) if cap else found)[..., : self.vocab]


def put(dims: str, array: np.ndarray) -> jax.Array:
    return jax.device_put(array, NamedSharding(jax.sharding.get_mesh(), spec(dims, array.shape)))


def on_mesh(*sizes: int):
    """sizes: pod, data, model, and expert if above 1."""
    return jax.set_mesh(make_mesh(MeshConfig(*sizes), jax.devices()[: math.prod(sizes)]))


@functools.cache
def _model(mesh, words) -> Model:
    return Model(**dict(words))


@pytest.fixture(name="put")
def _put():
    return put


@pytest.fixture(name="on_mesh")
def _on_mesh():
    return on_mesh


@pytest.fixture
def make():
    """make(**fields of the model config) -> Model, cached per mesh."""
    return lambda **words: _model(jax.sharding.get_mesh(), tuple(words.items()))


@pytest.fixture
def one_device():
    with on_mesh(1, 1, 1):
        yield
