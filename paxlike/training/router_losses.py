"""Losses and metrics of routers, and the moves of their selection biases.

With f_e the fraction of all choices that fall on expert e (their sum is 1) and P_e the mean of its
probability over the tokens, a layer's losses are

    balance = N sum_e f_e P_e      1 for an even load      (arXiv 2101.03961, eq. 4)
    z       = mean of log^2 sum_e exp(logit_e)             (arXiv 2202.08906, eq. 5)

f and P are of all tokens of an accumulation step on all devices, predicted or not: the losses do
not depend on the mesh. They are summed over the layers, and an accumulation step counts by the
number of its predicted tokens, as its cross-entropy does.
"""

import jax
import jax.numpy as jnp

from paxlike.architecture.experts import SELECTION_BIAS
from paxlike.architecture.stack import groups, layer_places
from paxlike.config import ModelConfig
from paxlike.models.decoder import Caches
from paxlike.nn.collectives import total
from paxlike.parallel import rules
from paxlike.parallel.mesh import batch_shards
from paxlike.training.loss import Losses

Array = jax.Array

LOAD, ROWS = "expert_load", "expert_rows"
ROUTED = {"experts": "", "expert_heads": "heads_"}
"""Branch with a router -> what its metrics begin with."""


def _routers(model: ModelConfig) -> dict[tuple[str, str], int]:
    """(group, branch) of every stack of routers -> its layers."""
    return {
        (name, branch.name): layers
        for name, block, layers in groups(model)
        for branch in block.branches
        if branch.name in ROUTED
    }


def no_statistics(model: ModelConfig) -> dict:
    """The statistics of `with_router_losses` before the first accumulation step."""
    if not model.experts.active:
        return {}
    zero, found = jnp.zeros((), jnp.float32), _routers(model)
    return {
        "balance_loss": zero,
        "router_z_loss": zero,
        LOAD: {key: jnp.zeros((n, model.experts.count), jnp.int32) for key, n in found.items()},
        "router_entropy": {key: jnp.zeros(n, jnp.float32) for key, n in found.items()},
        ROWS: {key: jnp.zeros(n, jnp.int32) for key, n in found.items()},
    }


def with_router_losses(
    model: ModelConfig, losses: Losses, found: Caches, targets_BT: Array
) -> Losses:
    """This device's losses with those of the routers, and what they are reported from.

    found: of `Decoder.with_statistics`. The results are sums over devices and accumulation steps:
    losses times predicted tokens, loads in choices, and entropies.
    """
    c = model.experts
    if not c.active:
        return losses
    stacks = {(group, branch): found[group][branch] for group, branch in _routers(model)}
    tokens = targets_BT.size * batch_shards()

    def joined(name: str) -> Array:
        return jnp.concatenate([stack[name] for stack in stacks.values()])

    predicted = total((targets_BT >= 0).sum().astype(jnp.float32), rules.BATCH_AXES)
    fractions_LE = total(joined("load_E"), rules.BATCH_AXES).astype(jnp.float32) / (
        tokens * c.top_k
    )
    means_LE = joined("probability_E") / tokens  # this device's terms of the means
    balance = c.count * (fractions_LE * means_LE).sum() * predicted
    z = joined("z").sum() / tokens * predicted
    return losses._replace(
        loss=losses.loss + c.balance_loss * balance + c.z_loss * z,
        statistics={
            "balance_loss": balance,
            "router_z_loss": z,
            LOAD: {key: stack["load_E"] for key, stack in stacks.items()},
            "router_entropy": {key: stack["entropy"] for key, stack in stacks.items()},
            ROWS: {key: stack["rows"] for key, stack in stacks.items()},
        },
    )


def router_metrics(
    model: ModelConfig, found: dict, predicted: Array, positions: int
) -> dict[str, Array]:
    """Scalars by name, from the statistics of a whole batch.

    predicted: its predicted tokens. positions: its tokens. Losses are means over the routers, and
    without their weights. `expert_load` is the load of a router's busiest expert over the mean (1:
    even, N: one expert has all); `router_entropy` is in nats (at most log N). Both are also given
    for each layer with experts, from the first, and with `heads_` in front for experts of attention
    heads. `dropped_choices` is the fraction of choices for which no device had a row.
    """
    if not model.experts.active:
        return {}
    places = [
        ((group.name, branch), index)
        for branch in ROUTED
        for group, index in layer_places(model)
        if (group.name, branch) in found[LOAD]
    ]
    loads_LE = jnp.stack([found[LOAD][key][index] for key, index in places])
    load_L = loads_LE.max(-1) / jnp.maximum(loads_LE.mean(-1), 1e-9)
    entropy_L = jnp.stack([found["router_entropy"][key][index] for key, index in places])
    entropy_L /= positions
    choices = positions * model.experts.top_k * len(places)
    metrics = {
        "balance_loss": found["balance_loss"] / predicted / len(places),
        "router_z_loss": found["router_z_loss"] / predicted / len(places),
        "expert_load": load_L.max(),
        "router_entropy": entropy_L.mean(),
        "dropped_choices": 1 - sum(rows_L.sum() for rows_L in found[ROWS].values()) / choices,
    }
    counts = dict.fromkeys(ROUTED, 0)
    for row, ((_, branch), _) in enumerate(places):
        start, layer = ROUTED[branch], counts[branch]
        metrics[f"{start}expert_load/{layer}"] = load_L[row]
        metrics[f"{start}router_entropy/{layer}"] = entropy_L[row]
        counts[branch] += 1
    return metrics


def moved_biases(model: ModelConfig, params: dict, found: dict) -> dict:
    """params, whose selection biases have moved toward an even load (arXiv 2408.15664, algorithm
    1): up for an expert below the mean, down for one above it.
    """
    step = model.experts.bias_step
    if not step:
        return params
    moved = {}
    for name, branch in _routers(model):
        if SELECTION_BIAS in params.get(name, {}):  # frozen under an adapter
            load_LE = found[LOAD][name, branch].astype(jnp.float32)
            error_LE = load_LE.mean(-1, keepdims=True) - load_LE
            old_LE = params[name][SELECTION_BIAS]
            new_LE = old_LE + (step * jnp.sign(error_LE)).astype(old_LE.dtype)
            moved[name] = {**params[name], SELECTION_BIAS: new_LE}
    return {**params, **moved}
