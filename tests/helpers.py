"""Small decoders on small meshes: parameters from numpy, a batch, and losses with gradients back on the host."""

import functools
import math
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from paxlike.config import Config, MeshConfig, ModelConfig
from paxlike.nn.weight import Numerics
from paxlike.parallel.mesh import make_mesh, spec
from paxlike.train.state import abstract_params
from paxlike.train.step import DeviceBatch, losses_of

SHAPE = {
    "layers": 2, "d_model": 32, "heads": 8, "kv_heads": 1, "head_dim": 4, "d_ff": 48, "vocab_size": 90,
    "vocab_multiple": 16, "attention": "reference",
}  # fmt: skip


def model_config(**changes) -> Config:
    """A config whose model is `SHAPE` with changes: 96 rows of vocabulary, so that every mesh of 8 devices fits."""
    return Config(model=ModelConfig(**{**SHAPE, **changes}))


def mesh_of(pod: int = 1, data: int = 1, model: int = 1) -> Mesh:
    """The mesh, of the first of the 8 CPU devices. Put it in force with `jax.set_mesh`."""
    return make_mesh(MeshConfig(pod, data, model), jax.devices()[: pod * data * model])


def numerics_of(config: Config) -> Numerics:
    return Numerics.of(config.model, config.precision, "cpu")


def put(dims: str, array: np.ndarray) -> jax.Array:
    """An activation on the mesh in force."""
    return jax.device_put(array, NamedSharding(jax.sharding.get_mesh(), spec(dims, array.shape)))


def flat(tree: dict) -> dict[str, object]:
    """Checkpoint name -> leaf."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def host_params(config: Config, seed: int = 0) -> dict:
    """float32 numpy parameters. Every value is random, norm scales and the rows that pad the vocabulary included."""
    random = np.random.default_rng(seed)

    def draw(path, leaf):
        if path[-1].key.endswith("scale_D"):
            return random.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        width = config.model.d_model if path[-1].key != "wdown_FD" else config.model.d_ff
        deviation = 1.0 if path[-1].key == "embedding_VD" else width**-0.5
        return (random.standard_normal(leaf.shape) * deviation).astype(np.float32)

    with jax.set_mesh(mesh_of()):
        shapes = abstract_params(config, numerics_of(config))
    return jax.tree_util.tree_map_with_path(draw, shapes)


class Batch(NamedTuple):
    """int32 numpy arrays [B, T]. Targets are the next tokens, -1 where there is none to predict."""

    tokens: np.ndarray
    targets: np.ndarray
    segments: np.ndarray | None


def host_batch(config: Config, B: int = 8, T: int = 16, segments: bool = False, seed: int = 1) -> Batch:
    """Random tokens; a tenth of the targets is -1. With segments, three documents of random lengths in each row."""
    random = np.random.default_rng(seed)
    stream = random.integers(0, config.model.vocab_size, (B, T + 1), dtype=np.int32)
    targets = np.where(random.random((B, T)) < 0.1, -1, stream[:, 1:]).astype(np.int32)
    starts = random.random((B, T)).argsort(-1).argsort(-1) < 2
    return Batch(stream[:, :-1], targets, starts.cumsum(-1).astype(np.int32) if segments else None)


def place(config: Config, params: dict) -> dict:
    """Parameters on the mesh in force, as the rules say."""
    shapes = abstract_params(config, numerics_of(config))
    return jax.device_put(params, jax.tree.map(lambda leaf: leaf.sharding, shapes))


def device_batch(batch: Batch) -> DeviceBatch:
    return DeviceBatch(*(None if array is None else put("BT", array) for array in batch))


def mean_loss(config: Config, params: dict, batch: DeviceBatch) -> jax.Array:
    """What a training step of one accumulation step minimizes."""
    return losses_of(config, numerics_of(config), params, batch).loss / (batch.targets_ABT >= 0).sum()


def loss_and_gradients(config: Config, mesh: Mesh, params: dict, batch: Batch) -> tuple[float, dict]:
    """On the mesh; parameters, batch and results on the host."""
    with jax.set_mesh(mesh):
        step = jax.jit(jax.value_and_grad(functools.partial(mean_loss, config)))
        loss, gradients = step(place(config, params), device_batch(batch))
        return float(loss), jax.device_get(gradients)


def error(actual: np.ndarray, expected: np.ndarray) -> float:
    """Norm of the difference over the norm of what is expected."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    return float(np.linalg.norm(actual - expected) / max(np.linalg.norm(expected), 1e-30))


def parameters_of(tree: dict) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
