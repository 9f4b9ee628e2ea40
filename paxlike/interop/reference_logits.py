"""Our decoder's logits, a layer at a time, in float32: what a conversion is checked against."""

from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from paxlike.architecture.stack import BLOCKS, layer_places, outer_weights
from paxlike.config import MeshConfig, ModelConfig
from paxlike.models.block import Weights
from paxlike.models.branch import Context
from paxlike.models.decoder import Decoder, sequence
from paxlike.nn.collectives import on_devices
from paxlike.nn.numerics import Numerics
from paxlike.nn.prefix import NAME, Prefix, PrefixWeights
from paxlike.parallel.mesh import make_mesh

NUMERICS = Numerics(compute="float32", params="float32", gradients="float32", attention="reference")


def logits(
    model: ModelConfig,
    read: Callable[[str, int | None], np.ndarray],
    tokens_T: np.ndarray,
    prefixes: dict[str, PrefixWeights] | None = None,
) -> np.ndarray:
    """float32 [T, vocab_size] of one sequence. `read(name, layer)` gives a parameter, or one layer
    of a stacked parameter. prefixes: what the sequence follows, by group, on the host.

    Runs the decoder's own parts, with one layer's parameters in memory besides the embedding.
    """
    mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    start = next(iter(prefixes.values())).length if prefixes else 0
    positions_BT = np.arange(start, start + len(tokens_T), dtype=np.int32)[None]

    def alone(function: Callable) -> Callable:
        return jax.jit(on_devices(function, P(), P()))

    def on_device(value: np.ndarray) -> jax.Array:
        return jax.device_put(np.asarray(value, np.float32), NamedSharding(mesh, P()))

    def placed(name: str, layer: int | None = None) -> jax.Array:
        return on_device(read(name, layer))

    def layer_function(block) -> Callable:
        def run(params, x_BTD):
            w = Weights(block, model, NUMERICS, params, sum_gradients=False)
            context = Context(model, NUMERICS, positions_BT)
            return sequence(context, keep_cache=False)(block, w, x_BTD, {})[0]

        return alone(run)

    with jax.set_mesh(mesh), jax.default_matmul_precision("highest"):
        functions = {kind: layer_function(BLOCKS[kind]) for kind in set(model.block_kinds)}
        outer = {s.name: placed(s.name) for s in outer_weights(model) if s.name != "head_DV"}
        embed = alone(lambda params, *at: Decoder(model, NUMERICS, params).embed(*at))
        tokens_BT, positions = jax.device_put(
            (tokens_T[None], positions_BT), NamedSharding(mesh, P())
        )
        x_BTD = embed(outer, tokens_BT, positions)
        for number, (group, index) in enumerate(layer_places(model)):
            params: dict = {
                spec.name: placed(f"{group.name}/{spec.name}", index)
                for spec in group.block.weights(model)
            }
            if prefixes:
                keys_and_values = prefixes[group.name].k, prefixes[group.name].v
                params[NAME] = Prefix(*(on_device(stack[index][None]) for stack in keys_and_values))
            kind = model.block_kinds[number % len(model.block_kinds)]
            x_BTD = functions[kind](params, x_BTD)
        finish = alone(lambda params, x: Decoder(model, NUMERICS, params).finish(x))
        x_TD = np.asarray(finish(outer, x_BTD))[0]
        if model.head == "tied":
            head_DV = np.asarray(outer["embedding_VD"])[: model.vocab_size].T
        else:
            head_DV = read("head_DV", None)[:, : model.vocab_size].astype(np.float32)
    found_TV = x_TD @ head_DV * model.logits_factor
    cap = model.logit_softcap
    return cap * np.tanh(found_TV / cap) if cap else found_TV
