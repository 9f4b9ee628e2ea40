"""The forward pass of the feed-forward branch; `architecture/feed_forward.py` declares it."""

import jax
import jax.numpy as jnp

from paxlike.models.branch import Cache, Context, Forward
from paxlike.nn import remat
from paxlike.nn.einsum import einsum
from paxlike.nn.stream import Stream

Array = jax.Array

ACTIVATIONS = {
    "gelu": jax.nn.gelu,
    "relu": jax.nn.relu,
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),
}


def _sequence(w, y_BTD: Stream, context: Context) -> tuple[Array, Cache]:
    c = context.config
    if c.gated:
        gate_BTF = einsum("BTD,DF->BTF", y_BTD, w.wgate_DF)
        up_BTF = einsum("BTD,DF->BTF", y_BTD, w.wup_DF)
        gate_BTF, up_BTF = remat.keep(remat.PROJECTION, gate_BTF, up_BTF)
        h_BTF = jax.nn.silu(gate_BTF) * up_BTF
    else:
        (up_BTF,) = remat.keep(remat.PROJECTION, einsum("BTD,DF->BTF", y_BTD, w.wup_DF))
        h_BTF = ACTIVATIONS[c.feed_forward](up_BTF)
    return einsum("BTF,FD->BTD", h_BTF, w.wdown_FD), {}


def _token(w, y_BTD: Stream, context: Context, cache: Cache) -> tuple[Array, Cache]:
    return _sequence(w, y_BTD, context)


FORWARD = Forward(_sequence, _token)
