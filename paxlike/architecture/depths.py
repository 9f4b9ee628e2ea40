"""The declaration of mixture of depths (arXiv 2404.02258, section 3); `models/depths.py` runs it.

A routed block is a block around which a router selects tokens. Its products and activations are
those of the selected tokens, its cache has places for them alone, and it has the weights of the
router and of the predictor. The two vectors multiply no matrix: they are not among the products.
"""

import math

from paxlike.architecture.branch import Activation, ActivationSizes, Product, WeightSpec
from paxlike.architecture.remat_policies import BLOCK_INPUT, PROJECTION
from paxlike.config import ModelConfig

NAME = "depths"
"""The router's name among the branches of a block: of its statistics and of its cache."""
PARTS = ROUTER, PREDICTOR = "depth router", "depth predictor"
CACHE_SLACK = 2
"""The cache has places for this many times the tokens that training routes. The predictor's number
of tokens is not fixed; a token that finds no place skips the block."""


def weights() -> tuple[WeightSpec, ...]:
    """Of the router, and of the predictor's network: W and a bias, a ReLU, and a vector."""
    return (
        WeightSpec("depth_router_D", ROUTER, "router"),
        WeightSpec("predictor_in_DX", PREDICTOR, "router"),
        WeightSpec("predictor_bias_X", "biases", "bias"),
        WeightSpec("predictor_out_X", PREDICTOR, "router"),
    )


def vectors(model: ModelConfig) -> int:
    """The parameters of one routed block's vectors, which are counted but multiply no matrix."""
    return model.d_model + model.depths.predictor_width


def products(
    model: ModelConfig, sequence_length: int, selected: tuple[Product, ...]
) -> tuple[Product, ...]:
    """selected: of a sequence of the selected tokens only, per selected token."""
    T, C = sequence_length, model.depths.tokens(sequence_length)
    D, X = model.d_model, model.depths.predictor_width
    return (
        Product("depth predictor", PREDICTOR, "2LDX", 2 * D * X, PROJECTION, input_gradient=False),
        *(p._replace(name=f"routed {p.name}", flops=p.flops * C // T, tokens=C) for p in selected),
    )


def activations(
    model: ModelConfig, sizes: ActivationSizes, selected: tuple[Activation, ...]
) -> tuple[Activation, ...]:
    """selected: of a sequence of the selected tokens only, per selected token."""
    T = sizes.sequence_length
    C = model.depths.tokens(T)
    shard = model.d_model // sizes.model_shards
    return (
        Activation("block input", sizes.bytes * shard, BLOCK_INPUT),
        # Of the selected tokens: their stream, and in float32 what the block adds to it.
        Activation("selected stream", math.ceil((sizes.bytes + 4) * shard * C / T), None),
        Activation("depth predictor", 4 * model.depths.predictor_width, PROJECTION),
        *(
            a._replace(bytes_per_token=math.ceil(a.bytes_per_token * C / T))
            for a in selected
            if a.kept_as != BLOCK_INPUT
        ),
    )


def caches(branches: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
    """The caches of a block's branches -> those of the routed block, and the number of tokens."""
    routed = {
        branch: {name: letters.replace("S", "O") for name, letters in arrays.items()}
        for branch, arrays in branches.items()
    }
    return {**routed, NAME: {"count": "B"}}


def places(model: ModelConfig, length: int) -> int:
    """The places that the cache of a routed block has, where others have `length`."""
    return min(length, math.ceil(CACHE_SLACK * model.depths.capacity * length))
