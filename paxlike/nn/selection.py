"""Selecting some tokens of each row: which, in their original order, and what returns to them.

`places_BC` are the positions of the selected tokens, ascending; T marks an empty slot. Empty slots
come last. They read the last token, and nothing of them returns.
"""

import jax
import jax.numpy as jnp

from paxlike.config import DepthsConfig
from paxlike.nn.prefix import document_positions

Array = jax.Array


def best_places(scores_BT: Array, segments_BT: Array | None, config: DepthsConfig) -> Array:
    """int32 [B, C]: the tokens with the largest scores of each document (`DepthsConfig.tokens`).

    Of equal scores, the earlier token is selected. A document selects as it does alone in a row.
    Raises ConfigError if a row has no routed token.
    """
    B, T = scores_BT.shape
    config.check_length(T)
    ranks_BT = document_positions(T, segments_BT)
    ends_BT = ranks_BT[:, ::-1]
    if segments_BT is not None:
        ends_BT = document_positions(T, segments_BT[:, ::-1])[:, ::-1]
    quotas = jnp.asarray([config.tokens(length) for length in range(T + 1)], jnp.int32)
    quota_BT = quotas[ranks_BT + ends_BT + 1]
    # Sorted by document and score. Documents keep their places, so ranks and quotas do, too.
    places_BT = jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32)[None], (B, T))
    documents_BT = jnp.broadcast_to(places_BT - ranks_BT, (B, T))
    keys = documents_BT, -jax.lax.stop_gradient(scores_BT), places_BT
    *_, order_BT = jax.lax.sort(keys, dimension=1, num_keys=3)
    return _ascending(jnp.where(ranks_BT < quota_BT, order_BT, T), config.tokens(T))


def first_places(selected_BT: Array, slots: int) -> Array:
    """int32 [B, slots]: the first selected tokens."""
    T = selected_BT.shape[1]
    places_BT = jnp.where(selected_BT, jnp.arange(T, dtype=jnp.int32)[None], T)
    return _ascending(places_BT, slots)


def _ascending(places_BT: Array, slots: int) -> Array:
    return jax.lax.sort(places_BT, dimension=1)[:, :slots]


def marked(places_BC: Array, T: int) -> Array:
    """bool [B, T]: the selected tokens."""
    rows_B1 = jnp.arange(places_BC.shape[0])[:, None]
    none_BT = jnp.zeros((places_BC.shape[0], T), bool)
    return none_BT.at[rows_B1, places_BC].set(True, mode="drop")


def rows_at(x_BT: Array, places_BC: Array) -> Array:
    """x [B, T, ...] at the selected tokens: [B, C, ...]."""
    index = places_BC.reshape(*places_BC.shape, *(1,) * (x_BT.ndim - 2))
    return jnp.take_along_axis(x_BT, index, axis=1, mode="clip")


def with_added(x_BTD: Array, update_BCD: Array, places_BC: Array) -> Array:
    """x_BTD with the updates of the selected tokens; the others are unchanged, bit for bit."""
    rows_B1 = jnp.arange(places_BC.shape[0])[:, None]
    return x_BTD.at[rows_B1, places_BC].add(update_BCD, mode="drop", indices_are_sorted=True)
