"""The forward pass of the mixture of experts; `architecture/experts.py` declares it.

A token's rows are multiplied by the router's weights before the last product instead of after it:
the backward pass then reads no outputs of experts.
"""

from typing import Any

import jax
import jax.numpy as jnp

from paxlike.models.branch import Cache, Context, Forward
from paxlike.models.feed_forward import ACTIVATIONS
from paxlike.nn import remat
from paxlike.nn.collectives import gather, gather_weight
from paxlike.nn.einsum import Kernel, einsum
from paxlike.nn.expert_transport import Transport, transport
from paxlike.nn.grouped import grouped
from paxlike.nn.ring import Partial
from paxlike.nn.routing import Routes, choose, router_logits, statistics, weights_of_rows
from paxlike.nn.stream import Stream, Summed, add_once

Array = jax.Array


def _sequence(w, y_BTD: Stream, context: Context) -> tuple[Array, Cache]:
    c = context.config.experts
    (logits_BTE,) = remat.keep(remat.PROJECTION, router_logits(y_BTD, w.wrouter_DE))
    logits_TE = logits_BTE.reshape(-1, c.count)
    routes = choose(logits_TE, w.selection_bias_E if c.bias_step else None, c)
    n = context.numerics
    moved = transport(routes, n.transport, n.ring)
    if n.experts == "dense":
        partial: Any = _all_experts(w, y_BTD, routes, context)
    else:
        partial = _chosen_experts(w, y_BTD, moved, context)
    if c.shared:
        partial += _shared_experts(w, y_BTD, context)
    if c.output_bias:
        partial = add_once(partial, w.experts_bias_D)
    return partial, statistics(logits_TE, routes, moved.routes, c)


def _token(w, y_BTD: Stream, context: Context, cache: Cache) -> tuple[Array, Cache]:
    return _sequence(w, y_BTD, context)[0], {}


STATISTICS = ("load_E", "probability_E", "z", "entropy", "rows")
FORWARD = Forward(_sequence, _token, STATISTICS)


def _chosen_experts(
    w, y_BTD: Stream, moved: Transport, context: Context
) -> Array | Partial | Summed:
    """Each token through its own experts."""
    how = moved.routes.sizes_E, context.numerics.experts, moved.mean_rows
    x_CD = moved.rows(y_BTD)
    gate_CM = grouped(x_CD, w.wgate_EDM, *how)
    up_CM = grouped(x_CD, w.wup_EDM, *how)
    gate_CM, up_CM = remat.keep(remat.PROJECTION, gate_CM, up_CM)
    h_CM = ACTIVATIONS[context.config.feed_forward](gate_CM) * up_CM
    h_CM = (h_CM * weights_of_rows(moved.routes)[:, None]).astype(x_CD.dtype)
    return moved.stream(grouped(h_CM, w.wdown_EMD, *how), y_BTD)


def _all_experts(w, y_BTD: Stream, routes: Routes, context: Context) -> Array:
    """The same, by all experts for every token: the reference that tests compare with. Every device
    gets the weights of all experts."""
    x_BTD = y_BTD.whole_BTD
    x_TD = x_BTD.reshape(-1, x_BTD.shape[-1])

    def whole(kernel: Kernel) -> Array:
        return gather(gather_weight(kernel.shard, kernel.places, x_TD.dtype), "expert", 0)

    wgate_EDM, wup_EDM, wdown_EMD = map(whole, (w.wgate_EDM, w.wup_EDM, w.wdown_EMD))
    chosen_TJE = jax.nn.one_hot(routes.experts_TJ, wgate_EDM.shape[0])
    weights_TE = jnp.einsum("TJ,TJE->TE", routes.weights_TJ, chosen_TJE, precision="highest")
    gate_TEM = jnp.einsum("TD,EDM->TEM", x_TD, wgate_EDM)
    up_TEM = jnp.einsum("TD,EDM->TEM", x_TD, wup_EDM)
    h_TEM = ACTIVATIONS[context.config.feed_forward](gate_TEM) * up_TEM
    h_TEM = (h_TEM * weights_TE[:, :, None]).astype(x_TD.dtype)
    return jnp.einsum("TEM,EMD->TD", h_TEM, wdown_EMD).reshape(x_BTD.shape)


def _shared_experts(w, y_BTD: Stream, context: Context) -> Array | Partial:
    gate_BTU = einsum("BTD,DU->BTU", y_BTD, w.wgate_DU)
    up_BTU = einsum("BTD,DU->BTU", y_BTD, w.wup_DU)
    gate_BTU, up_BTU = remat.keep(remat.PROJECTION, gate_BTU, up_BTU)
    h_BTU = ACTIVATIONS[context.config.feed_forward](gate_BTU) * up_BTU
    return einsum("BTU,UD->BTD", h_BTU, w.wdown_UD)
