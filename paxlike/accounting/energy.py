"""Joules of the arithmetic of a forward pass, by number format and process node (BitNet, arXiv 2310.11453, section 2.4 and table 1).

A product of m x n by n x p costs m p (n - 1) additions and m n p multiplications. In BitNet the linear layers of the blocks add
8-bit integers and multiply only to scale: m p + m n multiplications. Energies per operation are those of the paper's table 2. Only
arithmetic is counted: no memory traffic, no leakage.

What table 1 counts was found by recomputation: the linear layers of the blocks (12 L d^2 parameters) and the two products of attention
in full (T x T, not causal), T = 512, without embedding and logits. In the BitNet columns the attention's products and the scaling stay
in 16 bits ("high precision"); only the additions of the linear layers are int8. So counted, all 36 cells agree to the printed digit, with
one constant taken finer than it is printed: table 2 has 0.007 pJ for an int8 addition in 7 nm; every value from 0.0073 to 0.0074, printed
the same, gives table 1, while 0.0070 misses two cells of it by 0.006 and 0.005 J. Here it is 0.00735.
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
    """Joules of the additions and multiplications of one part of a forward pass."""

    part: str
    add: float
    multiply: float

    @property
    def total(self) -> float:
        return self.add + self.multiply


def products(model: ModelConfig, tokens: int) -> dict[str, list[tuple[int, int, int, int]]]:
    """Part -> [(m, n, p, how many)] of the forward pass of one sequence of `tokens`: m x n by n x p."""
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


def forward_energy(model: ModelConfig, tokens: int, precision: str, node: str) -> tuple[Energy, ...]:
    """Joules of one sequence's forward pass: linear layers, attention products, logits.

    precision: fp32, fp16 or bitnet (int8 additions in the linear layers, fp16 elsewhere). node: 45nm or 7nm. The paper's table
    is the sum of the first two parts.
    """
    if precision not in PRECISIONS or node not in PICOJOULES:
        raise UserError(
            f"there is no energy table for precision {precision!r} at node {node!r}; "
            f"precisions are {', '.join(PRECISIONS)}, nodes {', '.join(PICOJOULES)}."
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
