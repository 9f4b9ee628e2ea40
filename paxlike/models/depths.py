"""The forward pass of routed blocks: mixture of depths (arXiv 2404.02258, section 3).

    r_i = w . x_i                               the router's score of a token
    x_i = x_i + r_i f(selected tokens)_i        where token i is selected; unchanged elsewhere

f is the sum of what the block's branches add. It runs on the selected tokens alone, in their order
and at their own positions. In training, the C tokens of a document with the largest scores are
selected (`DepthsConfig.tokens`). With `Context.by_predictor`, those for which the predictor's
probability is above 1/2: a function of the token and of what it attends to.

Scores and decisions are in float32 and equal on all devices along `model`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from paxlike.architecture.depths import NAME
from paxlike.architecture.stack import Block
from paxlike.config import ConfigError
from paxlike.models.block import RunBranch, Weights, run_branches
from paxlike.models.branch import Cache, Context
from paxlike.nn import remat
from paxlike.nn.collectives import gather_weight, mean, total
from paxlike.nn.selection import best_places, first_places, marked, rows_at, with_added

Array = jax.Array
Caches = dict[str, Cache]
SPLASH_TOKENS = 128
"""Splash attention requires a multiple of this many tokens."""


def sequence(
    block: Block,
    w: Weights,
    x_BTD: Array,
    context: Context,
    branches: Callable[[Context], RunBranch],
    keep_cache: bool,
) -> tuple[Array, Caches]:
    """x_BTD after the block, and what its branches cache (with the number of tokens) or the
    statistics of the router, by branch.

    branches: gives the forward pass of the branches for the selected tokens' context.
    """
    B, T, _ = x_BTD.shape
    scores_BT, logits_BT = router_scores(w, x_BTD), predictor_logits(w, x_BTD, context)
    if context.by_predictor:
        selected_BT, slots = _predicted(logits_BT, context), _slots(context, T)
        places_BC = first_places(selected_BT, slots)
        count_B = jnp.minimum(selected_BT.sum(1, dtype=jnp.int32), context.routed_places or T)
        places_BC = jnp.where(jnp.arange(slots)[None] < count_B[:, None], places_BC, T)
    else:
        places_BC = best_places(scores_BT, context.segments_BT, context.config.depths)
        _check_kernel(context, places_BC.shape[1], T)
    segments_BT = context.segments_BT
    inside = context._replace(
        positions_BT=rows_at(jnp.broadcast_to(context.positions_BT, (B, T)), places_BC),
        # Empty slots come last, where no selected token attends to them.
        segments_BT=None if segments_BT is None else rows_at(segments_BT, places_BC),
    )
    x_BCD = rows_at(x_BTD, places_BC)
    _, update_BCD, found = run_branches(block, context.config, w, x_BCD, branches(inside))
    update_BCD = _weighted(update_BCD, rows_at(scores_BT, places_BC))
    x_BTD = with_added(x_BTD, update_BCD, places_BC)
    if keep_cache:
        return x_BTD, {**found, NAME: {"count": count_B}}
    return x_BTD, {**found, NAME: _statistics(logits_BT, marked(places_BC, T))}


def token(
    block: Block,
    w: Weights,
    x_BTD: Array,
    context: Context,
    branches: Callable[[Context, Caches], RunBranch],
    caches: Caches,
) -> tuple[Array, Caches]:
    """The same for one more token of each row, which the predictor decides about.

    A token that finds no place in the cache passes the block unchanged.
    """
    c, count_B = context.config, caches[NAME]["count"]
    places = next(
        caches[branch][name].shape[1]
        for branch, arrays in block.caches(c).items()
        for name, letters in arrays.items()
        if "O" in letters
    )
    wanted_B = predictor_logits(w, x_BTD, context)[:, 0] > 0
    routed_B = wanted_B & (count_B < places)
    inside = context._replace(place_B=jnp.minimum(count_B, places - 1))
    _, update_BTD, found = run_branches(block, c, w, x_BTD, branches(inside, caches))
    update_BTD = _weighted(update_BTD, router_scores(w, x_BTD))
    x_BTD = jnp.where(routed_B[:, None, None], x_BTD + update_BTD, x_BTD)
    return x_BTD, {**found, NAME: {"count": count_B + routed_B.astype(jnp.int32)}}


def router_scores(w, x_BTD: Array) -> Array:
    """float32 [B, T]. A product with a vector, which is no matrix product to count."""
    weight_D = w.depth_router_D.shard.astype(jnp.float32)
    return total((x_BTD.astype(jnp.float32) * weight_D[None, None]).sum(-1), "model")


def predictor_logits(w, x_BTD: Array, context: Context) -> Array:
    """float32 [B, T]: of a network of the stream, to which no gradient returns.

    Its input is divided by its root mean square, because the stream grows from layer to layer.
    """
    wide_BTD = jax.lax.stop_gradient(x_BTD).astype(jnp.float32)
    power_BT1 = mean(jnp.square(wide_BTD).mean(-1, keepdims=True), "model")
    wide_BTD *= jax.lax.rsqrt(power_BT1 + context.config.norm_epsilon)
    w_DX = gather_weight(w.predictor_in_DX.shard, w.predictor_in_DX.places, jnp.float32)
    hidden_BTX = jnp.einsum("BTD,DX->BTX", wide_BTD, w_DX, precision="highest")
    (hidden_BTX,) = remat.keep(remat.PROJECTION, total(hidden_BTX, "model"))
    hidden_BTX = jax.nn.relu(hidden_BTX + w.predictor_bias_X.astype(jnp.float32)[None, None])
    out_X = w.predictor_out_X.shard.astype(jnp.float32)
    return (hidden_BTX * out_X[None, None]).sum(-1)


def _predicted(logits_BT: Array, context: Context) -> Array:
    """Which tokens the predictor routes: of a padded prompt, none of the padding."""
    selected_BT = logits_BT > 0
    if context.lengths_B is None:
        return selected_BT
    return selected_BT & (jnp.arange(logits_BT.shape[1])[None] < context.lengths_B[:, None])


def _slots(context: Context, T: int) -> int:
    """How many tokens the block runs for: all that the predictor can route."""
    slots = min(T, context.routed_places or T)
    if context.numerics.attention == "splash":
        return -(-slots // SPLASH_TOKENS) * SPLASH_TOKENS
    return slots


def _check_kernel(context: Context, tokens: int, T: int) -> None:
    if context.numerics.attention == "splash" and tokens % SPLASH_TOKENS:
        raise ConfigError(
            f"model.depths.capacity {context.config.depths.capacity} selects {tokens} of the {T} "
            "tokens of a sequence (data.sequence_length), and splash attention requires a multiple "
            f"of {SPLASH_TOKENS}; change one of them, or set model.attention to xla."
        )


def _weighted(update_BCD: Array, scores_BC: Array) -> Array:
    """The update times the score: the only way by which the router has a gradient."""
    (update_BCD,) = remat.keep(remat.STREAM, update_BCD)
    wide_BCD = update_BCD.astype(jnp.float32) * scores_BC[:, :, None]
    return wide_BCD.astype(update_BCD.dtype)


def _statistics(logits_BT: Array, routed_BT: Array) -> Cache:
    """Sums over this device's tokens (`training/depth_losses.py`).

    `loss`: binary cross-entropy of the predictor in nats. `routed`: tokens that went through the
    block. `predicted`: those the predictor would take. `correct`: where it agrees.
    """
    predicted_BT = logits_BT > 0
    loss_BT = jax.nn.softplus(logits_BT) - jnp.where(routed_BT, logits_BT, 0)
    return {
        "loss": loss_BT.sum(),
        "routed": routed_BT.sum(dtype=jnp.int32),
        "predicted": predicted_BT.sum(dtype=jnp.int32),
        "correct": (predicted_BT == routed_BT).sum(dtype=jnp.int32),
    }
