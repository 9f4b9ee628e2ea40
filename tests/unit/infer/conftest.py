import functools

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding

from paxlike.config import MeshConfig, ModelConfig, PrecisionConfig
from paxlike.models.palm import bind, init_params
from paxlike.nn.weight import Numerics
from paxlike.parallel.mesh import make_mesh, spec

VOCAB = 250


class Model:
    """A small model with its mesh in force, and what it says without a cache."""

    def __init__(self, compute: str = "float32", **words):
        size = {"layers": 2, "d_model": 64, "heads": 8, "kv_heads": 1, "head_dim": 16, "d_ff": 128}
        self.config = ModelConfig(**{**size, "vocab_size": VOCAB, "vocab_multiple": 64, **words})
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
        """[B, T, VOCAB] of the whole forward pass, the last product in float64."""
        x_BTD, head, scale = jax.device_get(self._forward(self.params, put("BT", tokens_BT)))
        head_DV = head.T if self.config.head == "tied" else head
        return (x_BTD.astype(np.float64) @ head_DV.astype(np.float64) * scale)[..., :VOCAB]


def put(dims: str, array: np.ndarray) -> jax.Array:
    return jax.device_put(array, NamedSharding(jax.sharding.get_mesh(), spec(dims, array.shape)))


@pytest.fixture(params=[(1, 1, 1), (1, 2, 4)], ids=lambda sizes: "x".join(map(str, sizes)))
def mesh(request):
    with use_mesh(*request.param):
        yield request.param


@pytest.fixture
def one_device():
    with use_mesh(1, 1, 1):
        yield


def use_mesh(pod: int, data: int, model: int):
    return jax.set_mesh(make_mesh(MeshConfig(pod, data, model), jax.devices()[: pod * data * model]))


@pytest.fixture
def tools():
    """(Model, put, VOCAB), for test files that cannot import a conftest."""
    return Model, put, VOCAB
