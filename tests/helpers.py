"""Small decoders on small meshes, and the layers of `nn/` applied to global arrays.

Functions in `nn/` work on one device's arrays. The wrappers here run them in `on_devices` with the
shardings of the rules, so that their results and gradients can be compared with plain NumPy.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from paxlike.config import Config, DataConfig, MeshConfig, ModelConfig, to_json
from paxlike.data.tokenizer import load_tokenizer
from paxlike.nn.attention import Scores, attention, own_kv_head
from paxlike.nn.collectives import on_devices, specs_of, total
from paxlike.nn.einsum import Kernel, Multiplier, einsum
from paxlike.nn.embedding import own_rows
from paxlike.nn.numerics import Numerics
from paxlike.nn.stream import Stream, scatter_stream
from paxlike.parallel.mesh import make_mesh, spec, weight_spec
from paxlike.training.checkpoint import write_checkpoint
from paxlike.training.loss import Head, Losses, sum_losses
from paxlike.training.state import abstract_params
from paxlike.training.step import DeviceBatch, loss_gradients, losses_of, model_losses

SHAPE = {
    "layers": 2, "d_model": 32, "heads": 8, "kv_heads": 1, "head_dim": 4, "d_ff": 48,
    "vocab_size": 90, "vocab_multiple": 16, "attention": "reference",
}  # fmt: skip


def model_config(**changes) -> Config:
    """A config whose model is `SHAPE` with changes. Its 96 vocabulary rows fit every mesh of 8."""
    model = ModelConfig(**{**SHAPE, **changes})
    length = model.learned_positions or DataConfig().sequence_length
    return Config(model=model, data=DataConfig(sequence_length=length))


def mesh_of(pod: int = 1, data: int = 1, model: int = 1, expert: int = 1) -> Mesh:
    """A mesh over the first of the 8 CPU devices. Activate it with `jax.set_mesh`."""
    devices = jax.devices()[: pod * data * model * expert]
    return make_mesh(MeshConfig(pod, data, model, expert), devices)


def numerics_of(config: Config) -> Numerics:
    return Numerics.of_run(config, "cpu")


def put(dims: str, array: np.ndarray) -> jax.Array:
    """An activation on the active mesh."""
    return jax.device_put(array, NamedSharding(jax.sharding.get_mesh(), spec(dims, array.shape)))


def flat(tree: dict) -> dict[str, object]:
    """Checkpoint name -> leaf."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def host_params(config: Config, seed: int = 0) -> dict:
    """float32 NumPy parameters, all random, including norm scales and padding rows."""
    random = np.random.default_rng(seed)

    def draw(path, leaf):
        if "scale" in path[-1].key:
            return random.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        width = config.model.d_model if path[-1].key != "wdown_FD" else config.model.d_ff
        deviation = 1.0 if path[-1].key == "embedding_VD" else width**-0.5
        return (random.standard_normal(leaf.shape) * deviation).astype(np.float32)

    with jax.set_mesh(mesh_of()):
        shapes = abstract_params(config, numerics_of(config))
    return jax.tree_util.tree_map_with_path(draw, shapes)


class Batch(NamedTuple):
    """int32 NumPy arrays [B, T]. Targets are the next tokens, or -1 for no prediction."""

    tokens: np.ndarray
    targets: np.ndarray
    segments: np.ndarray | None


def host_batch(
    config: Config, B: int = 8, T: int = 16, segments: bool = False, seed: int = 1
) -> Batch:
    """Random tokens; a tenth of the targets is -1. segments: three random documents in each row."""
    random = np.random.default_rng(seed)
    stream = random.integers(0, config.model.vocab_size, (B, T + 1), dtype=np.int32)
    targets = np.where(random.random((B, T)) < 0.1, -1, stream[:, 1:]).astype(np.int32)
    starts = random.random((B, T)).argsort(-1).argsort(-1) < 2
    return Batch(stream[:, :-1], targets, starts.cumsum(-1).astype(np.int32) if segments else None)


def write_run(config: Config, folder: Path, params: dict) -> Path:
    """A run directory with these parameters at step 0."""
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "config.json").write_text(to_json(config))
    load_tokenizer(Path(config.data.store)).save(folder / "tokenizer")
    write_checkpoint(folder / "checkpoints", {"params": params}, 0, {"step": 0})
    return folder


def place(config: Config, params: dict) -> dict:
    """Parameters on the active mesh, sharded by the rules."""
    shapes = abstract_params(config, numerics_of(config))
    return jax.device_put(params, jax.tree.map(lambda leaf: leaf.sharding, shapes))


def device_batch(batch: Batch) -> DeviceBatch:
    return DeviceBatch(*(None if array is None else put("BT", array) for array in batch))


def mean_loss(config: Config, params: dict, batch: DeviceBatch) -> jax.Array:
    """The loss that a train step with one accumulation step minimizes."""
    return (
        losses_of(config, numerics_of(config), params, batch).loss / (batch.targets_ABT >= 0).sum()
    )


def training_loss(config: Config, params: dict, batch: DeviceBatch) -> tuple[jax.Array, dict]:
    """(mean loss, gradients) as a train step computes them, inside the map. Batch: [B, T]."""
    tokens = (batch.targets_ABT >= 0).sum().astype(jnp.float32)
    parts = DeviceBatch(*(None if array is None else array[None] for array in batch))
    gradients, losses = loss_gradients(config, numerics_of(config), params, parts, tokens)
    return losses.loss / tokens, gradients


def loss_and_gradients(
    config: Config, mesh: Mesh, params: dict, batch: Batch, inside: bool = False
) -> tuple[float, dict]:
    """(mean loss, gradients) on the host, from parameters and a batch on the host.

    inside: differentiate inside the map, as a train step does, instead of the map as a whole.
    """
    function = training_loss if inside else jax.value_and_grad(mean_loss, argnums=1)
    with jax.set_mesh(mesh):
        step = jax.jit(functools.partial(function, config))
        loss, gradients = step(place(config, params), device_batch(batch))
        return float(loss), jax.device_get(gradients)


def kept_arrays(config: Config, numerics: Numerics, params: dict, batch: DeviceBatch) -> list:
    """What one device's backward pass reads, as abstract arrays."""

    def device(params, batch):
        def loss(params):
            return model_losses(config, numerics, params, batch, sum_gradients=True).loss

        return jax.tree.leaves(jax.vjp(loss, params)[1])

    # As if replicated: the shapes are those of one device.
    run = on_devices(device, (specs_of(params), specs_of(batch)), jax.P())
    return jax.eval_shape(run, params, batch)


def step_gradients(
    config: Config, params: dict, sizes: Sequence[int] = (1, 1, 1), **changes
) -> tuple[float, tuple[dict, dict]]:
    """(loss, (statistics of the routers, gradients)) of a train step of two accumulation steps of 8
    sequences. sizes: of `mesh_of`. changes: of the numerics."""
    batch = host_batch(config, B=16)
    numerics = dataclasses.replace(numerics_of(config), **changes)
    halves = DeviceBatch(*(None if x is None else x.reshape(2, 8, *x.shape[1:]) for x in batch))
    with jax.set_mesh(mesh_of(*sizes)):
        step = jax.jit(functools.partial(loss_gradients, config, numerics))
        tokens = jnp.float32((batch.targets >= 0).sum())
        parts = jax.tree.map(lambda x: put("ABT", x), halves)
        gradients, losses = step(place(config, params), parts, tokens)
        return float(losses.loss), jax.device_get((losses.statistics, gradients))


def outside_and_inside(
    config: Config, mesh: Mesh, params: dict, batch: Batch
) -> dict[str, tuple[float, dict]]:
    """`loss_and_gradients` outside and inside the map, in one compiled program."""
    with jax.set_mesh(mesh):
        outside = functools.partial(jax.value_and_grad(mean_loss, argnums=1), config)
        inside = functools.partial(training_loss, config)
        step = jax.jit(lambda *arguments: (outside(*arguments), inside(*arguments)))
        found = jax.device_get(step(place(config, params), device_batch(batch)))
    return dict(zip(("outside", "inside"), found, strict=True))


def error(actual: np.ndarray, expected: np.ndarray) -> float:
    """Norm of the difference, relative to the norm of the expected array."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    return float(np.linalg.norm(actual - expected) / max(np.linalg.norm(expected), 1e-30))


def sharded_attention(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    segments_BT: jax.Array | None,
    implementation: str,
    scores: Scores = Scores(),  # noqa: B008 - immutable
) -> jax.Array:
    """`nn.attention.attention` of global arrays on the active mesh."""
    heads, kv_heads = q_BTNH.shape[2], k_BSKH.shape[2]

    def device(q, k, v, segments=None):
        own = own_kv_head(heads, kv_heads, k, v)
        return attention(q, *own, segments, implementation, scores)

    q_spec, kv_spec = spec("BTNH", q_BTNH.shape), spec("BSKH", k_BSKH.shape)
    arrays, specs = [q_BTNH, k_BSKH, v_BSKH], [q_spec, kv_spec, kv_spec]
    if segments_BT is not None:
        arrays.append(segments_BT)
        specs.append(spec("BT", segments_BT.shape))
    return on_devices(device, tuple(specs), q_spec)(*arrays)


WeightMaker = Callable[[str, tuple[int, ...], jax.Array], Multiplier]
"""(equation, global shape of the weight, this device's shard) -> the weight as a block uses it."""


def kernel(equation: str, shape: tuple[int, ...], shard: jax.Array) -> Multiplier:
    return Kernel(shard, tuple(weight_spec(terms(equation)[1], shape)), "float32")


def terms(equation: str) -> tuple[str, str, str]:
    """Letters of (activation, weight, result)."""
    inputs, result = equation.split("->")
    return *inputs.split(","), result


def stream_products(
    equations: Sequence[str],
    x_BTD: jax.Array,
    weights: Sequence[jax.Array],
    make_weight: WeightMaker = kernel,
) -> tuple[jax.Array, ...]:
    """The stream times each weight (`nn.einsum.einsum`): global arrays on the active mesh."""
    shapes = [w.shape for w in weights]

    def device(shard_BTD, *shards):
        stream = Stream(shard_BTD)
        return tuple(
            einsum(equation, stream, make_weight(equation, shape, shard))
            for equation, shape, shard in zip(equations, shapes, shards, strict=True)
        )

    results = [
        spec(terms(equation)[2], (*x_BTD.shape[:2], *shape[1:]))
        for equation, shape in zip(equations, shapes, strict=True)
    ]
    places = [weight_spec(terms(e)[1], shape) for e, shape in zip(equations, shapes, strict=True)]
    run = on_devices(device, (spec("BTD", x_BTD.shape), *places), tuple(results))
    return run(x_BTD, *weights)


def stream_update(
    equations: Sequence[str],
    arrays: Sequence[jax.Array],
    weights: Sequence[jax.Array],
    make_weight: WeightMaker = kernel,
) -> jax.Array:
    """The update x_BTD: the sum of heads or columns times their weights. Global arrays."""
    shapes = [w.shape for w in weights]

    def device(shards, weight_shards):
        partials = [
            einsum(equation, x, make_weight(equation, shape, w))
            for equation, shape, x, w in zip(equations, shapes, shards, weight_shards, strict=True)
        ]
        return scatter_stream(sum(partials).astype(shards[0].dtype))

    letters = [terms(equation) for equation in equations]
    x_specs = tuple(spec(x, array.shape) for (x, *_), array in zip(letters, arrays, strict=True))
    w_specs = tuple(weight_spec(w, shape) for (_, w, _), shape in zip(letters, shapes, strict=True))
    result = spec("BTD", (*arrays[0].shape[:2], shapes[0][-1]))
    return on_devices(device, (x_specs, w_specs), result)(tuple(arrays), tuple(weights))


def sharded_lookup(table_VD: jax.Array, tokens_BT: jax.Array, **dtypes: str) -> jax.Array:
    """`nn.embedding.lookup` of global arrays on the active mesh."""
    places = weight_spec("VD", table_VD.shape)

    def device(table, tokens):
        rows = own_rows(table, tokens, tuple(places), dtypes["compute"], dtypes["gradients"])[0]
        return scatter_stream(rows)

    x_spec = spec("BTD", (*tokens_BT.shape, table_VD.shape[1]))
    return on_devices(device, (places, spec("BT", tokens_BT.shape)), x_spec)(table_VD, tokens_BT)


def sharded_losses(
    x_BTD: jax.Array, weight: jax.Array, targets_BT: jax.Array, head: Head
) -> Losses:
    """`train.loss.sum_losses` of global arrays on the active mesh, summed over the batch.

    head.places is replaced by where the weight is stored on the mesh.
    """
    places = weight_spec(head.letters, weight.shape)
    head = head._replace(places=tuple(places))

    def device(x, weight, targets):
        losses = sum_losses(x, weight, targets, head)
        return jax.tree.map(lambda loss: total(loss, ("pod", "data")), losses)

    specs = spec("BTD", x_BTD.shape), places, spec("BT", targets_BT.shape)
    scalars = Losses(P(), P(), P(), P())
    return on_devices(device, specs, scalars)(x_BTD, weight, targets_BT)


def parameters_of(tree: dict) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
