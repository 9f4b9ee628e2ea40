"""Looking tokens up in an embedding whose rows are sharded over `model` and its width over `data`.

The table is gathered over `data` first (a lookup in a table sharded both ways does not compile on a
model axis of 12). Each device looks up the tokens whose rows it has, zeros for the others, and the
sum over `model` is scattered onto the stream's D.
"""

import functools

import jax
import jax.numpy as jnp

from paxlike.nn.collectives import (
    gather_weight,
    index,
    scatter_gradient,
)
from paxlike.parallel import rules

Array = jax.Array


def own_rows(
    table_VD: Array, tokens_BT: Array, places: tuple[rules.Axis, ...], compute: str, gradients: str
) -> Array:
    """The rows of tokens, [B, T, D] in dtype `compute`; zeros for rows that another device has.

    Their sum over `model` is the stream. table_VD: the stored shard; places: of the stored table.
    Its gradient is summed in `gradients`.
    """
    return _own_rows((places, compute, gradients), table_VD, tokens_BT)


def _local(table: Array, tokens: Array) -> tuple[Array, Array]:
    """(index into this device's rows of the table, whether the token is among them)."""
    rows = table.shape[0]
    position = tokens - index("model") * rows
    mine = (position >= 0) & (position < rows)
    return jnp.where(mine, position, 0), mine


# A custom gradient, so that rows are added up in the dtype of gradients, not of activations.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _own_rows(static, table, tokens):
    places, compute, _ = static
    position, mine = _local(table, tokens)
    rows = gather_weight(table, places, compute)[position]
    return jnp.where(mine[..., None], rows, 0)


def _forward(static, table, tokens):
    return _own_rows(static, table, tokens), (table, tokens)


def _backward(static, kept, dx):
    places, _, gradients = static
    table, tokens = kept
    position, mine = _local(table, tokens)
    rows = jnp.zeros((table.shape[0], dx.shape[-1]), gradients)
    rows = rows.at[position].add(jnp.where(mine[..., None], dx, 0).astype(gradients))
    return scatter_gradient(rows, places, table.dtype), None


_own_rows.defvjp(_forward, _backward)
