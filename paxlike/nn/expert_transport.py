"""How tokens reach the experts of other devices along `expert`, and their results return.

- `Here`: every device has all experts. No token moves.
- `Gathered`: all devices of a group get the tokens of all, compute the rows of their own experts,
  and sum the results. The stream is gathered and scattered with D sharded over `model`, so that
  `expert`, which may be the slower axis, carries each number once.
- `Sent`: every row goes to the device of its expert, and its result back (`nn/ragged.py`).

Either way a device has the rows of its own experts sorted by expert, of equal ones by the device
they come from, in a buffer for the most that can come: nothing is dropped.

Letters: T tokens of this device, or of all devices of its group; C rows.
"""

from typing import Protocol

import jax

from paxlike.nn.collectives import gather, index, scatter
from paxlike.nn.ragged import exchanged, ways
from paxlike.nn.ring import Partial, in_pieces, uses_ring
from paxlike.nn.routing import (
    Routes,
    in_order_of_choices,
    in_order_of_rows,
    routes_of_part,
    to_rows,
    to_tokens,
    whole_tokens,
)
from paxlike.nn.stream import Stream, Summed
from paxlike.parallel.mesh import axis_sizes

Array = jax.Array


class Transport(Protocol):
    """What `transport` returns."""

    @property
    def routes(self) -> Routes:
        """The rows of this device's experts."""
        ...

    @property
    def mean_rows(self) -> int:
        """The rows of a device's experts, in the mean over devices."""
        ...

    def rows(self, y_BTD: Stream) -> Array:
        """The token of each row, x_CD."""
        ...

    def stream(self, y_CD: Array, y_BTD: Stream) -> Array | Partial | Summed:
        """The sum of each token's rows: a branch's output. y_BTD: what the branch read."""
        ...

    def choices(self, rows: Array) -> Array:
        """What this device's choices (token * J + number) have in the rows: [T J, ...]."""
        ...

    def rows_of_choices(self, choices: Array) -> Array:
        """The inverse of `choices`: [C, ...]."""
        ...


def transport(routes: Routes, name: str, ring: bool) -> Transport:
    """The transport on the active mesh.

    routes: of this device's tokens, to all experts. name: `Numerics.transport`. ring: see there.
    """
    if axis_sizes().get("expert", 1) == 1:
        return Here(routes, ring)
    return Sent(routes, ring) if name == "all_to_all" else Gathered(routes)


class Here:
    def __init__(self, routes: Routes, ring: bool):
        self.routes, self._ring = routes, ring
        self.mean_rows = routes.experts_TJ.size

    def rows(self, y_BTD: Stream) -> Array:
        return to_rows(_flat(whole_tokens(y_BTD, self._ring)), self.routes)

    def stream(self, y_CD: Array, y_BTD: Stream) -> Array | Partial:
        return _partial(to_tokens(y_CD, self.routes), y_BTD, self._ring)

    def choices(self, rows: Array) -> Array:
        return in_order_of_choices(rows, self.routes)

    def rows_of_choices(self, choices: Array) -> Array:
        return in_order_of_rows(choices, self.routes)


class Gathered:
    def __init__(self, routes: Routes):
        self.routes, self.mean_rows = _own(routes), routes.experts_TJ.size

    def rows(self, y_BTD: Stream) -> Array:
        shard_TD = gather(_flat(y_BTD.shard_BTD), "expert", 0)
        return to_rows(gather(shard_TD, "model", 1), self.routes)

    def stream(self, y_CD: Array, y_BTD: Stream) -> Summed:
        sums_TD = scatter(to_tokens(y_CD, self.routes), "model", 1)
        return Summed(scatter(sums_TD, "expert", 0).reshape(y_BTD.shard_BTD.shape))

    def choices(self, rows: Array) -> Array:
        return scatter(in_order_of_choices(rows, self.routes), "expert", 0)

    def rows_of_choices(self, choices: Array) -> Array:
        return in_order_of_rows(gather(choices, "expert", 0), self.routes)


class Sent:
    def __init__(self, routes: Routes, ring: bool):
        self._given, self._ring = routes, ring
        self.routes, self.mean_rows = _own(routes), routes.experts_TJ.size
        sizes_SE = gather(routes.sizes_E[None], "expert", 0)
        self._there, self._back = ways(sizes_SE)
        self._sizes = self.mean_rows, self.routes.order_C.size

    def rows(self, y_BTD: Stream) -> Array:
        return self._sent(to_rows(_flat(whole_tokens(y_BTD, self._ring)), self._given))

    def stream(self, y_CD: Array, y_BTD: Stream) -> Array | Partial:
        return _partial(to_tokens(self._returned(y_CD), self._given), y_BTD, self._ring)

    def choices(self, rows: Array) -> Array:
        return in_order_of_choices(self._returned(rows), self._given)

    def rows_of_choices(self, choices: Array) -> Array:
        return self._sent(in_order_of_rows(choices, self._given))

    def _sent(self, x: Array) -> Array:
        return exchanged(self._sizes, x, self._there, self._back)

    def _returned(self, x: Array) -> Array:
        return exchanged(self._sizes[::-1], x, self._back, self._there)


def _own(routes: Routes) -> Routes:
    """The rows of this device's experts, of the tokens of all devices of its group."""
    count = routes.sizes_E.shape[0] // axis_sizes()["expert"]
    experts_TJ, weights_TJ = (
        gather(x, "expert", 0) for x in (routes.experts_TJ, routes.weights_TJ)
    )
    return routes_of_part(experts_TJ, weights_TJ, index("expert") * count, count)


def _flat(x_BTD: Array) -> Array:
    return x_BTD.reshape(-1, x_BTD.shape[-1])


def _partial(y_TD: Array, y_BTD: Stream, ring: bool) -> Array | Partial:
    B, T, _ = y_BTD.shard_BTD.shape
    partial_BTD = y_TD.reshape(B, T, -1)
    return in_pieces(partial_BTD) if uses_ring(ring, y_BTD.shard_BTD) else partial_BTD
