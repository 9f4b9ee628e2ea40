"""FLOPs per token that a prefix adds (`adapt.kind prefix`): every query also meets its Q keys.

The network that computes a prefix while it is trained runs once per accumulation step; its tokens
share it. Every device repeats it, which is not counted.
"""

from collections.abc import Callable

from paxlike.accounting.executed_flops import recomputed_products
from paxlike.accounting.flops import Term
from paxlike.architecture.branch import Product
from paxlike.architecture.stack import Group, groups
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
    """FLOPs of the network's products. Each group of layers computes the hidden units again."""
    if adapt.kind != "prefix" or not adapt.prefix_hidden:
        return 0
    outputs = 2 * model.layers * model.kv_heads * model.head_dim
    inputs = len(groups(model)) * model.d_model
    return 2 * adapt.prefix_length * adapt.prefix_hidden * (inputs + outputs)


def forward_terms(model: ModelConfig, adapt: AdaptConfig, tokens: int) -> tuple[Term, ...]:
    """tokens: those of an accumulation step."""
    return (
        Term("attention to the prefix", "4LHQP", sum(_products(model, adapt).values())),
        Term("the prefix's network", "2 P N_network/tokens", _network(model, adapt) // tokens),
    )


def training_terms(model: ModelConfig, adapt: AdaptConfig, tokens: int) -> tuple[Term, ...]:
    """Each product of the forward pass and two gradients. The compiler computes the hidden units of
    the network once for all groups, and their gradients for each."""
    attention, network = forward_terms(model, adapt, tokens)
    once = 2 * adapt.prefix_length * adapt.prefix_hidden * model.d_model
    shared = (len(groups(model)) - 1) * once * (adapt.kind == "prefix") // tokens
    return (
        attention._replace(flops=3 * attention.flops),
        network._replace(flops=3 * network.flops - shared),
    )


def again_terms(
    model: ModelConfig,
    adapt: AdaptConfig,
    kernel: str,
    is_read: Callable[[Group, Product], bool],
) -> tuple[Term, ...]:
    """What is computed again with the prefix: by the kernel's backward pass, and where attention's
    products are recomputed and read (`flops.recomputed`)."""
    if adapt.kind != "prefix":
        return ()
    inside = sum(_products(model, adapt).values()) // 2 if kernel == "blocked" else 0
    again = sum(
        group.layers * product.flops * adapt.prefix_length
        for group, product in recomputed_products(model, 1, kernel)
        if product.is_attention and is_read(group, product)
    )
    return (Term("attention to the prefix again", "2LHQP", inside + again),)
