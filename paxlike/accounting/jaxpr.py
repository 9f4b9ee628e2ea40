"""Counts the FLOPs of the matrix products of a traced program, for any architecture.

Reads a jaxpr (JAX's representation of a function before compilation) without importing JAX. A
multiply-add is 2 FLOPs. Only matrix products count: `dot_general`, `ragged_dot_general` (every row
with the weight of its group), `conv_general_dilated`, and known attention kernels (`pallas_call`,
cuDNN), which are matched by name and counted by a formula. A loop's body is multiplied by its
number of iterations, a conditional counts as its most expensive branch, and the body of a
`shard_map` is multiplied by the number of devices, because its shapes are one device's.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

from paxlike.accounting.grouped_rows import flops_of_all, is_counted
from paxlike.accounting.kernel_window import keys_per_query

_KERNELS = {
    r"splash_m[hq]a_fwd": 2, r"splash_m[hq]a_dq": 3, r"splash_m[hq]a_dkv": 4,
    r"^dot_product_attention_fwd": 2, r"^dot_product_attention_bwd": 5,
}  # fmt: skip
"""Name of an attention kernel (Pallas' splash, JAX's cuDNN) -> its number of T x S products.

They are counted as full squares, of which a causal kernel skips about half, or as the keys of a
window (`kernel_window`).
"""


@dataclasses.dataclass(frozen=True)
class Product:
    primitive: str
    where: str
    """The transforms around it, such as `scan/remat2`."""
    shapes: tuple[tuple[int, ...], ...]
    """Shapes of the operands."""
    flops: int
    """FLOPs of one execution, over all devices."""
    times: int
    """Number of executions."""


@dataclasses.dataclass(frozen=True)
class Products:
    found: tuple[Product, ...]
    uncounted: tuple[str, ...]
    """What may contain products but cannot be counted: unknown kernels, and loops of unknown length
    (their body counts once).
    """

    @property
    def total(self) -> int:
        return sum(product.flops * product.times for product in self.found)


def count_products(jaxpr: Any) -> Products:
    """Counts all matrix products of `jax.make_jaxpr(f)(*arguments)`."""
    found: list[Product] = []
    uncounted: list[str] = []
    for item in _walk(jaxpr.jaxpr, 1, 1, ()):
        if isinstance(item, Product):
            found.append(item)
        else:
            uncounted.append(item)
    return Products(tuple(found), tuple(dict.fromkeys(uncounted)))


def _walk(
    jaxpr: Any, times: int, devices: int, path: tuple[str, ...], outer: str = ""
) -> Iterator[Product | str]:
    """outer: the names of the scopes around the jaxpr, which its equations do not have."""
    for equation in jaxpr.eqns:
        name, parameters = equation.primitive.name, equation.params
        scopes = f"{outer}/{equation.source_info.name_stack}"
        at = "/".join(path)
        if name in _FLOPS:
            flops = flops_of_all(scopes, _FLOPS[name](equation))
            yield Product(name, at, _shapes(equation.invars), flops * devices, times)
        elif name == "pallas_call" or name.startswith("dot_product_attention"):
            kernel = str(parameters.get("name", name))
            counted = _kernel(kernel, equation, scopes)
            shapes = _shapes(equation.invars)
            yield (
                f"kernel {kernel}"
                if counted is None
                else Product(kernel, at, shapes, counted * devices, times)
            )
        elif name == "cond":
            branches = [
                list(_walk(_unclosed(branch), times, devices, (*path, name), scopes))
                for branch in parameters["branches"]
            ]
            yield from max(branches, key=_cost)
        else:
            inside = tuple(_jaxprs(parameters))
            if not inside and _MAY_CONTAIN_PRODUCTS.search(name):
                yield f"primitive {name}"
            if name == "while" and not is_counted(scopes):
                yield f"while loop in {at or 'the program'}: its length is not in the jaxpr"
            length = parameters["length"] if name == "scan" else 1
            shards = (
                math.prod(parameters["mesh"].shape[axis] for axis in _manual(equation))
                if name == "shard_map"
                else 1
            )
            is_call = name in ("jit", "pjit", "closed_call", "custom_vjp_call", "custom_jvp_call")
            for body in inside:
                where = path if is_call else (*path, name)
                yield from _walk(body, times * length, devices * shards, where, scopes)


_MAY_CONTAIN_PRODUCTS = re.compile(r"custom_call|ffi_call|triton|cudnn|scaled_matmul|fft")


def _cost(items: list) -> int:
    return sum(item.flops * item.times for item in items if isinstance(item, Product))


def _unclosed(jaxpr: Any) -> Any:
    """Returns the jaxpr of a closed jaxpr; a jaxpr is unchanged."""
    return getattr(jaxpr, "jaxpr", jaxpr)


def _jaxprs(parameters: dict) -> Iterator[Any]:
    for value in parameters.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if hasattr(_unclosed(item), "eqns"):
                yield _unclosed(item)


def _manual(equation: Any) -> tuple[str, ...]:
    """Returns the mesh axes that are manual in the body of a shard_map."""
    return tuple(equation.params["newly_manual_axes"])


def _shapes(variables: Sequence) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(getattr(variable.aval, "shape", ())) for variable in variables)


def _dot(equation: Any, numbers: Any = None) -> int:
    (contracted, _), _ = numbers or equation.params["dimension_numbers"]
    lhs = equation.invars[0].aval.shape
    return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(lhs[dim] for dim in contracted)


def _convolution(equation: Any) -> int:
    """Returns 2 x outputs x inputs per group x window. Padded positions are counted."""
    numbers = equation.params["dimension_numbers"]
    kernel = equation.invars[1].aval.shape
    features, *window = (kernel[dim] for dim in numbers.rhs_spec[1:])
    return 2 * math.prod(equation.outvars[0].aval.shape) * features * math.prod(window)


def _ragged_dot(equation: Any) -> int:
    """Rows of groups times a weight each; or, for its gradient, a product over each group's rows.

    Every row is counted once, as if it belongs to a group.
    """
    flops = _dot(equation, equation.params["ragged_dot_dimension_numbers"].dot_dimension_numbers)
    (lhs, *_), out = equation.invars, equation.outvars[0]
    return flops // out.aval.shape[0] if len(out.aval.shape) > len(lhs.aval.shape) else flops


_FLOPS = {
    "dot_general": _dot,
    "conv_general_dilated": _convolution,
    "ragged_dot_general": _ragged_dot,
}


def _kernel(name: str, equation: Any, scopes: str) -> int | None:
    """Returns the FLOPs of a known attention kernel, or None. scopes: names of those around it.

    The first floating-point arrays are q and k: [heads, T, H] and [heads, S, H] for splash, [B, T,
    heads, H] and [B, S, heads, H] for cuDNN.
    """
    products = next(
        (count for pattern, count in _KERNELS.items() if re.search(pattern, name)), None
    )
    arrays = [
        v.aval.shape
        for v in equation.invars
        if len(v.aval.shape) >= 3 and "float" in str(v.aval.dtype)
    ]
    if products is None or len(arrays) < 2:
        return None
    q, k = arrays[:2]
    keys = k[-3 if name.startswith("dot_product_attention") else -2]
    return products * 2 * math.prod(q) * keys_per_query(scopes, keys)
