"""The forward pass of the feed-forward branch; `architecture/feed_forward.py` declares it."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from paxlike.models.branch import Cache, Context, Forward
from paxlike.nn import remat
from paxlike.nn.einsum import einsum
from paxlike.nn.stream import Stream, add_once

Array = jax.Array

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "swiglu": jax.nn.silu,
    "geglu": jax.nn.gelu,
    "gelu": jax.nn.gelu,
    "gelu_exact": functools.partial(jax.nn.gelu, approximate=False),
    "relu": jax.nn.relu,
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),
}


def _sequence(w, y_BTD: Stream, context: Context) -> tuple[Array, Cache]:
    c = context.config
    activation = ACTIVATIONS[c.feed_forward]
    up_BTF = einsum("BTD,DF->BTF", y_BTD, w.wup_DF)
    if c.feed_forward_bias:
        up_BTF += w.bup_F.astype(up_BTF.dtype)[None, None]
    if c.gated:
        gate_BTF = einsum("BTD,DF->BTF", y_BTD, w.wgate_DF)
        if c.feed_forward_bias:
            gate_BTF += w.bgate_F.astype(gate_BTF.dtype)[None, None]
        gate_BTF, up_BTF = remat.keep(remat.PROJECTION, gate_BTF, up_BTF)
        h_BTF = activation(gate_BTF) * up_BTF
    else:
        (up_BTF,) = remat.keep(remat.PROJECTION, up_BTF)
        h_BTF = activation(up_BTF)
    partial_BTD = einsum("BTF,FD->BTD", h_BTF, w.wdown_FD)
    if c.feed_forward_bias:
        partial_BTD = add_once(partial_BTD, w.bdown_D)
    return partial_BTD, {}


def _token(w, y_BTD: Stream, context: Context, cache: Cache) -> tuple[Array, Cache]:
    return _sequence(w, y_BTD, context)


FORWARD = Forward(_sequence, _token)
