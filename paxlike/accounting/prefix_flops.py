"""FLOPs per token that a prefix adds (`adapt.kind prefix`): every query also meets its Q keys.

The network that computes a prefix while it is trained runs once per accumulation step; its tokens
share it. Every device repeats it, which is not counted.
"""

from collections.abc import Iterable

from paxlike.accounting.flops import Term
from paxlike.architecture.stack import groups
from paxlike.config import AdaptConfig, ModelConfig


def _products(model: ModelConfig, adapt: AdaptConfig) -> dict[str, int]:
    """Attention product -> FLOPs per token with the keys (or values) of the prefix, 2LHQ·P."""
    found: dict[str, int] = {}
    if adapt.kind != "prefix":
        return found
    for _, block, layers in groups(model):
        for product in block.products(model, 1):  # with one key
            if product.is_attention:
                flops = layers * product.flops * adapt.prefix_length
                found[product.name] = found.get(product.name, 0) + flops
    return found


def _network(model: ModelConfig, adapt: AdaptConfig) -> int:
    """FLOPs of the network's products."""
    if adapt.kind != "prefix" or not adapt.prefix_hidden:
        return 0
    outputs = 2 * model.layers * model.kv_heads * model.head_dim
    return 2 * adapt.prefix_length * adapt.prefix_hidden * (model.d_model + outputs)


def forward_terms(model: ModelConfig, adapt: AdaptConfig, tokens: int) -> tuple[Term, ...]:
    """tokens: those of an accumulation step."""
    return (
        Term("attention to the prefix", "4LHQP", sum(_products(model, adapt).values())),
        Term("the prefix's network", "2 P N_network/tokens", _network(model, adapt) // tokens),
    )


def training_terms(model: ModelConfig, adapt: AdaptConfig, tokens: int) -> tuple[Term, ...]:
    """Each product of the forward pass and two gradients."""
    return tuple(
        term._replace(flops=3 * term.flops) for term in forward_terms(model, adapt, tokens)
    )


def again_terms(
    model: ModelConfig, adapt: AdaptConfig, kernel: str, recomputed: Iterable[Term]
) -> tuple[Term, ...]:
    """What is computed again with the prefix: by the kernel's backward pass, and where attention's
    products are recomputed."""
    products = _products(model, adapt)
    inside = sum(products.values()) // 2 if kernel == "blocked" else 0
    names = {f"{name} again": flops for name, flops in products.items()}
    again = sum(names.get(term.name, 0) for term in recomputed)
    return (Term("attention to the prefix again", "2LHQP", inside + again),)
