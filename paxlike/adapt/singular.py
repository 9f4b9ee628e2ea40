"""Tuning singular values (SVDiff, arXiv 2303.11305): the decompositions, and kernels with them."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from paxlike.adapt.form import Draw
from paxlike.adapt.runs import trained_layers
from paxlike.adapt.spread import picked, spread
from paxlike.architecture.branch import WeightSpec
from paxlike.architecture.lora import input_letters
from paxlike.architecture.singular import Decomposition, decompositions
from paxlike.config import AdaptConfig, ModelConfig, UserError
from paxlike.nn.collectives import gather, index, on_devices, own_part, total
from paxlike.nn.numerics import Numerics
from paxlike.nn.singular import Shifted, shifted
from paxlike.parallel import rules
from paxlike.parallel.mesh import axis_sizes, weight_spec

Array = jax.Array
TOLERANCE = 1e-4
"""How much u^T W v of a stored decomposition may differ from a singular value, as a fraction of the
largest one."""


def initial(model: ModelConfig, adapt: AdaptConfig, seed: int) -> dict:
    """Shifts of 0: the base."""
    layers = trained_layers(model, adapt)
    return {
        group: {
            d.shift.name: jnp.zeros((layers[group], *d.shift.shape(model)), jnp.float32)
            for _, d in pairs
        }
        for group, pairs in decompositions(model, adapt).items()
    }


def wrap(
    model: ModelConfig,
    adapt: AdaptConfig,
    group: str,
    stacks: dict,
    outer: dict,
    draw: Draw | None,
) -> dict:
    """A kernel, its decomposition and its shifts go into one `Shifted`."""
    pairs = decompositions(model, adapt)[group]
    own = {spec.name for _, d in pairs for spec in d}
    found = {name: stack for name, stack in stacks.items() if name not in own}
    for kernel, d in pairs:
        found[kernel.name] = Shifted(stacks[kernel.name], *(stacks[spec.name] for spec in d))
    return found


def merge(
    model: ModelConfig,
    adapt: AdaptConfig,
    numerics: Numerics | None,
    group: str,
    stacks: dict,
    trained: dict,
    derived: dict,
) -> dict:
    """Kernels with shifted singular values in them."""
    found = dict(stacks)
    for kernel, d in decompositions(model, adapt)[group]:
        arrays = (*(derived[group][spec.name] for spec in d[:3]), trained[group][d.shift.name])
        run = functools.partial(_merged, model, adapt, kernel, d)
        found[kernel.name] = jax.jit(run)(stacks[kernel.name], *arrays)
    return found


def _merged(model, adapt, kernel: WeightSpec, d: Decomposition, base: Array, *arrays) -> Array:
    def device(chosen, *arrays):
        return jax.lax.map(lambda layer: shifted(*layer).astype(base.dtype), (chosen, *arrays))

    specs = _specs(model, kernel, d)
    run = on_devices(device, (specs[0], *specs[1:], P()), specs[0])
    return spread(model, adapt, run(picked(model, adapt, base), *arrays), base)


# ---- the decompositions --------------------------------------------------------------------------


def derive(model: ModelConfig, adapt: AdaptConfig, base: dict, say: Callable[[str], None]) -> dict:
    """Decompositions of the base's kernels in the chosen layers, one at a time in float32."""
    found: dict = {}
    for group, pairs in decompositions(model, adapt).items():
        found[group] = {}
        for kernel, d in pairs:
            stack = picked(model, adapt, base[group][kernel.name])
            say(f"singular values of {group}/{kernel.name}, {len(stack)} layers")
            run = jax.jit(functools.partial(_decomposed, model, kernel, d))
            layers = [jax.block_until_ready(run(stack, layer)) for layer in range(len(stack))]
            for spec, parts in zip(d, zip(*layers, strict=True), strict=False):
                found[group][spec.name] = jax.jit(lambda *parts: jnp.stack(parts))(*parts)
    return found


def check(model: ModelConfig, adapt: AdaptConfig, base: dict, derived: dict) -> None:
    """Raises UserError naming a decomposition that is not the base's."""
    for group, pairs in decompositions(model, adapt).items():
        for kernel, d in pairs:
            stack = picked(model, adapt, base[group][kernel.name])
            run = jax.jit(functools.partial(_difference, model, kernel, d))
            difference = float(run(stack, *(derived[group][spec.name] for spec in d[:3])))
            if not difference <= TOLERANCE:
                raise UserError(
                    f"the stored singular values of {group}/{kernel.name} differ from those of the "
                    f"base by {difference:.2g} of the largest one, above {TOLERANCE}. Restore the "
                    "base and the folder `derived` of the run; shifts fit no other decomposition."
                )


def _specs(model: ModelConfig, kernel: WeightSpec, d: Decomposition) -> tuple[P, P, P, P]:
    """Of the stacks of a kernel and its decomposition."""
    places = weight_spec(kernel.letters, kernel.shape(model))
    inner = input_letters(kernel)
    return P(None, *places), P(None, *places[:inner], None), P(), P(None, None, *places[inner:])


def _decomposed(model, kernel: WeightSpec, d: Decomposition, stack: Array, layer: Array) -> tuple:
    """(U, singular values, V^T) of one layer."""
    specs, shape, inner = _specs(model, kernel, d), kernel.shape(model), input_letters(kernel)
    places = tuple(specs[0])[1:]

    def device(stack, layer):
        whole = jax.lax.dynamic_index_in_dim(stack, layer, 0, keepdims=False).astype(jnp.float32)
        for dim, place in enumerate(places):
            for axis in reversed(rules.axes_of(place)):
                whole = gather(whole, axis, dim)
        matrix = whole.reshape(-1, whole[(0,) * inner].size)
        # Devices need not agree on the signs of singular vectors: one of them decides.
        found = map(_of_first_device, jnp.linalg.svd(matrix, full_matrices=False))
        left, values, right = found
        left, right = left.reshape(*shape[:inner], -1), right.reshape(-1, *shape[inner:])
        for dim, place in enumerate(places):
            for axis in rules.axes_of(place):
                if dim < inner:
                    left = own_part(left, axis, dim)
                else:
                    right = own_part(right, axis, dim - inner + 1)
        return left, values, right

    out = tuple(P(*tuple(spec)[1:]) for spec in specs[1:])
    return on_devices(device, (specs[0], P()), out)(stack, layer)


def _of_first_device(x: Array) -> Array:
    number = sum((index(axis) for axis in rules.MESH_AXES), start=jnp.int32(0))
    return total(jnp.where(number == 0, x, 0), rules.MESH_AXES)


def _difference(model, kernel: WeightSpec, d: Decomposition, *stacks: Array) -> Array:
    """The largest of |u^T W v - s| / max s in any layer."""
    specs = _specs(model, kernel, d)

    def layer(arrays):
        base, left, values, right = arrays
        rank = len(values)
        left, right = left.reshape(-1, rank), right.reshape(rank, -1)
        matrix = base.astype(jnp.float32).reshape(len(left), -1)
        products = left * jnp.matmul(matrix, right.T, precision="highest")
        held = [axis for axis in ("data", "model") if axis_sizes()[axis] > 1]
        found = total(products.sum(0), held)
        return jnp.abs(found - values).max() / jnp.maximum(values.max(), 1e-30)

    def device(*stacks):
        return jax.lax.map(layer, stacks).max()

    return on_devices(device, specs, P())(*stacks)
