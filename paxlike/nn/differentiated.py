"""For custom gradients: which inputs are differentiated, so that no other gradient is computed.

A frozen weight is one that the loss is not differentiated by. Its products then have no gradient of
the weight, and the input that only this gradient reads is not kept. A function that is registered
with `defvjp(..., symbolic_zeros=True)` receives its inputs in a form that tells:

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
