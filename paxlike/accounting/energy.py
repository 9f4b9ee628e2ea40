"""Estimates the energy of a forward pass's arithmetic, by number format and process node.

Source: BitNet (arXiv 2310.11453), section 2.4 and table 1. Multiplying m x n by n x p takes
m p (n - 1) additions and m n p multiplications. In BitNet, the linear layers of the blocks add
8-bit integers and multiply only to scale: m p + m n multiplications. The energy per operation is
from table 2. Only arithmetic is counted: no memory traffic, no leakage.

The paper does not state what table 1 includes. Its cells are reproduced by the linear layers of the
blocks (12 L d^2 parameters) and attention's two products over the full T x T square (not causal),
with T = 512, without embedding and logits. In the BitNet columns, attention's products and the
scaling use 16 bits ("high precision"); only the additions of the linear layers are int8.

With these rules, all 36 cells agree to the printed digit. One constant needs more digits than table
2 prints: 0.007 pJ for an int8 addition at 7 nm. Every value from 0.0073 to 0.0074 reproduces table
1, while 0.0070 misses two cells by 0.006 and 0.005 J. This module uses 0.00735.
"""

import dataclasses

from paxlike.config import ModelConfig, UserError

PICOJOULES = {
    "45nm": {"fp32": (0.9, 3.7), "fp16": (0.4, 1.1), "int8": (0.03, 0.2)},
    "7nm": {"fp32": (0.38, 1.31), "fp16": (0.16, 0.34), "int8": (0.00735, 0.07)},
}
"""Process node -> number format -> (addition, multiplication), in pJ."""

PRECISIONS = ("fp32", "fp16", "bitnet")


@dataclasses.dataclass(frozen=True)
class Energy:
    """Energy of the additions and multiplications in one part of a forward pass, in joules."""

    part: str
    add: float
    multiply: float

    @property
    def total(self) -> float:
        return self.add + self.multiply


def products(model: ModelConfig, tokens: int) -> dict[str, list[tuple[int, int, int, int]]]:
    """Lists the matrix products in the forward pass of one sequence.

    Returns part -> [(m, n, p, count)], for products of m x n by n x p. Raises UserError for a
    mixture of experts and for routed blocks.
    """
    if model.experts.active:
        raise UserError(
            "there is no energy table for a mixture of experts; leave out --energy, or set "
            "model.experts.count to 0 and blocks without experts."
        )
    if model.routed:
        raise UserError(
            f"there is no energy table for the routed blocks of {' '.join(model.pattern)}; leave "
            "out --energy."
        )
    D, F, L, T, H = model.d_model, model.d_ff, model.layers, tokens, model.head_dim
    heads, kv = model.heads * H, model.kv_heads * H
    return {
        "linear layers": [
            (T, D, heads, L), (T, D, kv, 2 * L), (T, heads, D, L),
            (T, D, F, L * (2 if model.gated else 1)), (T, F, D, L),
        ],
        "attention products": [(T, H, T, L * model.heads), (T, T, H, L * model.heads)],
        "logits": [(T, D, model.vocab_size, 1)],
    }  # fmt: skip


def forward_energy(
    model: ModelConfig, tokens: int, precision: str, node: str
) -> tuple[Energy, ...]:
    """Estimates the energy of one sequence's forward pass.

    precision: fp32, fp16, or bitnet (int8 additions in the linear layers, fp16 elsewhere). node:
    45nm or 7nm. Returns the parts linear layers, attention products and logits; table 1 of the
    paper is the sum of the first two. Raises UserError for an unknown precision or node.
    """
    if precision not in PRECISIONS or node not in PICOJOULES:
        raise UserError(
            f"no energy table for precision {precision!r} at node {node!r}. Choose a precision "
            f"from {', '.join(PRECISIONS)} and a node from {', '.join(PICOJOULES)}."
        )
    table, wide = PICOJOULES[node], "fp32" if precision == "fp32" else "fp16"
    energies = []
    for part, shapes in products(model, tokens).items():
        binary = precision == "bitnet" and part == "linear layers"
        additions = sum(k * m * p * (n - 1) for m, n, p, k in shapes)
        multiplications = sum(k * (m * p + m * n if binary else m * n * p) for m, n, p, k in shapes)
        add, multiply = table["int8" if binary else wide][0], table[wide][1]
        energies.append(Energy(part, additions * add * 1e-12, multiplications * multiply * 1e-12))
    return tuple(energies)
