"""The loss of the predictors of routed blocks (arXiv 2404.02258, section 3.5), and their metrics.

A predictor's loss is the binary cross-entropy of whether its layer's router selects a token: the
mean over all tokens of an accumulation step on all devices, predicted or not. It is summed over the
layers, and an accumulation step counts by the number of its predicted tokens, as its cross-entropy
does.
"""

import jax
import jax.numpy as jnp

from paxlike.architecture.depths import NAME
from paxlike.architecture.stack import groups, layer_places
from paxlike.config import ModelConfig
from paxlike.models.decoder import Caches
from paxlike.nn.collectives import total
from paxlike.parallel import rules
from paxlike.parallel.mesh import batch_shards
from paxlike.training.loss import Losses

Array = jax.Array
COUNTS = ("routed", "predicted", "correct")


def _groups(model: ModelConfig) -> dict[str, int]:
    """Group -> layers, of the groups of routed blocks."""
    return {name: layers for name, block, layers in groups(model) if block.routed}


def no_depth_statistics(model: ModelConfig) -> dict:
    """The statistics of `with_depth_losses` before the first accumulation step."""
    if not model.routed:
        return {}
    counts = {
        name: {count: jnp.zeros(layers, jnp.int32) for count in COUNTS}
        for name, layers in _groups(model).items()
    }
    return {"depth_loss": jnp.zeros((), jnp.float32), NAME: counts}


def with_depth_losses(
    model: ModelConfig, losses: Losses, found: Caches, targets_BT: Array
) -> Losses:
    """This device's losses with those of the predictors, and what they are reported from.

    found: of `Decoder.with_statistics`. The results are sums over devices and accumulation steps:
    the loss times predicted tokens, and numbers of tokens.
    """
    if not model.routed:
        return losses
    stacks = {name: found[name][NAME] for name in _groups(model)}
    tokens = targets_BT.size * batch_shards()
    predicted = total((targets_BT >= 0).sum().astype(jnp.float32), rules.BATCH_AXES)
    sums = [stack["loss"].sum() for stack in stacks.values()]
    loss = jnp.stack(sums).sum() / tokens * predicted
    counts = {name: {c: stack[c] for c in COUNTS} for name, stack in stacks.items()}
    return losses._replace(
        loss=losses.loss + model.depths.predictor_loss * loss,
        statistics={**losses.statistics, "depth_loss": loss, NAME: counts},
    )


def depth_metrics(
    model: ModelConfig, found: dict, predicted: Array, positions: int
) -> dict[str, Array]:
    """Scalars by name, from the statistics of a whole batch.

    predicted: its predicted tokens. positions: its tokens. `predictor_loss` is the mean over the
    layers, without its weight. The others are parts of the tokens, for each routed layer from the
    first and as their mean: `routed_tokens` went through the block, the predictor would have taken
    `predictor_tokens`, and it agrees on `predictor_accuracy`.
    """
    if not model.routed:
        return {}
    counts = found[NAME]
    places = [(g.name, i) for g, i in layer_places(model) if g.name in counts]
    metrics = {"predictor_loss": found["depth_loss"] / predicted / len(places)}
    names = ("routed_tokens", "predictor_tokens", "predictor_accuracy")
    for name, count in zip(names, COUNTS, strict=True):
        parts_L = jnp.stack([counts[group][count][index] for group, index in places]) / positions
        metrics[name] = parts_L.mean()
        metrics |= {f"{name}/{layer}": parts_L[layer] for layer in range(len(places))}
    return metrics
