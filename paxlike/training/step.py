"""The jitted train step and the evaluation step: pure functions of (state, batch)."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from paxlike.adapt.form import Draw
from paxlike.adapt.forms import FORMS
from paxlike.adapt.parts import Parts, join
from paxlike.config import Config
from paxlike.data.batch import Batch
from paxlike.models.decoder import Decoder
from paxlike.nn.collectives import on_devices, share_over_model, specs_of, total
from paxlike.nn.intervention import document_prompts
from paxlike.nn.numerics import Numerics
from paxlike.optim.optimizer import Optimizer, apply_updates, global_norm, make_optimizer
from paxlike.optim.schedules import make_schedule
from paxlike.parallel.host_batches import to_devices
from paxlike.parallel.mesh import axis_sizes, spec
from paxlike.training.loss import Losses
from paxlike.training.objective import OBJECTIVE, DeviceBatch
from paxlike.training.router_losses import (
    moved_biases,
    no_statistics,
    router_metrics,
    with_router_losses,
)
from paxlike.training.state import State

Array = jax.Array

NO_LOSSES = Losses(*(np.zeros((), np.float32),) * 4)
_SCALARS = Losses(*(PartitionSpec(),) * len(Losses._fields))


def make_train_step(
    config: Config, numerics: Numerics, optimizer: Optimizer, schedule: Callable
) -> jax.stages.Wrapped:
    """Returns `train_step(state, batch) -> (state, metrics)`, which donates the old state's memory.

    The gradient is that of the mean loss over all predicted tokens of the batch, regardless of the
    number of accumulation steps. Metrics are scalars on the device. In float32: `loss`
    (cross-entropy in nats per token), `z_loss` (added to the cross-entropy), `accuracy`,
    `gradient_norm` (before clipping), `learning_rate`, `tokens` (predicted), those of
    `router_metrics` in a model with experts, and, with guard.skip_nonfinite, `skipped` (1 if the
    update was not applied). In uint32: `batch`, the batch's fingerprint.
    """

    def train_step(state: State, batch: DeviceBatch) -> tuple[State, dict]:
        predicted, fingerprint = _sums((batch.targets_ABT >= 0).astype(jnp.uint32), _hashes(batch))
        tokens = jnp.maximum(predicted.astype(jnp.float32), 1)
        draw = state.step if config.adapt.dropout else None
        gradients, losses = loss_gradients(config, numerics, state.parts, batch, tokens, draw)
        routing = losses.statistics
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.params)
        metrics = {
            "loss": losses.cross_entropy / tokens,
            "z_loss": losses.z_loss / tokens,
            "accuracy": losses.correct / tokens,
            "gradient_norm": global_norm(gradients),
            "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
            "tokens": tokens,
            "batch": fingerprint,
            **router_metrics(config.model, routing, tokens, batch.tokens_ABT.size),
        }
        params = apply_updates(state.params, updates)
        params = FORMS[config.adapt.kind].constrain(config.model, config.adapt, params)
        params = moved_biases(config.model, params, routing)
        if config.guard.skip_nonfinite:
            is_finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["gradient_norm"])
            new, old = (params, optimizer_state), (state.params, state.optimizer)
            params, optimizer_state = jax.tree.map(
                lambda a, b: jnp.where(is_finite, a, b), new, old
            )
            metrics["skipped"] = (~is_finite).astype(jnp.float32)
        return State(params, optimizer_state, state.step + 1, state.frozen), metrics

    return jax.jit(train_step, donate_argnums=0)


def loss_gradients(
    config: Config,
    numerics: Numerics,
    params: dict | Parts,
    batch: DeviceBatch,
    tokens: Array,
    step: Array | None = None,
) -> tuple[dict, Losses]:
    """Returns the gradient of loss / tokens and the losses, summed over the accumulation steps.

    Each device runs its own forward and backward pass: gradients are taken inside the `shard_map`,
    of the trained parameters. step: completed updates, if there is dropout.
    """
    trained, frozen = params if isinstance(params, Parts) else (params, {})

    def device(trained, frozen, batch, tokens, step) -> tuple[dict, Losses]:
        def part_loss(trained: dict, part: DeviceBatch, number: Array | None):
            draw = None
            if step is not None:
                rows = part.tokens_ABT.shape[0] * axis_sizes()["pod"] * axis_sizes()["data"]
                first_row = (0 if number is None else number) * jnp.uint32(rows)
                draw = Draw(config.train.seed, step, first_row)
            parts = Parts(trained, frozen)
            losses = model_losses(config, numerics, parts, part, sum_gradients=True, draw=draw)
            return share_over_model(losses.loss / tokens), losses

        start = NO_LOSSES._replace(statistics=no_statistics(config.model))
        gradients, losses = _accumulated(part_loss, trained, batch, start, step is not None)
        return gradients, _totals(losses)

    places = spec("ABT", batch.tokens_ABT.shape)
    parts = DeviceBatch(places, places, None if batch.segments_ABT is None else places)
    specs = specs_of(trained)
    scalar = None if step is None else PartitionSpec()
    arguments = specs, specs_of(frozen), parts, PartitionSpec(), scalar
    return on_devices(device, arguments, (specs, _SCALARS))(trained, frozen, batch, tokens, step)


def model_losses(
    config: Config,
    numerics: Numerics,
    params: dict | Parts,
    part: DeviceBatch,
    sum_gradients: bool = False,
    draw: Draw | None = None,
) -> Losses:
    """Returns the local losses of one accumulation step; see `Decoder` for sum_gradients, and
    `adapt.parts.join` for draw."""
    if isinstance(params, Parts):
        params = join(config.model, config.adapt, params, draw)
    decoder = Decoder(config.model, numerics, params, sum_gradients)
    prompts = None
    if config.adapt.kind == "reft":
        prompts = document_prompts(part.targets_ABT, part.segments_ABT)
    x_BTD, found = decoder.with_statistics(part.tokens_ABT, part.segments_ABT, prompts)
    losses = OBJECTIVE(config, decoder, x_BTD, part)
    return with_router_losses(config.model, losses, found, part.targets_ABT)


def _totals(losses: Losses) -> Losses:
    """Sums losses over the whole batch. The results are replicated on every device."""
    return jax.tree.map(lambda value: total(value, ("pod", "data")), losses)


def losses_of(
    config: Config, numerics: Numerics, params: dict | Parts, part: DeviceBatch
) -> Losses:
    """Returns the losses of one accumulation step from global arrays [B, T], summed over tokens,
    without statistics.

    Differentiable, but the train step takes its gradients inside the `shard_map` instead.
    """

    def device(params: dict | Parts, part: DeviceBatch) -> Losses:
        losses = model_losses(config, numerics, params, part)
        return _totals(losses._replace(statistics={}))

    tokens = spec("BT", part.tokens_ABT.shape)
    parts = DeviceBatch(tokens, tokens, None if part.segments_ABT is None else tokens)
    return on_devices(device, (specs_of(params), parts), _SCALARS)(params, part)


def _accumulated(
    part_loss: Callable, params: dict, batch: DeviceBatch, start: Losses, numbered: bool
) -> tuple[dict, Losses]:
    """Sums gradients and losses over the accumulation steps, which may be numbered from 0.

    start: zeros.
    """
    gradient = jax.grad(part_loss, has_aux=True)
    steps = batch.tokens_ABT.shape[0]
    if steps == 1:
        return gradient(params, jax.tree.map(lambda x: x[0], batch), None)

    def add(sums, part):
        return jax.tree.map(jnp.add, sums, gradient(params, *part)), None

    zeros = jax.tree.map(jnp.zeros_like, params), start
    numbers = jnp.arange(steps, dtype=jnp.uint32) if numbered else None
    return jax.lax.scan(add, zeros, (batch, numbers))[0]


def _hashes(batch: DeviceBatch) -> Array:
    """Returns uint32 [A, B, T]: a hash of each token, its target and its index in the global batch.

    Their sum is the batch's fingerprint. It is the same on any mesh: an integer sum modulo 2^32
    depends on neither rounding nor order.
    """
    A, B, T = batch.tokens_ABT.shape
    index_ABT = jnp.arange(A * B * T, dtype=jnp.uint32).reshape(A, B, T)
    # Odd multipliers and the finalizer of a 32-bit hash (xor-shift and multiply) spread every bit.
    x_ABT = index_ABT * np.uint32(0x9E3779B1)
    x_ABT = x_ABT + batch.tokens_ABT.astype(jnp.uint32) * np.uint32(0x85EBCA77)
    x_ABT = x_ABT + batch.targets_ABT.astype(jnp.uint32) * np.uint32(0xC2B2AE3D)
    x_ABT = (x_ABT ^ (x_ABT >> 16)) * np.uint32(0x7FEB352D)
    x_ABT = (x_ABT ^ (x_ABT >> 15)) * np.uint32(0x846CA68B)
    return x_ABT ^ (x_ABT >> 16)


def _sums(*arrays_ABT: Array) -> Array:
    """Returns uint32 [len(arrays)]: each global sum modulo 2^32, in one all-reduce."""

    def device(*arrays):
        local = jnp.stack([array.sum(dtype=jnp.uint32) for array in arrays])
        return total(local, ("pod", "data"))

    places = spec("ABT", arrays_ABT[0].shape)
    return on_devices(device, (places,) * len(arrays_ABT), PartitionSpec())(*arrays_ABT)


class Program(NamedTuple):
    """The training program of a config: `training/loop.py` runs it, `planning/` compiles it ahead
    of time for another cluster."""

    numerics: Numerics
    optimizer: Optimizer
    train_step: jax.stages.Wrapped

    @classmethod
    def of(cls, config: Config, numerics: Numerics) -> "Program":
        optimizer = make_optimizer(config.optim, config.train.steps)
        schedule = make_schedule(config.optim, config.train.steps)
        return cls(numerics, optimizer, make_train_step(config, numerics, optimizer, schedule))


def abstract_batch(config: Config, batch_size: int, segments: bool) -> DeviceBatch:
    """Returns the shapes and shardings of a batch on the active mesh."""
    shape = (
        config.train.accumulate,
        batch_size // config.train.accumulate,
        config.data.sequence_length,
    )
    places = NamedSharding(jax.sharding.get_mesh(), spec("ABT", shape))
    array = jax.ShapeDtypeStruct(shape, np.int32, sharding=places)
    return DeviceBatch(array, array, array if segments else None)


def make_eval_step(
    config: Config, numerics: Numerics
) -> Callable[[dict | Parts, DeviceBatch], tuple[Losses, Array]]:
    """Returns `eval_step(params, batch) -> (sums over predicted tokens, number of them)`."""

    def eval_step(params: dict | Parts, batch: DeviceBatch) -> tuple[Losses, Array]:
        def add(sums: Losses, part: DeviceBatch) -> tuple[Losses, None]:
            return jax.tree.map(jnp.add, sums, losses_of(config, numerics, params, part)), None

        losses, _ = jax.lax.scan(add, NO_LOSSES, batch)
        return losses, _sums((batch.targets_ABT >= 0).astype(jnp.uint32))[0]

    return jax.jit(eval_step)


def on_mesh(batch: Batch, rows: np.ndarray, batch_size: int, accumulate: int) -> DeviceBatch:
    """Converts this process's rows of a batch to global arrays."""
    return DeviceBatch(
        *(None if x is None else to_devices(x, rows, batch_size, accumulate) for x in batch)
    )
