"""The sharded matmuls of a block: the only place that says how a weight meets an activation on the mesh.

Two forms, after the two ways through a block:

- `project`: from the residual stream x_BTD to heads or feed-forward columns. The stream's D lies over `model`; it is gathered
  once for all weights that share it.
- `combine`: back from heads and feed-forward columns to the stream, summed over the branches before the one reduce-scatter
  over `model`.

Both gather their weights over `data` in the compute dtype just before use, in the forward pass and once more in the backward
pass, so that no gathered weight is ever kept (ZeRO stage 3, arXiv 1910.02054), and keep the activation as it came, fully sharded. A
weight's gradient is summed in `gradients`' dtype: reduce-scattered over `data`, then the shards summed over `pod`.

Each is written as the program that one device runs (`jax.shard_map`) with its collectives spelled out, forward and backward: what is
written here is what the compiled program holds, on every backend. Left to the compiler, the same gradients came as
all-reduces of the whole weight (twice the bytes) on CPU and, below a size, on TPU.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from paxlike.parallel import rules
from paxlike.parallel.mesh import axis_sizes, spec, weight_spec

Array = jax.Array


def project(x_BTD: Array, *pairs: str | Array, gradients: str) -> tuple[Array, ...]:
    """`project(x_BTD, "BTD,DNH->BTNH", wq_DNH, "BTD,DF->BTF", wi_DF)` -> (q_BTNH, h_BTF): x times each weight.

    x_BTD: the compute dtype, sharded as `spec("BTD")`; weights as stored. Outputs in x's dtype, sharded by their letters.
    """
    return _project((pairs[0::2], gradients), x_BTD, pairs[1::2])


def combine(*triples: str | Array, gradients: str) -> Array:
    """`combine("BTNH,NHD->BTD", o_BTNH, wo_NHD, "BTF,FD->BTD", h_BTF, wd_FD)` -> y_BTD: the sum of the products."""
    return _combine((triples[0::3], gradients), triples[1::3], triples[2::3])


# ---- what one device does ----------------------------------------------------------------------------------------------


def gather(x: Array, axis: str, dim: int) -> Array:
    return x if axis_sizes()[axis] == 1 else jax.lax.all_gather(x, axis, axis=dim, tiled=True)


def scatter(x: Array, axis: str, dim: int) -> Array:
    """Sum over `axis`, each device keeping its part of dimension `dim`."""
    return x if axis_sizes()[axis] == 1 else jax.lax.psum_scatter(x, axis, scatter_dimension=dim, tiled=True)


def total(x: Array, axis: str) -> Array:
    return x if axis_sizes()[axis] == 1 else jax.lax.psum(x, axis)


def gather_weight(w: Array, places: tuple[rules.Axis, ...], dtype: jnp.dtype) -> Array:
    """A stored shard -> the weight gathered over `data`, cast first so that the gather moves the compute dtype."""
    w = w.astype(dtype)
    for dim, place in enumerate(places):
        if place is not None and "data" in (place if isinstance(place, tuple) else (place,)):
            w = gather(w, "data", dim)
    return w


def reduce_gradient(dw: Array, places: tuple[rules.Axis, ...], dtype: jnp.dtype) -> Array:
    """This device's share of a gathered weight's gradient -> the stored shard's gradient, summed over `data` and `pod`."""
    for dim, place in enumerate(places):
        if place is not None and "data" in (place if isinstance(place, tuple) else (place,)):
            dw = scatter(dw, "data", dim)
    return total(dw, "pod").astype(dtype)


def _sums_over_model(places: tuple[rules.Axis, ...], letters: str) -> bool:
    """Whether a weight's D stays cut over `model` in use: its product is then a sum over `model`, from x as it lies."""
    return rules.gathered(places)[letters.index("D")] == "model"


def _terms(einsum: str) -> tuple[str, str, str]:
    inputs, out = einsum.split("->")
    x, w = inputs.split(",")
    return x, w, out


def _shape_of(letters: str, **operands: Array) -> tuple[int, ...]:
    size = {d: n for names, array in operands.items() for d, n in zip(names, array.shape, strict=True)}
    return tuple(size[d] for d in letters)


def _weight_gradient(einsum: str, x: Array, dy: Array, dtype: str) -> Array:
    """x^T dy, summed over batch and time."""
    x_letters, w_letters, out = _terms(einsum)
    if x.size <= dy.size or jax.sharding.get_abstract_mesh().abstract_device.platform != "cpu":
        return jnp.einsum(f"{x_letters},{out}->{w_letters}", x, dy, preferred_element_type=dtype)
    # XLA's CPU backend writes out the first operand of such a product transposed, at a tenth of the memory's speed: the smaller one
    # goes first, and the result is turned. The barrier keeps XLA from undoing that, for which it has no bfloat16 product either.
    turned = "".join(sorted(w_letters, key=lambda letter: letter in x_letters))
    dw = jnp.einsum(f"{out},{x_letters}->{turned}", dy, x, preferred_element_type=dtype)
    return jax.lax.optimization_barrier(dw).transpose([turned.index(letter) for letter in w_letters])


def on_devices(body, in_specs, out_specs):
    """`jax.shard_map` over the mesh in force. Replication is by construction here and not checked again by JAX."""
    return jax.shard_map(body, in_specs=in_specs, out_specs=out_specs, check_vma=False)


# ---- project -----------------------------------------------------------------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _project(static, x, weights):
    einsums, _ = static
    places = _weight_places(einsums, weights)

    def device(x, *weights):
        whole = None
        outs = []
        for einsum, w, place in zip(einsums, weights, places, strict=True):
            w_use = gather_weight(w, place, x.dtype)
            if _sums_over_model(place, _terms(einsum)[1]):
                outs.append(total(jnp.einsum(einsum, x, w_use), "model"))
            else:
                whole = gather(x, "model", 2) if whole is None else whole
                outs.append(jnp.einsum(einsum, whole, w_use))
        return tuple(outs)

    in_specs = (spec("BTD", x.shape), *(P(*place) for place in places))
    return on_devices(device, in_specs, _out_specs(einsums, x, weights))(x, *weights)


def _weight_places(einsums, weights):
    return [tuple(weight_spec(_terms(e)[1], w.shape)) for e, w in zip(einsums, weights, strict=True)]


def _out_specs(einsums, x, weights):
    terms = [_terms(e) for e in einsums]
    return tuple(spec(out, _shape_of(out, **{xl: x, wl: w})) for (xl, wl, out), w in zip(terms, weights, strict=True))


def _project_forward(static, x, weights):
    return _project(static, x, weights), (x, weights)


def _project_backward(static, kept, dys):
    einsums, gradients = static
    x, weights = kept
    places = _weight_places(einsums, weights)

    def device(x, weights, dys):
        whole = gather(x, "model", 2)
        dx_parts, dx_local, dws = [], [], []
        for einsum, w, place, dy in zip(einsums, weights, places, dys, strict=True):
            x_letters, w_letters, out = _terms(einsum)
            local = _sums_over_model(place, w_letters)
            dw = _weight_gradient(einsum, x if local else whole, dy, gradients)
            dws.append(reduce_gradient(dw, place, w.dtype))
            dx = jnp.einsum(f"{out},{w_letters}->{x_letters}", dy, gather_weight(w, place, x.dtype))
            (dx_local if local else dx_parts).append(dx)
        dx = [scatter(sum(dx_parts), "model", 2)] if dx_parts else []
        return sum(dx + dx_local), tuple(dws)

    weight_specs = tuple(P(*place) for place in places)
    x_spec = spec("BTD", x.shape)
    specs = (x_spec, weight_specs, _out_specs(einsums, x, weights))
    return on_devices(device, specs, (x_spec, weight_specs))(x, weights, dys)


_project.defvjp(_project_forward, _project_backward)

# ---- combine -----------------------------------------------------------------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _combine(static, xs, weights):
    einsums, _ = static
    places = _weight_places(einsums, weights)

    def device(xs, weights):
        parts = [
            jnp.einsum(einsum, x, gather_weight(w, place, x.dtype))
            for einsum, x, w, place in zip(einsums, xs, weights, places, strict=True)
        ]
        return scatter(sum(parts), "model", 2)

    specs, out_spec = _combine_specs(einsums, xs, places, weights)
    return on_devices(device, specs, out_spec)(xs, weights)


def _combine_specs(einsums, xs, places, weights):
    x_specs = tuple(spec(_terms(e)[0], x.shape) for e, x in zip(einsums, xs, strict=True))
    (x_letters, w_letters, out), x, w = _terms(einsums[0]), xs[0], weights[0]
    out_spec = spec(out, _shape_of(out, **{x_letters: x, w_letters: w}))
    return (x_specs, tuple(P(*place) for place in places)), out_spec


def _combine_forward(static, xs, weights):
    return _combine(static, xs, weights), (xs, weights)


def _combine_backward(static, kept, dy):
    einsums, gradients = static
    xs, weights = kept
    places = _weight_places(einsums, weights)

    def device(xs, weights, dy):
        whole = gather(dy, "model", 2)
        dxs, dws = [], []
        for einsum, x, w, place in zip(einsums, xs, weights, places, strict=True):
            x_letters, w_letters, out = _terms(einsum)
            dxs.append(jnp.einsum(f"{out},{w_letters}->{x_letters}", whole, gather_weight(w, place, x.dtype)))
            dw = _weight_gradient(einsum, x, whole, gradients)
            dws.append(reduce_gradient(dw, place, w.dtype))
        return tuple(dxs), tuple(dws)

    (x_specs, weight_specs), dy_spec = _combine_specs(einsums, xs, places, weights)
    return on_devices(device, (x_specs, weight_specs, dy_spec), (x_specs, weight_specs))(xs, weights, dy)


_combine.defvjp(_combine_forward, _combine_backward)
