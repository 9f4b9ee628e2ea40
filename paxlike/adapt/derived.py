"""Arrays that an adapter computes from its base when a run starts (`Added.derived`).

They are a nested dict: group of blocks -> name -> stack of the chosen layers.
"""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from paxlike.adapt.runs import trained_layers
from paxlike.architecture.adapters import added_weights
from paxlike.architecture.added import Derived
from paxlike.config import AdaptConfig, ModelConfig
from paxlike.parallel.mesh import axis_sizes


def empty(model: ModelConfig, adapt: AdaptConfig) -> dict:
    """Zeros of their shapes. Call it inside `jax.jit` with an active mesh."""
    layers = trained_layers(model, adapt)

    def zeros(derived: Derived, group: str) -> jax.Array:
        places = P(None, *derived.places(model, axis_sizes()))
        shape = (layers[group], *derived.spec.shape(model))
        return jnp.zeros(shape, jnp.float32, out_sharding=places)

    return {
        group: {derived.spec.name: zeros(derived, group) for derived in all_}
        for group, all_ in added_weights(model, adapt).derived.items()
    }


def names(model: ModelConfig, adapt: AdaptConfig) -> set[str]:
    return {d.spec.name for all_ in added_weights(model, adapt).derived.values() for d in all_}
