"""What the forward pass of a branch is: two functions, of a whole sequence and of one more token.

A branch's declaration (weights, FLOPs, cache) is its file in `architecture/`; its forward pass is
its file here, in the table of `models/branches.py`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax

from paxlike.config import ModelConfig
from paxlike.nn.numerics import Numerics
from paxlike.nn.stream import Stream

Array = jax.Array
Cache = dict[str, Array]
"""One layer's arrays of a branch, by the names that its declaration gives them."""


class Context(NamedTuple):
    """What a branch knows besides its weights and its input."""

    config: ModelConfig
    numerics: Numerics
    positions_BT: Array
    """int32; the batch may be 1."""
    segments_BT: Array | None = None
    """int32 document numbers of a whole sequence, or None for one document."""
    lengths_B: Array | None = None
    """int32: tokens of each row where a padded prompt is read into a cache; None in training."""
    place_B: Array | None = None
    """int32: the place of a token in the cache; None: its position in the sequence."""
    by_predictor: bool = False
    """Whether the predictor decides which tokens a routed block takes, as when text is generated;
    otherwise its router does, which compares all tokens of a document."""
    routed_places: int = 0
    """The places of a routed block's cache, where a prompt is read into one. 0: no limit."""


class Forward(NamedTuple):
    """A branch's forward pass. `w` has its weights by name (`nn/weight.py`); y_BTD is the normed
    stream.

    Both return this device's term of a sum over `model`, partial_BTD.
    """

    sequence: Callable[[object, Stream, Context], tuple[Array, Cache]]
    """(partial_BTD, the arrays that `token` will read): causal, over all of T."""
    token: Callable[[object, Stream, Context, Cache], tuple[Array, Cache]]
    """(partial_BTD, what this token adds to the cache), of one token a row (T = 1).

    The token's position in the cache is its position in the sequence.
    """
    statistics: tuple[str, ...] = ()
    """Names among the arrays of `sequence` that are not cached: sums over this device's tokens,
    which losses and metrics are made of (`training/router_losses.py`)."""
