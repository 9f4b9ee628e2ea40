"""Looking tokens up in an embedding whose rows lie over `model` and whose width lies over `data`.

The table is gathered over `data` first (a lookup in a table cut both ways does not compile on a model axis of 12); each device looks up
the tokens whose rows it holds, zeros for the others, and the sum over `model` is scattered onto the stream's D.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from paxlike.nn.einsum import gather, gather_weight, on_devices, reduce_gradient, scatter
from paxlike.parallel.mesh import spec, weight_spec

Array = jax.Array


def lookup(table_VD: Array, tokens_BT: Array, *, compute: str, gradients: str) -> Array:
    """x_BTD in dtype `compute`: the tokens' rows. The table's gradient is summed in dtype `gradients`."""
    return _lookup((compute, gradients), table_VD, tokens_BT)


def local_rows(table: Array, tokens: Array) -> tuple[Array, Array]:
    """(index into this device's rows of the table, whether the token is among them)."""
    rows = table.shape[0]
    index = tokens - jax.lax.axis_index("model") * rows
    mine = (index >= 0) & (index < rows)
    return jnp.where(mine, index, 0), mine


def _specs(table_VD, tokens_BT):
    shape_BTD = (*tokens_BT.shape, table_VD.shape[1])
    return weight_spec("VD", table_VD.shape), spec("BT", tokens_BT.shape), spec("BTD", shape_BTD)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _lookup(static, table_VD, tokens_BT):
    compute, _ = static
    table_spec, tokens_spec, out_spec = _specs(table_VD, tokens_BT)

    def device(table, tokens):
        table = gather_weight(table, tuple(table_spec), compute)
        index, mine = local_rows(table, tokens)
        return scatter(jnp.where(mine[..., None], table[index], 0), "model", 2)

    return on_devices(device, (table_spec, tokens_spec), out_spec)(table_VD, tokens_BT)


def _forward(static, table_VD, tokens_BT):
    return _lookup(static, table_VD, tokens_BT), (table_VD, tokens_BT)


def _backward(static, kept, dx_BTD):
    _, gradients = static
    table_VD, tokens_BT = kept
    table_spec, tokens_spec, dx_spec = _specs(table_VD, tokens_BT)

    def device(table, tokens, dx):
        dx = gather(dx, "model", 2)
        index, mine = local_rows(table, tokens)
        rows = jnp.zeros((table.shape[0], dx.shape[-1]), gradients)
        rows = rows.at[index].add(jnp.where(mine[..., None], dx, 0).astype(gradients))
        return reduce_gradient(rows, tuple(table_spec), table.dtype)

    specs = (table_spec, tokens_spec, dx_spec)
    return on_devices(device, specs, P(*table_spec))(table_VD, tokens_BT, dx_BTD), None


_lookup.defvjp(_forward, _backward)
