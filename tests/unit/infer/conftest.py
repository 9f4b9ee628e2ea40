import functools

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding

from paxlike.config import MeshConfig, ModelConfig, PrecisionConfig
from paxlike.models.palm import bind, init_params
from paxlike.nn.weight import Numerics
from paxlike.parallel.mesh import make_mesh, spec


class Model:
    """A small model on the mesh in force, and what it says without a cache."""

    vocab = 250

    def __init__(self, compute: str = "float32", **words):
        size = {"layers": 2, "d_model": 64, "heads": 8, "kv_heads": 1, "head_dim": 16, "d_ff": 128}
        self.config = ModelConfig(**{**size, "vocab_size": self.vocab, "vocab_multiple": 64, **words})
        self.numerics = Numerics.of(self.config, PrecisionConfig(compute=compute), "cpu")
        self.params = jax.jit(functools.partial(init_params, self.config, self.numerics, 0))()
        # A small embedding, so that what attention adds decides the next token and not the last token alone.
        self.params["embedding_VD"] = self.params["embedding_VD"] * 0.05

    @functools.cached_property
    def _forward(self):
        def forward(params, tokens_BT):
            model = bind(self.config, self.numerics, params)
            return model(tokens_BT), *model.head()[1:]

        return jax.jit(forward)

    def logits(self, tokens_BT: np.ndarray) -> np.ndarray:
        """[B, T, vocab] of the whole forward pass, the last product in float64."""
        x_BTD, head, scale = jax.device_get(self._forward(self.params, put("BT", tokens_BT)))
        head_DV = head.T if self.config.head == "tied" else head
        return (x_BTD.astype(np.float64) @ head_DV.astype(np.float64) * scale)[..., : self.vocab]


def put(dims: str, array: np.ndarray) -> jax.Array:
    return jax.device_put(array, NamedSharding(jax.sharding.get_mesh(), spec(dims, array.shape)))


def on_mesh(*sizes: int):
    pod, data, model = sizes
    return jax.set_mesh(make_mesh(MeshConfig(pod, data, model), jax.devices()[: pod * data * model]))


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
    """make(**words of the model config) -> Model, made once a mesh."""
    return lambda **words: _model(jax.sharding.get_mesh(), tuple(words.items()))


@pytest.fixture
def one_device():
    with on_mesh(1, 1, 1):
        yield
