"""A backward function of `jax.vjp` as a tree of arrays that a loop can stack.

Arrays that the loop's backward pass has anyway, such as the parameters of a layer, are left out.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

Array = jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pullback:
    """What a backward function needs besides the known arrays."""

    arrays: list[Array]
    """In the order of the function's own arrays."""
    tree: Any = dataclasses.field(metadata={"static": True})
    known: tuple[int | None, ...] = dataclasses.field(metadata={"static": True})
    """Of each array of the function: its number among the known ones, or None if it is kept."""

    @classmethod
    def of(cls, backward: Callable, known: Any) -> "Pullback":
        """backward: the second result of `jax.vjp`. known: a tree of arrays; those that the
        function holds are recognized by identity."""
        numbers = {id(array): number for number, array in enumerate(jax.tree.leaves(known))}
        leaves, tree = jax.tree.flatten(backward)
        found = tuple(numbers.get(id(leaf)) for leaf in leaves)
        return cls([leaf for leaf, n in zip(leaves, found, strict=True) if n is None], tree, found)

    def function(self, known: Any) -> Callable:
        """The backward function. known: the tree given to `of`, with arrays of the same values."""
        kept, others = iter(self.arrays), jax.tree.leaves(known)
        leaves = [next(kept) if number is None else others[number] for number in self.known]
        return jax.tree.unflatten(self.tree, leaves)
