"""Tells a custom gradient which of its inputs need a gradient, so that it computes no other.

A frozen weight needs none: its gradient's product is not computed, and the inputs of that product
are not saved. With `defvjp(..., symbolic_zeros=True)`, JAX passes this to the forward function:

    def forward(static, x, w):
        x, w = differentiated(x), differentiated(w)
        ... x.value, w.value, w.needs_gradient
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import CustomVJPPrimal, SymbolicZero


class Input(NamedTuple):
    value: Any
    """An array or a tree of arrays."""
    needs_gradient: bool

    def kept_for(self, other: "Input") -> Any:
        """The value if `other` needs a gradient, which reads this value; otherwise None."""
        return self.value if other.needs_gradient else None


def differentiated(tree: Any) -> Input:
    """An argument of the forward function of a custom gradient with symbolic zeros."""
    leaves, structure = jax.tree.flatten(tree, is_leaf=lambda x: isinstance(x, CustomVJPPrimal))
    needs_gradient = any(leaf.perturbed for leaf in leaves)
    values = jax.tree.unflatten(structure, [leaf.value for leaf in leaves])
    return Input(values, needs_gradient)


def cotangents(tree: Any) -> Any:
    """The cotangents of a backward function, with zeros as arrays; None for integers."""

    def instantiated(x: Any) -> Any:
        if not isinstance(x, SymbolicZero):
            return x
        return None if x.dtype == jax.dtypes.float0 else jnp.zeros(x.shape, x.dtype)

    return jax.tree.map(instantiated, tree, is_leaf=lambda x: isinstance(x, SymbolicZero))
