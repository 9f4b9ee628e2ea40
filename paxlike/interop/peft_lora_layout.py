"""How LoRA's factors correspond to PEFT's, for every family of `families/`.

A layer's weight W [outputs, inputs] of PEFT is updated by s B A with lora_A [R, inputs] and lora_B
[outputs, R]. A family's conversion of a weight acts on its heads or columns, and not across the
width D; so it converts a factor too, if that is taken for R of the D rows of a weight. GPT-2's
weights are [inputs, outputs] and are transposed here; its factors are as in other families. Where
several of our weights are one tensor there (GPT-NeoX), its rank is the sum of theirs: each has its
own columns of lora_B. What does not fit is found by comparing the products.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from paxlike.architecture.branch import WeightSpec
from paxlike.architecture.lora import lora_factors
from paxlike.architecture.stack import groups, layer_places
from paxlike.config import ModelConfig, UserError
from paxlike.interop.hf_layout import Tensor, by_name, family, joined, tensors
from paxlike.interop.peft_folder import Array, Read

PREFIX = "base_model.model."


class Module(NamedTuple):
    """A linear layer there, and the weights here that are in it."""

    path: str
    """Such as `model.layers.0.self_attn.q_proj`."""
    layer: int
    shape: tuple[int, ...]
    """[outputs, inputs]."""
    tensors: tuple[Tensor, ...]
    inputs_first: bool
    """Whether the weight there is [inputs, outputs]."""

    def update(self, pair: "Pair", scale: float) -> tuple[str, "Array"]:
        """(name of the weight there, what is added to it)."""
        product = scale * (pair.b @ pair.a)
        return f"{self.path}.weight", product.T if self.inputs_first else product


class Pair(NamedTuple):
    """lora_A [R, inputs] and lora_B [outputs, R] there, or a weight's own two factors here."""

    a: Array
    b: Array


def modules(model: ModelConfig) -> list[Module]:
    """The linear layers of all blocks. Raises UserError if no family has the architecture."""
    kernels = {f"{g}/{s.name}" for g, block, _ in groups(model) for s in block.weights(model)
               if s.kind == "kernel"}  # fmt: skip
    of = family(model)
    table = (tensor for tensor in tensors(model, of) if tensor.param in kernels)
    found = by_name(map(_transposed, table) if of.inputs_first else table)
    layers = {(group.name, index): n for n, (group, index) in enumerate(layer_places(model))}

    def module(name: str, shared: list[Tensor]) -> Module:
        first, path = shared[0], name.removesuffix(".weight")
        layer = layers[first.param.rpartition("/")[0], first.layer or 0]
        return Module(path, layer, first.shape, tuple(shared), of.inputs_first)

    return [module(name, shared) for name, shared in found.items()]


def place(model: ModelConfig, module: Module, layers: Sequence[int]) -> int:
    """The index of a module's layer in the stacks of an adapter of these layers."""
    group = module.tensors[0].param.rpartition("/")[0]
    chosen = [n for n, (one, _) in enumerate(layer_places(model)) if one.name == group]
    return [n for n in chosen if n in layers].index(module.layer)


def _transposed(tensor: Tensor) -> Tensor:
    return tensor._replace(
        shape=tensor.shape[::-1],
        to_hf=lambda x: tensor.to_hf(x).T,
        from_hf=lambda x: tensor.from_hf(x.T),
        axis=1 - tensor.axis,
    )


def to_peft(model: ModelConfig, module: Module, factors: dict[str, Pair]) -> Pair:
    """A module's factors. factors: checkpoint name of a weight -> its factors; not all need one.

    Raises UserError if the layout of the module cannot be expressed.
    """
    rows, columns = [], []
    for tensor in module.tensors:
        if tensor.param in factors:
            pair = factors[tensor.param]
            reads_stream = _spec(tensor).letters[0] == "D"
            if reads_stream:
                rows.append(pair.a.T)
                columns.append(_converted(model, module, tensor, pair.b)[:, : len(pair.b)])
            else:
                rank = pair.a.shape[-1]
                moved = _converted(model, module, tensor, pair.a)
                rows.append(moved[:rank])
                columns.append(pair.b.T)
    found = Pair(np.concatenate(rows, 0), np.concatenate(columns, 1))
    whole = np.zeros(module.shape, np.float32)
    for tensor in module.tensors:
        if tensor.param in factors:
            product = np.tensordot(*factors[tensor.param], 1)
            whole += _converted(model, module, tensor, product)
    if not np.allclose(found.b @ found.a, whole, rtol=1e-4, atol=1e-5 * np.abs(whole).max()):
        raise UserError(f"the adapter of {module.path} cannot be expressed in PEFT's layout.")
    return found


def from_peft(module: Module, pair: Pair) -> dict[str, Pair]:
    """The factors of the weights in a module, the inverse of `to_peft` for their products."""
    found = {}
    rank = len(pair.a)
    for tensor in module.tensors:
        spec = _spec(tensor)
        if spec.letters[0] == "D":
            wide = np.zeros(module.shape, np.float32)
            wide[:, :rank] = pair.b
            found[tensor.param] = Pair(pair.a.T, tensor.from_hf(wide)[:rank])
        else:
            wide = np.zeros(module.shape, np.float32)
            wide[:rank] = pair.a
            found[tensor.param] = Pair(tensor.from_hf(wide)[..., :rank], pair.b.T)
    return found


def names(param: str, rank: int) -> tuple[str, str]:
    """The checkpoint names of a weight's factors."""
    group, _, name = param.rpartition("/")
    a, b = lora_factors(WeightSpec(name, ""), rank)
    return f"{group}/{a.name}", f"{group}/{b.name}"


def _spec(tensor: Tensor) -> WeightSpec:
    return WeightSpec(tensor.param.rpartition("/")[2], "")


def _converted(model: ModelConfig, module: Module, tensor: Tensor, value: Array) -> Array:
    """A weight, or a factor in place of R of its D rows, in the tensor there; zeros elsewhere."""
    shape = list(value.shape)
    place = 0 if _spec(tensor).letters[0] == "D" else len(shape) - 1
    shape[place] = model.d_model
    wide = np.zeros(shape, np.float32)
    wide[(slice(None),) * place + (slice(0, value.shape[place]),)] = value
    others = [wide if t is tensor else _zeros(t, model) for t in module.tensors]
    return joined(module.tensors, others)


def _zeros(tensor: Tensor, model: ModelConfig) -> Array:
    return np.zeros(_spec(tensor).shape(model), np.float32)


def with_update(read: Read, updates: dict[str, Array]) -> Read:
    """A reader of tensors, of which some have an update."""

    def updated(name: str) -> Array:
        tensor = read(name)
        return tensor.astype(np.float32) + updates[name] if name in updates else tensor

    return updated
