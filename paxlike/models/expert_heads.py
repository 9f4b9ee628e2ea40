"""The forward pass of the mixture of attention heads; `architecture/expert_heads.py` declares it.

Queries are computed in rows sorted by expert and return to the order of tokens for attention; its
results go back to rows for the output projection. As in `models/experts.py`, the router's weights
multiply before the last product.
"""

import math
from typing import Any, NamedTuple

import jax

from paxlike.config import ModelConfig
from paxlike.models.attention import Heads, with_heads
from paxlike.models.branch import Cache, Context
from paxlike.models.experts import STATISTICS
from paxlike.nn import remat
from paxlike.nn.einsum import Kernel
from paxlike.nn.expert_transport import Transport, transport
from paxlike.nn.grouped import grouped
from paxlike.nn.routing import Routes, choose, router_logits, statistics, weights_of_rows
from paxlike.nn.stream import Stream, add_once
from paxlike.parallel.mesh import axis_sizes

Array = jax.Array


class _Made(NamedTuple):
    """What the output projection needs of the queries."""

    routes: Routes
    logits_TE: Array
    moved: Transport
    y_BTD: Stream


def _queries(w, y_BTD: Stream, context: Context) -> tuple[Array, _Made]:
    """The queries of each token's k experts, side by side for every key/value head."""
    c, n = context.config, context.numerics
    (logits_BTE,) = remat.keep(remat.PROJECTION, router_logits(y_BTD, w.wheads_router_DE))
    logits_TE = logits_BTE.reshape(-1, c.experts.count)
    routes = choose(logits_TE, None, c.experts)
    moved = transport(routes, n.transport, n.ring)
    how = moved.routes.sizes_E, n.experts, moved.mean_rows
    rows = grouped(moved.rows(y_BTD), _matrices(w.wq_EDNH, 1), *how)
    choices = moved.choices(rows)
    B, T, _ = y_BTD.shard_BTD.shape
    q_BTJKGH = choices.reshape(B, T, c.experts.top_k, _own_kv_heads(c), -1, c.head_dim)
    q_BTNH = q_BTJKGH.swapaxes(2, 3).reshape(B, T, -1, c.head_dim)
    return q_BTNH, _Made(routes, logits_TE, moved, y_BTD)


def _output(w, o_BTNH: Array, made: _Made, context: Context) -> tuple[Array, Cache]:
    c, moved = context.config, made.moved
    B, T, _, H = o_BTNH.shape
    o_BTKJGH = o_BTNH.reshape(B, T, _own_kv_heads(c), c.experts.top_k, -1, H)
    choices = o_BTKJGH.swapaxes(2, 3).reshape(B * T * c.experts.top_k, -1)
    rows = moved.rows_of_choices(choices) * weights_of_rows(moved.routes)[:, None]
    how = moved.routes.sizes_E, context.numerics.experts, moved.mean_rows
    y_CD = grouped(rows.astype(o_BTNH.dtype), _matrices(w.wo_ENHD, 2), *how)
    partial: Any = moved.stream(y_CD, made.y_BTD)
    if c.experts.output_bias:
        partial = add_once(partial, w.expert_heads_bias_D)
    return partial, statistics(made.logits_TE, made.routes, moved.routes, c.experts)


def _own_kv_heads(c: ModelConfig) -> int:
    """Key/value heads that this device's query heads use (`own_kv_head`)."""
    return max(1, c.kv_heads // axis_sizes()["model"])


def _matrices(kernel: Kernel, inputs: int) -> Kernel:
    """A kernel E x inputs x outputs as matrices. inputs: its number of input dimensions."""
    experts, *dims = kernel.shard.shape
    shape = experts, math.prod(dims[:inputs]), math.prod(dims[inputs:])
    places = kernel.places[0], kernel.places[1], kernel.places[1 + inputs]
    return Kernel(kernel.shard.reshape(shape), places, kernel.gradients, kernel.ring)


FORWARD = with_heads(Heads(_queries, _output), statistics=STATISTICS)
