"""One layer of the decoder: branches around norms, as `architecture/stack.py` declares them."""

from collections.abc import Callable
from typing import cast

import jax

from paxlike.architecture.branch import Branch
from paxlike.architecture.stack import Block, norm_bias
from paxlike.config import ModelConfig
from paxlike.models.branch import Cache
from paxlike.nn import prefix, remat
from paxlike.nn.norm import norm
from paxlike.nn.numerics import Numerics
from paxlike.nn.prefix import Prefix
from paxlike.nn.ring import Partial, RingSteps
from paxlike.nn.stream import Stream, Summed, scatter_stream
from paxlike.nn.weight import in_use, with_summed_gradient
from paxlike.nn.wrapped import Wrapped

Array = jax.Array
RunLayer = Callable[[Block, "Weights", Array, dict[str, Cache]], tuple[Array, dict[str, Cache]]]
"""(block, weights, x_BTD, the layer's caches) -> (x_BTD after the layer, what its branches
cache)."""
RunBranch = Callable[[Branch, "Weights", Stream], tuple[Array | Partial | Summed, Cache]]
"""(branch, weights, normed stream) -> (partial_BTD, what the branch caches)."""


class Weights:
    """The weights of a block by name, in the form in which they are used (`nn/weight.py`)."""

    def __init__(
        self,
        block: Block,
        config: ModelConfig,
        numerics: Numerics,
        params: dict,
        sum_gradients: bool,
    ):
        """params: this device's shards of one layer. sum_gradients: see `Decoder`."""
        self.prefix: Prefix | None = params.get(prefix.NAME)
        ring = RingSteps() if numerics.ring else None
        for spec in block.weights(config):
            value = params[spec.name]
            if isinstance(value, Wrapped):
                value = value.in_layer()  # its base is frozen, and `whole` sums
            elif sum_gradients:
                value = with_summed_gradient(spec, value, config, numerics)
            setattr(self, spec.name, in_use(spec, value, config, numerics, ring))

    def __getitem__(self, name: str) -> Array:
        return getattr(self, name)


def run_block(
    block: Block, config: ModelConfig, w: Weights, x_BTD: Array, run: RunBranch
) -> tuple[Array, dict[str, Cache]]:
    """x_BTD after this layer, and what each branch caches, by its name.

    `run` is the forward pass of a branch: of a sequence or of a token.
    """
    x_BTD, _, caches = run_branches(block, config, w, x_BTD, run)
    return x_BTD, caches


def run_branches(
    block: Block, config: ModelConfig, w: Weights, x_BTD: Array, run: RunBranch
) -> tuple[Array, Array, dict[str, Cache]]:
    """(x_BTD after the branches, the sum of what they add to it, what each caches)."""
    scales, output_scales = block.norm_names(config), block.output_norm_names(config)

    def normed(x_BTD: Array, scales: tuple[str, ...], number: int) -> Array:
        if not scales:
            return x_BTD
        scale = scales[number]
        bias_D = w[norm_bias(scale)] if config.norm_bias else None
        how = config.norm, config.norm_epsilon
        return norm(x_BTD, w[scale], *how, bias_D=bias_D, offset=config.norm_offset)

    caches = {}
    if block.kind != "serial":
        norms = [Stream(normed(x_BTD, scales, n)) for n in range(max(1, len(scales)))]
        partials = []
        for number, branch in enumerate(block.branches):
            y_BTD = norms[number % len(norms)]
            partial_BTD, caches[branch.name] = run(branch, w, y_BTD)
            partials.append(partial_BTD)
        summed_BTD = cast(Array | Partial | Summed, sum(partials))
        update_BTD = scatter_stream(summed_BTD.astype(x_BTD.dtype))
        return x_BTD + update_BTD, update_BTD, caches
    added = []
    for number, branch in enumerate(block.branches):
        if number and not output_scales:
            (x_BTD,) = remat.keep(remat.STREAM, x_BTD)
        y_BTD = Stream(normed(x_BTD, scales, number))
        partial_BTD, caches[branch.name] = run(branch, w, y_BTD)
        update_BTD = scatter_stream(partial_BTD.astype(x_BTD.dtype))
        if output_scales:
            (update_BTD,) = remat.keep(remat.STREAM, update_BTD)
        added.append(normed(update_BTD, output_scales, number))
        x_BTD += added[-1]
    return x_BTD, cast(Array, sum(added)), caches
