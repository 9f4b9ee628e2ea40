"""Computes FLOPs per token from a model config by published conventions.

Notation (as in PaLM): N parameters, E parameters of the embedding, L layers, H query heads, Q head
dim, T sequence length, V vocabulary, D model width, F feed-forward width. A multiply-add is 2
FLOPs; only matrix products count.

**Conventions** (forward and backward pass, without recomputation): the numerator of MFU.

| name | FLOPs per token | used by |
|---|---|---|
| palm | 6N + 12LHQT | PaLM (arXiv 2204.02311, appendix B), llm-foundry, nanoGPT |
| palm_no_embedding | 6(N - E) + 12LHQT | NVIDIA's benchmark recipes |
| causal | 6N + 6LHQT | MaxText since July 2025, Megatron |

N counts the parameters that multiply each token. It includes a tied embedding, which computes the
logits. It excludes the input embedding of an untied model, which is only looked up, as in
llm-foundry and MaxText; the untied head is included. Of routed experts, N counts the k that a token
uses ("active" parameters). Hence E is the tied embedding, and for an untied model palm and
palm_no_embedding are equal. N includes norm scales, although they multiply no matrix (a few
millionths), and excludes rows that pad the vocabulary and learned positions. H counts the heads of
all k experts of a token where attention is a mixture of them (`expert_heads`). In a local layer
with a window of W < T tokens, T is W in the first two conventions; the causal one counts the pairs
of a query and a key. Of a routed layer (mixture of depths), N counts the kernels times the capacity
c, and attention has cT queries and keys.

**Hardware FLOPs** include recomputation by rematerialization: the numerator of HFU.
`hardware_flops` follows the paper's statement; `executed_flops.py` counts what this program runs.

The branches declare the products (`architecture/`).
"""

import dataclasses
from typing import NamedTuple

from paxlike.accounting.parameters import active_parameter_count, parameters_by_part
from paxlike.architecture.branch import Product
from paxlike.architecture.stack import groups
from paxlike.config import ModelConfig, UserError

CONVENTIONS = ("palm", "palm_no_embedding", "causal")


class Term(NamedTuple):
    name: str
    formula: str
    flops: int
    """Per token. Negative if a convention counts FLOPs that the program does not execute."""


@dataclasses.dataclass(frozen=True)
class Count:
    """FLOPs per token as a sum of named terms."""

    name: str
    terms: tuple[Term, ...]

    @property
    def total(self) -> int:
        return sum(term.flops for term in self.terms)

    @property
    def formula(self) -> str:
        """Such as `6N + 12LHQT`."""
        return " + ".join(term.formula for term in self.terms).replace("+ -", "- ")


# ---- forward, product by product -----------------------------------------------------------------


def products(model: ModelConfig, sequence_length: int) -> dict[str, tuple[Product, int]]:
    """Returns name -> (matrix product of the blocks, its FLOPs per token over all layers)."""
    found: dict[str, tuple[Product, int]] = {}
    for _, block, layers in groups(model):
        for product in block.products(model, sequence_length):
            earlier = found[product.name][1] if product.name in found else 0
            found[product.name] = product, earlier + layers * product.flops
    return found


def forward_flops(model: ModelConfig, sequence_length: int) -> Count:
    """Counts the forward pass as executed: full attention, and logits for all stored rows."""
    blocks = products(model, sequence_length).values()
    return Count(
        "forward",
        (
            *(Term(product.name, product.formula, flops) for product, flops in blocks),
            Term("logits", "2DV", 2 * model.d_model * model.vocab_rows),
        ),
    )


def attention_flops(model: ModelConfig, sequence_length: int) -> int:
    """Returns 2LHQT: one of attention's two products (scores, values), over all layers."""
    both = (f for p, f in products(model, sequence_length).values() if p.is_attention)
    return sum(both) // 2


def causal_attention_flops(model: ModelConfig, sequence_length: int) -> int:
    """Returns LHQT, half of `attention_flops`; in a local layer, of the pairs in its window."""
    T, total = sequence_length, 0
    for product, flops in products(model, T).values():
        if product.is_attention:
            keys, queries = product.keys(T), product.length(T)
            total += flops * (2 * queries - keys) // (2 * queries)
    return total // 2


# ---- conventions ---------------------------------------------------------------------------------


def counted_parameters(model: ModelConfig) -> int:
    """Returns N: all parameters that a token uses, except learned positions and the input embedding
    of an untied model.
    """
    parts = parameters_by_part(model)
    looked_up = parts["embedding"] if model.head == "untied" else 0
    return active_parameter_count(model) - looked_up - parts.get("positions", 0)


def model_flops(model: ModelConfig, sequence_length: int, convention: str = "palm") -> Count:
    """Returns training FLOPs per token by a convention. Raises UserError if it is unknown."""
    if convention not in CONVENTIONS:
        raise UserError(
            f"unknown FLOP convention {convention!r}. Choose one of {', '.join(CONVENTIONS)}."
        )
    n, attention = counted_parameters(model), attention_flops(model, sequence_length)
    if convention == "palm_no_embedding":
        tied = parameters_by_part(model)["embedding"] if model.head == "tied" else 0
        parameters = Term("parameters without the embedding", "6(N - E)", 6 * (n - tied))
    else:
        parameters = Term("parameters", "6N", 6 * n)
    if convention == "causal":
        causal = causal_attention_flops(model, sequence_length)
        return Count(convention, (parameters, Term("causal attention", "6LHQT", 6 * causal)))
    return Count(convention, (parameters, Term("attention", "12LHQT", 6 * attention)))


def hardware_flops(model: ModelConfig, sequence_length: int, convention: str = "palm") -> Count:
    """Returns model FLOPs plus recomputation as PaLM counts it (arXiv 2204.02311, appendix B).

    Policies attention and dots recompute attention's forward pass, 4LHQT. palm also recomputes 75 %
    of the other forward FLOPs, 0.75·2N. full recomputes the whole forward pass, 2N + 4LHQT, the
    usual statement for it. See `executed_flops.py` for what this program recomputes.
    """
    n, attention = counted_parameters(model), 2 * attention_flops(model, sequence_length)
    again: tuple[Term, ...] = {
        "palm": (Term("75 % of the forward again", "0.75·2N", 3 * n // 2),),
        "full": (Term("the forward again", "2N", 2 * n),),
    }.get(model.remat, ())
    if model.remat != "none":
        again += (Term("attention's forward again", "4LHQT", attention),)
    return Count(
        f"{convention} + remat {model.remat}",
        model_flops(model, sequence_length, convention).terms + again,
    )
