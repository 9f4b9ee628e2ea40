"""Our decoder's logits, a layer at a time, in float32: what a conversion is checked against."""

from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from paxlike.architecture.stack import groups, outer_weights
from paxlike.config import MeshConfig, ModelConfig
from paxlike.models.block import Weights, run_block
from paxlike.models.branch import Context
from paxlike.models.decoder import Decoder, sequence
from paxlike.nn.collectives import on_devices
from paxlike.nn.numerics import Numerics
from paxlike.parallel.mesh import make_mesh

NUMERICS = Numerics(compute="float32", params="float32", gradients="float32", attention="reference")


def logits(
    model: ModelConfig, read: Callable[[str, int | None], np.ndarray], tokens_T: np.ndarray
) -> np.ndarray:
    """float32 [T, vocab_size] of one sequence. `read(name, layer)` gives a parameter, or one layer
    of a stacked parameter.

    Runs the decoder's own parts, with one layer's parameters in memory besides the embedding.
    """
    mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    stack = list(groups(model))
    positions_BT = np.arange(len(tokens_T), dtype=np.int32)[None]

    def alone(function: Callable) -> Callable:
        return jax.jit(on_devices(function, P(), P()))

    def placed(name: str, layer: int | None = None) -> jax.Array:
        return jax.device_put(np.asarray(read(name, layer), np.float32), NamedSharding(mesh, P()))

    def layer_function(block) -> Callable:
        def run(params, x_BTD):
            w = Weights(block, model, NUMERICS, params, sum_gradients=False)
            context = Context(model, NUMERICS, positions_BT)
            return run_block(block, model, w, x_BTD, sequence(context, keep_cache=False)({}))[0]

        return alone(run)

    with jax.set_mesh(mesh), jax.default_matmul_precision("highest"):
        functions = {name: layer_function(block) for name, block, _ in stack}
        outer = {s.name: placed(s.name) for s in outer_weights(model) if s.name != "head_DV"}
        embed = alone(lambda params, tokens: Decoder(model, NUMERICS, params).embed(tokens))
        x_BTD = embed(outer, jax.device_put(tokens_T[None], NamedSharding(mesh, P())))
        for layer in range(model.layers):
            name, block, _ = stack[layer % len(stack)]
            params = {
                spec.name: placed(f"{name}/{spec.name}", layer // len(stack))
                for spec in block.weights(model)
            }
            x_BTD = functions[name](params, x_BTD)
        finish = alone(lambda params, x: Decoder(model, NUMERICS, params).finish(x))
        x_TD = np.asarray(finish(outer, x_BTD))[0]
        if model.head == "tied":
            head_VD = np.asarray(outer["embedding_VD"])[: model.vocab_size]
            return x_TD @ head_VD.T * model.d_model**-0.5
    return x_TD @ read("head_DV", None)[:, : model.vocab_size].astype(np.float32)
