"""The decoder: an embedding, a stack of blocks, a norm and a head (PaLM, arXiv 2204.02311, section
2).

It is the program of one device: made of this device's shards, inside of `on_devices`
(`nn/collectives.py`). Which branches a block has, and which blocks the stack repeats, is declared
in `architecture/`.

Letters: B batch, T query time, S key time, D width, F feed-forward, N query heads, K key/value
heads, H head dim, V vocabulary rows, L layers.
"""

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp

from paxlike.architecture.stack import (
    Block,
    Group,
    groups,
    norm_bias,
    outer_weights,
    repeated,
    rest,
)
from paxlike.config import ModelConfig
from paxlike.models import depths
from paxlike.models.ahead import first_weights
from paxlike.models.block import RunBranch, RunLayer, Weights, run_block
from paxlike.models.branch import Cache, Context
from paxlike.models.branches import FORWARD
from paxlike.nn import intervention, remat
from paxlike.nn.collectives import on_devices, specs_of
from paxlike.nn.embedding import own_rows
from paxlike.nn.intervention import Prompts, intervene, row_prompts
from paxlike.nn.layer_loop import run_layers
from paxlike.nn.norm import norm
from paxlike.nn.numerics import Numerics
from paxlike.nn.prefix import document_positions, prefix_lengths
from paxlike.nn.stream import scatter_stream
from paxlike.nn.weight import check_quantized, initial, places_of, with_summed_gradient
from paxlike.nn.wrapped import Wrapped
from paxlike.parallel import rules
from paxlike.parallel.mesh import spec

Array = jax.Array
Caches = dict[str, dict[str, Cache]]
"""Group of blocks -> branch -> name -> array, layers first."""
WATCHED = "watched"
"""What `Decoder.run` returns in place of a branch's name."""


class HeadWeight(NamedTuple):
    """The weight of the logits: the embedding if tied."""

    letters: str
    """`VD` or `DV`."""
    places: tuple[rules.Axis, ...]
    shard: Array
    zeros_VD: Array | None
    """If tied: zeros, whose gradient is added to that of the embedding (`nn/embedding.py`)."""


class Decoder:
    """The decoder of one device."""

    def __init__(
        self,
        config: ModelConfig,
        numerics: Numerics,
        params: dict,
        sum_gradients: bool = False,
        by_predictor: bool = False,
    ):
        """params: this device's shards, in the layout of `init_params`. by_predictor: see
        `Context`.

        sum_gradients: the gradient of every parameter is summed over the devices that have a copy
        of it, as needed where gradients are taken inside `on_devices`. JAX does it for those taken
        outside.
        """
        self.config, self.numerics, self.sum_gradients = config, numerics, sum_gradients
        self.by_predictor = by_predictor
        self._zeros_VD: Array | None = None
        if sum_gradients:
            summed = {
                spec.name: with_summed_gradient(spec, params[spec.name], config, numerics)
                for spec in outer_weights(config)
            }
            params = {**params, **summed}
        self.params = params

    def __call__(
        self,
        tokens_BT: Array,
        segments_BT: Array | None = None,
        prompts: Prompts | None = None,
    ) -> Array:
        """This device's part of the last hidden states, normed, in the compute dtype.

        An objective (`training/objective.py`) turns them into a loss, `logits` into logits.
        prompts: where ReFT changes the stream; None: every row is a prompt.
        """
        return self.with_statistics(tokens_BT, segments_BT, prompts)[0]

    def with_statistics(
        self,
        tokens_BT: Array,
        segments_BT: Array | None = None,
        prompts: Prompts | None = None,
    ) -> tuple[Array, Caches]:
        """The same, and the statistics of every layer's branches (`Forward.statistics`)."""
        positions_BT = jnp.arange(tokens_BT.shape[1], dtype=jnp.int32)[None]
        if (before := prefix_lengths(self.params)) is not None:
            # Each document follows the prefix, at the positions that it has alone in a row.
            positions_BT = before + document_positions(tokens_BT.shape[1], segments_BT)
        how = self.config, self.numerics
        context = Context(*how, positions_BT, segments_BT, by_predictor=self.by_predictor)
        x_BTD = self.embed(tokens_BT, positions_BT)
        if prompts is None:
            B, T = tokens_BT.shape
            prompts = row_prompts(B, T)
        run = sequence(context, keep_cache=False)
        x_BTD, found = self.run(x_BTD, run, prompts=prompts)
        return self.finish(x_BTD), found

    def embed(self, tokens_BT: Array, positions_BT: Array) -> Array:
        """positions_BT: int32; the batch may be 1."""

        def rows(name: str, indices_BT: Array) -> tuple[Array, Array]:
            n, places = self.numerics, self._places(name)
            return own_rows(self.params[name], indices_BT, places, n.compute, n.gradients)

        x_BTD, self._zeros_VD = rows("embedding_VD", tokens_BT)
        if self.config.embedding_scale != 1:
            x_BTD *= jnp.asarray(self.config.embedding_scale, x_BTD.dtype)
        if self.config.learned_positions:
            x_BTD += rows("positions_PD", positions_BT)[0]
        return scatter_stream(x_BTD)

    def run(
        self,
        x_BTD: Array,
        run: RunLayer,
        caches: Caches | None = None,
        prompts: Prompts | None = None,
        watch: Callable[[Array], Array] | None = None,
    ) -> tuple[Array, Caches]:
        """The stack: x_BTD after all layers, and what their branches cache, layers first.

        run: the forward pass of a layer (`sequence`, `token`). prompts: of the tokens; None after
        them, where ReFT changes nothing. watch: what to keep of the input x_BTD of each layer; it
        is returned beside the caches of branches, under `WATCHED`.
        """
        c, n = self.config, self.numerics

        def layer(block: Block, x_BTD: Array, params: dict, caches: dict) -> tuple[Array, dict]:
            if n.ring:
                # Without it TPU compilers copy the whole stack of saved streams into another
                # layout, in every layer of the backward pass (docs/performance.md).
                x_BTD = jax.lax.optimization_barrier(x_BTD)
            w = Weights(block, c, n, params, self.sum_gradients)
            watched = {WATCHED: {"input": watch(x_BTD)}} if watch else {}
            x_BTD, found = run(block, w, x_BTD, caches)
            if prompts is not None and intervention.NAME in params:
                x_BTD = intervene(params[intervention.NAME], x_BTD, prompts, n)
            return x_BTD, {**found, **watched}

        def period(layers: dict[str, Callable], x_BTD: Array, of: tuple) -> tuple[Array, dict]:
            params, old = of
            found = {}
            for name, one in layers.items():
                x_BTD, found[name] = one(x_BTD, params[name], old[name] if old else {})
            return x_BTD, found

        found: Caches = {}
        for stack in filter(None, (repeated(c), rest(c))):
            layers = {
                name: remat.of_block(c.remat, functools.partial(layer, block), n.ring)
                for name, block, _ in stack
            }
            body = functools.partial(period, layers)

            def without_caches(x_BTD: Array, params: dict, body: Callable = body) -> tuple:
                return body(x_BTD, (params, None))

            old = caches and {group.name: caches[group.name] for group in stack}
            parts = []
            for stacked in self._segments(stack):
                ahead = None if caches else first_weights(stack, stacked, c, n)
                if ahead:
                    x_BTD, new = run_layers(without_caches, x_BTD, stacked, ahead)
                else:
                    x_BTD, new = jax.lax.scan(body, x_BTD, (stacked, old))
                parts.append(new)
            if len(parts) > 1:
                new = jax.tree.map(lambda *layers: jnp.concatenate(layers), *parts)
            found |= new
        return x_BTD, found

    def _segments(self, stack: tuple[Group, ...]) -> list[dict]:
        """The stacked parameters by group: one dict, or several for consecutive runs of layers, of
        which some are frozen (`adapt/parts.py`)."""
        groups = {name: self.params[name] for name, _, _ in stack}
        first = groups[stack[0][0]]
        parts = [groups]
        if isinstance(first, list):
            parts = [{name: p[i] for name, p in groups.items()} for i in range(len(first))]
        return [{group.name: self._whole(part[group.name]) for group in stack} for part in parts]

    def _whole(self, params: dict) -> dict:
        how = self.config, self.numerics, self.sum_gradients
        return {
            name: value.whole(name, *how) if isinstance(value, Wrapped) else value
            for name, value in params.items()
        }

    def finish(self, x_BTD: Array) -> Array:
        c, p = self.config, self.params
        bias_D = p[norm_bias("scale_D")] if c.norm_bias else None
        how = c.norm, c.norm_epsilon
        return norm(x_BTD, p["scale_D"], *how, bias_D=bias_D, offset=c.norm_offset)

    def head(self) -> HeadWeight:
        """The head, after `embed`."""
        tied = self.config.head == "tied"
        name = "embedding_VD" if tied else "head_DV"
        zeros_VD = self._zeros_VD if tied else None
        return HeadWeight(name[-2:], self._places(name), self.params[name], zeros_VD)

    def _places(self, name: str) -> tuple[rules.Axis, ...]:
        spec = next(spec for spec in outer_weights(self.config) if spec.name == name)
        return places_of(spec, self.config)


def sequence(context: Context, keep_cache: bool) -> RunLayer:
    """The forward pass of a layer over a whole sequence. keep_cache: whether generation follows."""

    def branches(context: Context) -> RunBranch:
        def run(branch, w, y_BTD):
            forward = FORWARD[branch.name]
            partial_BTD, found = forward.sequence(w, y_BTD, context)
            if not keep_cache:
                found = {name: found[name] for name in forward.statistics}
            return partial_BTD, found

        return run

    def layer(block: Block, w: Weights, x_BTD: Array, _) -> tuple[Array, dict[str, Cache]]:
        if block.routed:
            return depths.sequence(block, w, x_BTD, context, branches, keep_cache)
        return run_block(block, context.config, w, x_BTD, branches(context))

    return layer


def token(context: Context) -> RunLayer:
    """The forward pass of a layer over one more token, which reads the caches."""

    def branches(context: Context, caches: dict[str, Cache]) -> RunBranch:
        return lambda branch, w, y_BTD: FORWARD[branch.name].token(
            w, y_BTD, context, caches[branch.name]
        )

    def layer(block, w, x_BTD, caches) -> tuple[Array, dict[str, Cache]]:
        if block.routed:
            return depths.token(block, w, x_BTD, context, branches, caches)
        return run_block(block, context.config, w, x_BTD, branches(context, caches))

    return layer


def init_params(config: ModelConfig, numerics: Numerics, seed: int) -> dict:
    """Initial parameters as a nested dict of arrays, as checkpoints store them.

    `blocks/wq_DNH` is [L, D, N, H]. Call it inside `jax.jit` with an active mesh: every array is
    then created sharded. Equal on every mesh.
    """
    keys = _keys(jax.random.key(seed))
    embedding, *others = outer_weights(config)
    params: dict = {embedding.name: initial(embedding, config, keys, numerics.params)}
    for name, block, layers in groups(config):
        of_layers = jax.random.split(next(keys), layers)
        params[name] = jax.vmap(functools.partial(_block, block, config, numerics))(of_layers)
    for weight in reversed(others):
        params[weight.name] = initial(weight, config, keys, numerics.params)
    return params


def _block(block: Block, config: ModelConfig, numerics: Numerics, key: Array) -> dict:
    keys = _keys(key)
    weights = block.weights(config)
    for weight in weights:
        check_quantized(weight, config)
    return {weight.name: initial(weight, config, keys, numerics.params) for weight in weights}


def _keys(key: Array) -> Iterator[Array]:
    """A key for every draw."""
    return (jax.random.fold_in(key, draw) for draw in itertools.count())


def hidden_states(
    config: ModelConfig,
    numerics: Numerics,
    params: dict,
    tokens_BT: Array,
    segments_BT: Array | None = None,
    by_predictor: bool = False,
) -> Array:
    """The last hidden states x_BTD, normed, as a global array on the active mesh."""

    def device(params, *tokens):
        return Decoder(config, numerics, params, by_predictor=by_predictor)(*tokens)

    tokens = (tokens_BT,) if segments_BT is None else (tokens_BT, segments_BT)
    places = spec("BT", tokens_BT.shape)
    x_spec = spec("BTD", (*tokens_BT.shape, config.d_model))
    run = on_devices(device, (specs_of(params), *(places,) * len(tokens)), x_spec)
    return run(params, *tokens)
