"""For custom gradients: which inputs are differentiated, so that no other gradient is computed.

A frozen weight has no gradient. The product that would compute it is left out, and inputs that only
this product reads are not saved. With `defvjp(..., symbolic_zeros=True)`, JAX tells the forward
function of a custom gradient which of its inputs are differentiated:

    def forward(static, x, w):
        x, w = differentiated(x), differentiated(w)
        ... x.value, w.value, w.asked
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import CustomVJPPrimal, SymbolicZero


class Input(NamedTuple):
    value: Any
    """An array or a tree of arrays."""
    asked: bool
    """Whether its gradient is."""

    def kept_for(self, other: "Input") -> Any:
        """The value if the gradient of `other` is asked for, which reads it; else None."""
        return self.value if other.asked else None


def differentiated(tree: Any) -> Input:
    """An argument of the forward function of a custom gradient with symbolic zeros."""
    leaves, structure = jax.tree.flatten(tree, is_leaf=lambda x: isinstance(x, CustomVJPPrimal))
    asked = any(leaf.perturbed for leaf in leaves)
    return Input(jax.tree.unflatten(structure, [leaf.value for leaf in leaves]), asked)


def cotangents(tree: Any) -> Any:
    """The cotangents of a backward function, with zeros as arrays."""
    return jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype) if isinstance(x, SymbolicZero) else x,
        tree,
        is_leaf=lambda x: isinstance(x, SymbolicZero),
    )
