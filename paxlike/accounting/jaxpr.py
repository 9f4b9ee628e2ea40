"""FLOPs of a traced program's matrix products: any architecture, nothing to keep in step by hand.

It reads a jaxpr, what JAX makes of a function before any compiler has seen it, without importing JAX. A multiply-add is 2 FLOPs;
everything but matrix products is left out. Counted are `dot_general`, `conv_general_dilated`, and kernels written by hand
(`pallas_call`), which are known by name and counted by a formula. A loop's body counts as often as it runs, a branch as its dearest
side, and the body of a `shard_map` once for each device, since its shapes are one device's.
"""

import dataclasses
import math
import re
from collections.abc import Iterator

_KERNELS = {
    r"splash_m[hq]a_fwd": 2, r"splash_m[hq]a_dq": 3, r"splash_m[hq]a_dkv": 4,
    r"^dot_product_attention_fwd": 2, r"^dot_product_attention_bwd": 5,
}  # fmt: skip
"""Name of an attention kernel (Pallas' splash, JAX's cuDNN) -> its T x S products, counted as full squares: a causal kernel skips
about half of each."""


@dataclasses.dataclass(frozen=True)
class Product:
    primitive: str
    where: str
    """The transforms around it, such as `scan/remat2`."""
    shapes: tuple[tuple[int, ...], ...]
    """Of its operands."""
    flops: int
    """Of one run, on all devices together."""
    times: int


@dataclasses.dataclass(frozen=True)
class Products:
    found: tuple[Product, ...]
    uncounted: tuple[str, ...]
    """What may hold products and cannot be counted: kernels without a formula, loops of unknown length (their body counts once)."""

    @property
    def total(self) -> int:
        return sum(product.flops * product.times for product in self.found)


def count_products(jaxpr: object) -> Products:
    """All matrix products of a `jax.make_jaxpr(f)(*arguments)`."""
    found, uncounted = [], []
    for item in _walk(jaxpr.jaxpr, 1, 1, ()):
        (found if isinstance(item, Product) else uncounted).append(item)
    return Products(tuple(found), tuple(dict.fromkeys(uncounted)))


def _walk(jaxpr: object, times: int, devices: int, path: tuple[str, ...]) -> Iterator[Product | str]:
    for equation in jaxpr.eqns:
        name, parameters = equation.primitive.name, equation.params
        where = "/".join(path)
        if name in ("dot_general", "conv_general_dilated"):
            flops = (_dot if name == "dot_general" else _convolution)(equation)
            yield Product(name, where, _shapes(equation.invars), flops * devices, times)
        elif name == "pallas_call" or name.startswith("dot_product_attention"):
            kernel = str(parameters.get("name", name))
            flops = _kernel(kernel, equation)
            shapes = _shapes(equation.invars)
            yield f"kernel {kernel}" if flops is None else Product(kernel, where, shapes, flops * devices, times)
        elif name == "cond":
            sides = [list(_walk(_open(side), times, devices, (*path, name))) for side in parameters["branches"]]
            yield from max(sides, key=_cost)
        else:
            inside = tuple(_jaxprs(parameters))
            if not inside and _MAY_HOLD_PRODUCTS.search(name):
                yield f"primitive {name}"
            if name == "while":
                yield f"while loop in {where or 'the program'}: its length is not in the jaxpr"
            length = parameters["length"] if name == "scan" else 1
            shards = (
                math.prod(parameters["mesh"].shape[axis] for axis in _manual(equation)) if name == "shard_map" else 1
            )
            quiet = name in ("jit", "pjit", "closed_call", "custom_vjp_call", "custom_jvp_call")
            for body in inside:
                yield from _walk(body, times * length, devices * shards, path if quiet else (*path, name))


_MAY_HOLD_PRODUCTS = re.compile(r"ragged_dot|custom_call|ffi_call|triton|cudnn|scaled_matmul|fft")


def _cost(items: list) -> int:
    return sum(item.flops * item.times for item in items if isinstance(item, Product))


def _open(jaxpr: object) -> object:
    """A jaxpr's equations, whether or not its constants come with it."""
    return getattr(jaxpr, "jaxpr", jaxpr)


def _jaxprs(parameters: dict) -> Iterator[object]:
    for value in parameters.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if hasattr(_open(item), "eqns"):
                yield _open(item)


def _manual(equation: object) -> tuple[str, ...]:
    """The mesh axes over which a shard_map's body sees one shard."""
    return tuple(equation.params["newly_manual_axes"])


def _shapes(variables: list) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(getattr(variable.aval, "shape", ())) for variable in variables)


def _dot(equation: object) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    lhs = equation.invars[0].aval.shape
    return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(lhs[dim] for dim in contracted)


def _convolution(equation: object) -> int:
    """2 x outputs x inputs of a group x window; positions where the window meets padding count too."""
    numbers = equation.params["dimension_numbers"]
    kernel = equation.invars[1].aval.shape
    features, *window = (kernel[dim] for dim in numbers.rhs_spec[1:])
    return 2 * math.prod(equation.outvars[0].aval.shape) * features * math.prod(window)


def _kernel(name: str, equation: object) -> int | None:
    """FLOPs of a known attention kernel; None for another. Splash takes q [heads, T, H] and k [heads, S, H], cuDNN q [B, T, heads, H]
    and k [B, S, heads, H], as their first arrays of floating-point numbers."""
    products = next((count for pattern, count in _KERNELS.items() if re.search(pattern, name)), None)
    arrays = [v.aval.shape for v in equation.invars if len(v.aval.shape) >= 3 and "float" in str(v.aval.dtype)]
    if products is None or len(arrays) < 2:
        return None
    q, k = arrays[:2]
    return products * 2 * math.prod(q) * k[-3 if name.startswith("dot_product_attention") else -2]
