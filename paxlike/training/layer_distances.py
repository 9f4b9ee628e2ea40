"""Measures by how much consecutive layers change the direction of the residual stream, on text."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from paxlike.adapt.prune import angular_distances
from paxlike.architecture.stack import layer_places
from paxlike.config import Config, DataConfig, UserError
from paxlike.data.batch import Batch
from paxlike.data.progress import counting
from paxlike.data.source import AnySource, validation_batches, weights_at
from paxlike.models.branch import Context
from paxlike.models.decoder import WATCHED, Decoder, sequence
from paxlike.nn.collectives import Leaf, on_devices, specs_of, total
from paxlike.nn.numerics import Numerics
from paxlike.parallel import rules
from paxlike.parallel.host_batches import local_rows, to_devices
from paxlike.parallel.mesh import spec
from paxlike.training.loaded_run import LoadedRun
from paxlike.training.objective import OBJECTIVE, DeviceBatch
from paxlike.training.step import on_mesh

Array = jax.Array


class Text(NamedTuple):
    """The text to measure on: the first sequences of the validation split."""

    source: AnySource
    data: DataConfig
    samples: int
    """Sequences of each store, rounded up to whole batches."""
    batch_size: int


class Measured(NamedTuple):
    distances: np.ndarray
    """float64 [L + 1, L + 1]: mean angular distance between the inputs of two layers, at the last
    token of a sequence. Index L is the output of the last layer, before the last norm."""
    samples: int
    loss: float
    """Cross-entropy of all tokens of the text, nats per token."""


class Sums(NamedTuple):
    """Sums over sequences and tokens; or their PartitionSpecs."""

    distances: Leaf
    samples: Leaf
    cross_entropy: Leaf
    tokens: Leaf


def measure(run: LoadedRun, text: Text, title: str) -> Measured:
    """Reads the text once. Shows progress on standard error.

    Parts of a mixture are weighted as in training. Raises UserError if the text cannot be read or
    the model's activations are not finite.
    """
    train = dataclasses.replace(
        run.config.train, batch_size=text.batch_size, batch_ramp=(), accumulate=1
    )
    with jax.set_mesh(run.mesh), counting(title, "sequences") as show:
        rows = local_rows(text.batch_size, 1)
        parts: dict[str, Sums] = {}
        for name, source in validation_batches(text.source, text.data, train).items():
            sums, before = Sums(0.0, 0.0, 0.0, 0.0), sum(part.samples for part in parts.values())
            for batch in source.batches(-(-text.samples // text.batch_size), lambda _: rows):
                placed = on_mesh(batch, rows, text.batch_size, 1)
                last_AB1 = to_devices(last_tokens(batch)[:, None], rows, text.batch_size, 1)
                program = {"config": run.config, "numerics": run.numerics}
                found = sums_of(run.params, placed, last_AB1, **program)
                sums = Sums(*(a + np.float64(b) for a, b in zip(sums, found, strict=True)))
                show(int(before + sums.samples))
            parts[name] = sums
    weights = weights_at(text.source, run.step)
    distances = sum(weights[name] * s.distances / max(s.samples, 1) for name, s in parts.items())
    loss = sum(weights[name] * s.cross_entropy / max(s.tokens, 1) for name, s in parts.items())
    samples = int(sum(s.samples for s in parts.values()))
    _check(samples, distances, text)
    return Measured(distances, samples, float(loss))


def _check(samples: int, distances: np.ndarray, text: Text) -> None:
    if not samples:
        raise UserError(f"the validation split of {text.source.name} has no predicted token.")
    if not np.isfinite(distances).all():
        layer = int(np.argmax(~np.isfinite(distances.diagonal())))
        raise UserError(
            f"the residual stream is not finite after {layer} of {len(distances) - 1} layers. "
            "Choose another checkpoint with --step."
        )


def last_tokens(batch: Batch) -> np.ndarray:
    """The position of the last token of each row's sequence, int32 [B]; -1 for a row of padding.

    Of a row with several documents it is the end of the longest one, which has the most context;
    of equal ones, the first.
    """
    B, T = batch.tokens_BT.shape
    if batch.segments_BT is None:
        return np.where((batch.targets_BT >= 0).any(1), T - 1, -1).astype(np.int32)
    last = np.full(B, -1, np.int32)
    for row, segments in enumerate(batch.segments_BT):
        lengths = np.bincount(segments)[1:]  # 0 is padding
        if lengths.size:
            last[row] = np.flatnonzero(segments == 1 + lengths.argmax())[-1]
    return last


@functools.partial(jax.jit, static_argnames=("config", "numerics"))
def sums_of(
    params: dict, batch: DeviceBatch, last_AB1: Array, *, config: Config, numerics: Numerics
) -> Sums:
    """The sums of a batch with one accumulation step. last_AB1: positions (`last_tokens`); a row
    with -1 is left out of the distances.
    """

    def device(params: dict, batch: DeviceBatch, last_AB1: Array) -> Sums:
        part, last_B = jax.tree.map(lambda x: x[0], batch), last_AB1[0, :, 0]
        decoder = Decoder(config.model, numerics, params)
        x_BTD, streams = _streams(decoder, part, jnp.maximum(last_B, 0))
        real_B = last_B >= 0
        distances = jnp.where(real_B[None, None], angular_distances(streams), 0).sum(-1)
        losses = OBJECTIVE(config, decoder, decoder.finish(x_BTD), part)
        tokens = (part.targets_ABT >= 0).sum()
        sums = Sums(distances, real_B.sum(), losses.cross_entropy, tokens)
        return jax.tree.map(lambda x: total(x, rules.BATCH_AXES), sums)

    places = spec("ABT", batch.tokens_ABT.shape)
    specs = jax.tree.map(lambda _: places, batch), spec("ABT", last_AB1.shape)
    everywhere = Sums(*(PartitionSpec(),) * len(Sums._fields))
    return on_devices(device, (specs_of(params), *specs), everywhere)(params, batch, last_AB1)


def _streams(decoder: Decoder, part: DeviceBatch, at_B: Array) -> tuple[Array, Array]:
    """(x_BTD after all layers, this device's part of the stream at one position of each row before
    every layer and after the last: [L + 1, B, D])."""
    tokens_BT, segments_BT = part.tokens_ABT, part.segments_ABT
    positions_BT = jnp.arange(tokens_BT.shape[1], dtype=jnp.int32)[None]
    context = Context(decoder.config, decoder.numerics, positions_BT, segments_BT)

    def watch(x_BTD: Array) -> Array:
        return jnp.take_along_axis(x_BTD, at_B[:, None, None], axis=1)[:, 0]

    x_BTD, found = decoder.run(
        decoder.embed(tokens_BT, positions_BT), sequence(context, keep_cache=False), watch=watch
    )
    inputs = [found[g.name][WATCHED]["input"][i] for g, i in layer_places(decoder.config)]
    return x_BTD, jnp.stack([*inputs, watch(x_BTD)])
