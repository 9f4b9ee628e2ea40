"""The jitted train step and the evaluation step: pure functions of (state, batch)."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from paxlike.config import Config
from paxlike.models.palm import bind
from paxlike.nn.einsum import on_devices, total
from paxlike.nn.weight import Numerics
from paxlike.optim.optimizer import Optimizer, apply_updates, global_norm, make_optimizer
from paxlike.optim.schedules import make_schedule
from paxlike.parallel.mesh import spec
from paxlike.train.loss import Head, Losses, sum_losses
from paxlike.train.state import State

Array = jax.Array

NO_LOSSES = Losses(*(np.zeros((), np.float32),) * len(Losses._fields))


class DeviceBatch(NamedTuple):
    """A batch on the mesh, int32 [A, B, T]: A gradient-accumulation steps of B sequences."""

    tokens_ABT: Array
    targets_ABT: Array
    segments_ABT: Array | None


def losses_of(config: Config, numerics: Numerics, params: dict, part: DeviceBatch) -> Losses:
    """Sums over the predicted tokens of one accumulation step, whose arrays here are [B, T]."""
    model = bind(config.model, numerics, params)
    x_BTD = model(part.tokens_ABT, part.segments_ABT)
    letters, weight, scale = model.head()
    head = Head(letters, scale, config.model.vocab_size, config.train.z_loss, numerics.gradients)
    return sum_losses(x_BTD, weight, part.targets_ABT, head)


def make_train_step(
    config: Config, numerics: Numerics, optimizer: Optimizer, schedule: Callable
) -> Callable[[State, DeviceBatch], tuple[State, dict]]:
    """`train_step(state, batch) -> (state, metrics)`; the old state's memory is reused.

    The gradient is that of the mean loss over all predicted tokens of the batch, however many accumulation steps it is
    computed in. Metrics are float32 scalars on the device: `loss` (cross-entropy in nats per token), `z_loss` (what the z-loss
    adds to it), `accuracy`, `gradient_norm` (before clipping), `learning_rate`, `tokens` (predicted), with guard.skip_nonfinite `skipped`
    (1 where the update was not made); and `batch`, its fingerprint.
    """

    def train_step(state: State, batch: DeviceBatch) -> tuple[State, dict]:
        predicted, fingerprint = _sums((batch.targets_ABT >= 0).astype(jnp.uint32), _hashes(batch))
        batch = _after(predicted, batch)
        tokens = jnp.maximum(predicted.astype(jnp.float32), 1)

        def part_loss(params: dict, part: DeviceBatch) -> tuple[Array, Losses]:
            losses = losses_of(config, numerics, params, part)
            return losses.loss / tokens, losses

        gradients, losses = _accumulated(part_loss, state.params, batch)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.params)
        metrics = {
            "loss": losses.cross_entropy / tokens,
            "z_loss": losses.z_loss / tokens,
            "accuracy": losses.correct / tokens,
            "gradient_norm": global_norm(gradients),
            "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
            "tokens": tokens,
            "batch": fingerprint,
        }
        params = apply_updates(state.params, updates)
        if config.guard.skip_nonfinite:
            fine = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["gradient_norm"])
            new, old = (params, optimizer_state), (state.params, state.optimizer)
            params, optimizer_state = jax.tree.map(lambda a, b: jnp.where(fine, a, b), new, old)
            metrics["skipped"] = (~fine).astype(jnp.float32)
        return State(params, optimizer_state, state.step + 1), metrics

    return jax.jit(train_step, donate_argnums=0)


def _hashes(batch: DeviceBatch) -> Array:
    """uint32 [A, B, T]: of every token, its target and its place in the global batch, on whatever mesh.

    Their sum, the fingerprint, tells batches apart. It is one of integers modulo 2^32, so it has no rounding and no order.
    """
    A, B, T = batch.tokens_ABT.shape
    place_ABT = jnp.arange(A * B * T, dtype=jnp.uint32).reshape(A, B, T)
    # Odd multipliers, then the finalizer of a 32-bit hash (xor-shift and multiply), spread each bit over all.
    x_ABT = place_ABT * np.uint32(0x9E3779B1) + batch.tokens_ABT.astype(jnp.uint32) * np.uint32(0x85EBCA77)
    x_ABT = x_ABT + batch.targets_ABT.astype(jnp.uint32) * np.uint32(0xC2B2AE3D)
    x_ABT = (x_ABT ^ (x_ABT >> 16)) * np.uint32(0x7FEB352D)
    x_ABT = (x_ABT ^ (x_ABT >> 15)) * np.uint32(0x846CA68B)
    return x_ABT ^ (x_ABT >> 16)


def _sums(*arrays_ABT: Array) -> Array:
    """uint32 [len(arrays)]: the sum of each array over all of the mesh, modulo 2^32, in one all-reduce."""

    def device(*arrays):
        local = jnp.stack([array.sum(dtype=jnp.uint32) for array in arrays])
        return total(total(local, "data"), "pod")

    places = spec("ABT", arrays_ABT[0].shape)
    return on_devices(device, (places,) * len(arrays_ABT), PartitionSpec())(*arrays_ABT)


def _after(count: Array, batch: DeviceBatch) -> DeviceBatch:
    """The batch, on a CPU not before the count is there.

    Devices of a CPU that share few cores may begin collectives that do not depend on each other in different orders, and then wait for
    each other without end: the count's and the embedding's did, on a busy machine.
    """
    if jax.sharding.get_abstract_mesh().abstract_device.platform != "cpu":
        return batch
    nothing = jnp.minimum(count.astype(jnp.int32), 0)
    return batch._replace(tokens_ABT=batch.tokens_ABT + nothing)


def _accumulated(part_loss: Callable, params: dict, batch: DeviceBatch) -> tuple[dict, Losses]:
    """Gradients and losses summed over the accumulation steps."""
    gradient = jax.grad(part_loss, has_aux=True)
    if batch.tokens_ABT.shape[0] == 1:
        return gradient(params, jax.tree.map(lambda x: x[0], batch))

    def add(sums, part):
        return jax.tree.map(jnp.add, sums, gradient(params, part)), None

    zeros = jax.tree.map(jnp.zeros_like, params), NO_LOSSES
    return jax.lax.scan(add, zeros, batch)[0]


class Program(NamedTuple):
    """What is compiled for a config on a platform: by `train/loop.py` to run it, by `plan/` for machines that are not here."""

    numerics: Numerics
    optimizer: Optimizer
    train_step: Callable

    @classmethod
    def of(cls, config: Config, numerics: Numerics) -> "Program":
        optimizer = make_optimizer(config.optim, config.train.steps)
        schedule = make_schedule(config.optim, config.train.steps)
        return cls(numerics, optimizer, make_train_step(config, numerics, optimizer, schedule))


def abstract_batch(config: Config, batch_size: int, segments: bool) -> DeviceBatch:
    """The shapes and shardings of a batch on the mesh in force."""
    shape = (config.train.accumulate, batch_size // config.train.accumulate, config.data.sequence_length)
    places = NamedSharding(jax.sharding.get_mesh(), spec("ABT", shape))
    array = jax.ShapeDtypeStruct(shape, np.int32, sharding=places)
    return DeviceBatch(array, array, array if segments else None)


def make_eval_step(config: Config, numerics: Numerics) -> Callable[[dict, DeviceBatch], tuple[Losses, Array]]:
    """`eval_step(params, batch) -> (sums over the predicted tokens, how many those are)`."""

    def eval_step(params: dict, batch: DeviceBatch) -> tuple[Losses, Array]:
        def add(sums: Losses, part: DeviceBatch) -> tuple[Losses, None]:
            return jax.tree.map(jnp.add, sums, losses_of(config, numerics, params, part)), None

        losses, _ = jax.lax.scan(add, NO_LOSSES, batch)
        return losses, _sums((batch.targets_ABT >= 0).astype(jnp.uint32))[0]

    return jax.jit(eval_step)
