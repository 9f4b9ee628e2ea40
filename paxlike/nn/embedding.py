"""Looking tokens up in an embedding whose rows are sharded over `model` and its width over `data`.

The table is gathered over `data` first (a lookup in a table sharded both ways does not compile on a
model axis of 12). Each device looks up the tokens whose rows it has, zeros for the others, and the
sum over `model` is scattered onto the stream's D.

The gradient of a table that is also the head (`model.head tied`) is summed over `data` once, for
both uses: it is the largest gradient of a model, and nothing is left to hide its sum behind.
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
) -> tuple[Array, Array]:
    """(The rows of tokens, [B, T, D] in dtype `compute`, zeros for rows that another device has;
    zeros, of the gathered table's shape and dtype `gradients`).

    The sum of the rows over `model` is the stream. table_VD: the stored shard; places: of the
    stored table. Its gradient is summed in `gradients`. The gradient with respect to the zeros is
    added to it before it is summed over `data`: that of the same table as the head.
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
    places, compute, gradients = static
    position, mine = _local(table, tokens)
    used = gather_weight(table, places, compute)
    return jnp.where(mine[..., None], used[position], 0), jnp.zeros(used.shape, gradients)


def _forward(static, table, tokens):
    return _own_rows(static, table, tokens), (table, tokens)


def _backward(static, kept, cotangents):
    places, _, gradients = static
    (table, tokens), (dx, sum_VD) = kept, cotangents
    position, mine = _local(table, tokens)
    sum_VD = sum_VD.at[position].add(jnp.where(mine[..., None], dx, 0).astype(gradients))
    return scatter_gradient(sum_VD, places, table.dtype), None


_own_rows.defvjp(_forward, _backward)
