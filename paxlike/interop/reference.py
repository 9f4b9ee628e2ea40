"""Our decoder's logits, a layer at a time, in float32: what a conversion is checked against."""

import dataclasses
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import NamedSharding

from paxlike.accounting.parameters import stored_shapes
from paxlike.config import MeshConfig, ModelConfig
from paxlike.models.palm import bind
from paxlike.nn.attention import attention
from paxlike.nn.weight import Numerics
from paxlike.parallel.axes import letters_of
from paxlike.parallel.mesh import make_mesh, spec, weight_spec

NUMERICS = Numerics(compute="float32", params="float32", gradients="float32", attention="reference")


def logits(model: ModelConfig, read: Callable[[str, int | None], np.ndarray], tokens_T: np.ndarray) -> np.ndarray:
    """float32 [T, vocab_size] of one sequence. `read(name, layer)` gives a parameter; of one layer, where it is in the blocks.

    Runs the decoder's own parts with one layer's parameters in memory beside the embedding.
    """
    one = dataclasses.replace(model, layers=1, head="tied")  # the head's product is taken below
    names = [name.removeprefix("blocks/") for name, _ in stored_shapes(one) if name.startswith("blocks/")]
    positions_BT = np.arange(len(tokens_T), dtype=np.int32)[None]

    def placed(name: str, layer: int | None = None) -> jax.Array:
        array, letters = np.asarray(read(name, layer), np.float32), letters_of(name)
        if layer is not None:
            array, letters = array[None], f"L{letters}"
        return jax.device_put(array, NamedSharding(mesh, weight_spec(letters, array.shape)))

    def mix(q_BTNH, k_BSKH, v_BSKH):
        return attention(q_BTNH, k_BSKH, v_BSKH, None, implementation="reference"), None

    @jax.jit
    def run_layer(params, x_BTD):
        decoder = bind(one, NUMERICS, params)
        return jax.lax.scan(lambda x, block: block(x, positions_BT, mix), x_BTD, decoder.blocks)[0]

    mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    with jax.set_mesh(mesh), jax.default_matmul_precision("highest"):
        params = {"embedding_VD": placed("embedding_VD"), "scale_D": placed("scale_D")}
        for layer in range(model.layers):
            params["blocks"] = {name: placed(f"blocks/{name}", layer) for name in names}
            if layer == 0:
                x_BTD = bind(one, NUMERICS, params).embed(
                    jax.device_put(tokens_T[None], NamedSharding(mesh, spec("BT", (1, len(tokens_T)))))
                )
            x_BTD = run_layer(params, x_BTD)
        x_TD = np.asarray(bind(one, NUMERICS, params).finish(x_BTD))[0]
    if model.head == "tied":
        return x_TD @ np.asarray(params["embedding_VD"])[: model.vocab_size].T * model.d_model**-0.5
    return x_TD @ read("head_DV", None)[:, : model.vocab_size].astype(np.float32)
