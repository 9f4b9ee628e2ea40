"""The sharded matmuls of a block with BitNet's weights: `project` and `combine` of `nn/einsum.py`, quantized.

Each device norms (SubLN), quantizes and multiplies what it has; the collectives are those of the unquantized block, and fewer: the norm
is taken after the stream's D has been gathered, so that its statistics need none. Where a statistic is of more than a device has
(`model.quant.groups` 1, `statistics` tensor) it is summed over the mesh.

With `data_tiles` a device quantizes its stored shard, whose tiles are whole, and sends packed bits over `data` instead of bfloat16.

Gradients are straight-through (BitNet, arXiv 2310.11453, section 2.2): as if a quantized weight W~ beta and a quantized activation
x~ gamma / Q_b were what they stand for, with alpha, beta, gamma and eta as constants. They are computed and reduced in high precision.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from paxlike.config import QuantConfig
from paxlike.nn.einsum import gather, on_devices, reduce_gradient, scatter, total
from paxlike.nn.quantized import Layout, QuantizedWeight, layout_of, over_model, quantized, quantized_specs
from paxlike.parallel import rules
from paxlike.parallel.mesh import axis_sizes, spec
from paxlike.quant.bitnet import dequantize_weight, product, quantize_activation, sub_norm, sub_norm_backward
from paxlike.quant.tiles import check_mesh

Array = jax.Array


class How(NamedTuple):
    """What the layers of a model share; hashable, for jit."""

    quant: QuantConfig
    epsilon: float
    """Of SubLN."""
    integer: bool
    """int8 products, where the hardware has them."""
    gradients: str


def project(x_BTD: Array, *pairs: str | Array, how: How) -> tuple[Array, ...]:
    """As `nn.einsum.project`, of SubLN(x_BTD) and quantized weights: the block's own norm is left out.

    With `quant.nonnegative`, the first product onto feed-forward columns, whose result goes through the non-linearity, has shifted inputs.
    """
    return _project((pairs[0::2], how), x_BTD, pairs[1::2])


def combine(*triples: str | Array, how: How) -> Array:
    """As `nn.einsum.combine`, of SubLN(x) and quantized weights. SubLN and the scales of x are of each group of heads or columns."""
    return _combine((triples[0::3], how), triples[1::3], triples[2::3])


# ---- how the operands lie ------------------------------------------------------------------------------------------------


def _layouts(einsums: tuple[str, ...], weights: tuple, quant: QuantConfig) -> list[Layout]:
    check_mesh(quant, axis_sizes())
    letters = [einsum.split("->")[0].split(",")[1] for einsum in einsums]
    return [layout_of(d, w.shape, quant) for d, w in zip(letters, weights, strict=True)]


def _weight_specs(layouts: list[Layout], weights: tuple) -> tuple:
    return tuple(
        quantized_specs(layout) if isinstance(w, QuantizedWeight) else P(*layout.places)
        for layout, w in zip(layouts, weights, strict=True)
    )


def _over_batch() -> tuple[str, ...]:
    return tuple(axis for axis in ("pod", "data") if axis_sizes()[axis] > 1)


# ---- project -----------------------------------------------------------------------------------------------------------


def _own_rows(x: Array, layout: Layout) -> Array:
    """The part of x's last dimension that meets a weight whose D stays cut over `model`."""
    if not _sums_over_model(layout):
        return x
    width = x.shape[-1] // axis_sizes()["model"]
    return jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index("model") * width, width, axis=2)


def _sums_over_model(layout: Layout) -> bool:
    return rules.gathered(layout.places)[0] == "model"


def _shifted(einsums: tuple[str, ...], quant: QuantConfig) -> list[bool]:
    first = next((i for i, einsum in enumerate(einsums) if einsum.endswith("F")), None)
    return [quant.nonnegative and i == first for i in range(len(einsums))]


def _inputs(x: Array, einsums: tuple[str, ...], how: How) -> list[tuple[Array, Array]]:
    """(int8, scale) of the normed x, for each weight; the shifted one is made where it is asked for."""
    kinds = _shifted(einsums, how.quant)
    made = {
        kind: quantize_activation(x, 1, how.quant, batch_axes=_over_batch(), shifted=kind)
        for kind in sorted(set(kinds))
    }
    return [made[kind] for kind in kinds]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _project(static, x, weights):
    einsums, how = static
    layouts = _layouts(einsums, weights, how.quant)
    out_specs, shapes = _project_outs(einsums, x, weights)

    def device(x, weights):
        normed, _ = sub_norm(gather(x, "model", 2), 1, how.quant, how.epsilon)
        outs = []
        inputs = _inputs(normed, einsums, how)
        for w, layout, (ints, scale), shape in zip(weights, layouts, inputs, shapes, strict=True):
            signs, beta = quantized(w, layout, how.quant, x.dtype)
            y = product(_own_rows(ints, layout), scale, signs, beta, how.integer).astype(x.dtype)
            y = total(y, "model") if _sums_over_model(layout) else y
            outs.append(y.reshape(*x.shape[:2], *shape))
        return tuple(outs)

    in_specs = (spec("BTD", x.shape), _weight_specs(layouts, weights))
    return on_devices(device, in_specs, out_specs)(x, weights)


def _project_outs(einsums, x, weights):
    """Specs of the results, and what a device has of their last dimensions."""
    letters = [einsum.split("->")[1] for einsum in einsums]
    sizes = [(*x.shape[:2], *w.shape[1:]) for w in weights]
    specs = tuple(spec(d, size) for d, size in zip(letters, sizes, strict=True))
    shapes = [
        tuple(n // rules.shards(place, axis_sizes()) for n, place in zip(size[2:], p[2:], strict=True))
        for size, p in zip(sizes, specs, strict=True)
    ]
    return specs, shapes


def _project_forward(static, x, weights):
    return _project(static, x, weights), (x, weights)


def _project_backward(static, kept, dys):
    einsums, how = static
    x, weights = kept
    layouts = _layouts(einsums, weights, how.quant)

    def device(x, weights, dys):
        normed, inverse = sub_norm(gather(x, "model", 2), 1, how.quant, how.epsilon)
        inputs = _inputs(normed, einsums, how)
        dnormed, dws = jnp.zeros(normed.shape, jnp.float32), []
        for w, layout, (ints, scale), dy in zip(weights, layouts, inputs, dys, strict=True):
            dy = dy.reshape(*dy.shape[:2], -1)
            signs, beta = quantized(w, layout, how.quant, x.dtype)
            dx, dw = _pull(_own_rows(ints, layout), scale, signs, beta, dy, how.gradients)
            if _sums_over_model(layout):
                # Whole in its own rows, where the others' are shares of a sum: the sum over `model` below takes both.
                start = jax.lax.axis_index("model") * dx.shape[-1]
                dx = jax.lax.dynamic_update_slice_in_dim(jnp.zeros(dnormed.shape, dx.dtype), dx, start, axis=2)
            dnormed += dx
            dws.append(_reduced(dw, w, layout))
        # The norm's gradient is linear in that of its result: it may be taken of each device's share.
        dx = sub_norm_backward(dnormed, normed, inverse, how.quant).astype(x.dtype)
        return scatter(dx, "model", 2), tuple(dws)

    x_spec, weight_specs = spec("BTD", x.shape), _weight_specs(layouts, weights)
    dy_specs, _ = _project_outs(einsums, x, weights)
    return on_devices(device, (x_spec, weight_specs, dy_specs), (x_spec, weight_specs))(x, weights, dys)


def _pull(ints, scale, signs, beta, dy, gradients):
    """Gradients (of x as it was before quantization, float32; of the weight's matrix) straight through both quantizers."""
    groups = scale.shape[-1]
    used = dequantize_weight(signs, beta, dy.dtype)
    dx = jax.lax.dot_general(dy, used, (((2,), (1,)), ((), ())), preferred_element_type=jnp.float32)
    x4 = ints.reshape(*ints.shape[:2], groups, -1).astype(jnp.float32) * scale[..., None]
    x = x4.reshape(ints.shape).astype(dy.dtype)
    dw = jax.lax.dot_general(x, dy, (((0, 1), (0, 1)), ((), ())), preferred_element_type=gradients)
    return dx, dw


def _reduced(dw: Array, w: Array, layout: Layout) -> Array:
    """A gathered matrix's gradient -> the stored shard's, in its shape."""
    shape = list(w.shape)
    for dim, place in enumerate(layout.places):
        if place is not None and "data" in (place if isinstance(place, tuple) else (place,)):
            shape[dim] *= axis_sizes()["data"]
    return reduce_gradient(dw.reshape(shape), layout.places, w.dtype)


_project.defvjp(_project_forward, _project_backward)

# ---- combine -----------------------------------------------------------------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _combine(static, xs, weights):
    einsums, how = static
    layouts = _layouts(einsums, weights, how.quant)

    def device(xs, weights):
        parts = []
        for x, w, layout in zip(xs, weights, layouts, strict=True):
            _, _, ints, scale = _normed_input(x, how)
            signs, beta = quantized(w, layout, how.quant, x.dtype)
            parts.append(product(ints, scale, signs, beta, how.integer))
        return scatter(sum(parts).astype(xs[0].dtype), "model", 2)

    specs, out_spec = _combine_specs(einsums, xs, layouts, weights)
    return on_devices(device, specs, out_spec)(xs, weights)


def _normed_input(x, how):
    """(normed, 1 / deviation, int8, scale) of a device's heads or columns."""
    x = x.reshape(*x.shape[:2], -1)
    groups, axes = max(1, how.quant.groups // axis_sizes()["model"]), over_model(how.quant)
    normed, inverse = sub_norm(x, groups, how.quant, how.epsilon, axes)
    return normed, inverse, *quantize_activation(normed, groups, how.quant, axes, _over_batch())


def _combine_specs(einsums, xs, layouts, weights):
    x_specs = tuple(spec(einsum.split(",")[0], x.shape) for einsum, x in zip(einsums, xs, strict=True))
    out = (*xs[0].shape[:2], weights[0].shape[-1])
    return (x_specs, _weight_specs(layouts, weights)), spec("BTD", out)


def _combine_forward(static, xs, weights):
    return _combine(static, xs, weights), (xs, weights)


def _combine_backward(static, kept, dy):
    einsums, how = static
    xs, weights = kept
    layouts = _layouts(einsums, weights, how.quant)

    def device(xs, weights, dy):
        whole = gather(dy, "model", 2)
        dxs, dws = [], []
        for x, w, layout in zip(xs, weights, layouts, strict=True):
            normed, inverse, ints, scale = _normed_input(x, how)
            signs, beta = quantized(w, layout, how.quant, x.dtype)
            dnormed, dw = _pull(ints, scale, signs, beta, whole, how.gradients)
            dx = sub_norm_backward(dnormed, normed, inverse, how.quant, over_model(how.quant))
            dxs.append(dx.astype(x.dtype).reshape(x.shape))
            dws.append(_reduced(dw, w, layout))
        return tuple(dxs), tuple(dws)

    (x_specs, weight_specs), dy_spec = _combine_specs(einsums, xs, layouts, weights)
    return on_devices(device, (x_specs, weight_specs, dy_spec), (x_specs, weight_specs))(xs, weights, dy)


_combine.defvjp(_combine_forward, _combine_backward)
