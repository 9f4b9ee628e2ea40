"""FLOPs per token of any model config: by the field's named conventions, and as this program executes them.

Letters: N parameters, E parameters of the embedding, L layers, H query heads, Q head dim, T sequence length (PaLM's own letters), V
vocabulary, D model width, F feed-forward width. A multiply-add is 2 FLOPs; only matrix products count.

**Conventions** (forward and backward, nothing computed again): what MFU divides by the peak.

| name | FLOPs per token | who |
|---|---|---|
| palm | 6N + 12LHQT | PaLM (arXiv 2204.02311, appendix B), llm-foundry, nanoGPT |
| palm_no_embedding | 6(N - E) + 12LHQT | NVIDIA's benchmark recipes |
| causal | 6N + 6LHQT | MaxText since July 2025, Megatron |

N are the parameters that each token is multiplied with. A tied embedding is one of them (it makes the logits). An untied model's input
table is looked up, not multiplied, and is not part of N: so count llm-foundry and MaxText; the table that makes the logits is. Hence E is
the tied table, and for an untied model palm and palm_no_embedding agree. Norm scales are part of N, though they multiply no
matrix (a few millionths); rows that pad the vocabulary are not.

**Hardware FLOPs**: with what rematerialization computes again, what HFU divides by the peak. `hardware_flops` states it as the paper
does; `executed_flops` lists what this program runs, each term by name, starting from the palm convention: it equals the compiled
program's own count (`hlo_matmuls`), padding and kernels included. S: the keys that a query meets on average where attention runs in
blocks of queries (`query_blocks`).
"""

import dataclasses
from typing import NamedTuple

from paxlike.accounting.parameters import parameter_count, parameters_by_part
from paxlike.config import ModelConfig, UserError

CONVENTIONS = ("palm", "palm_no_embedding", "causal")


class Term(NamedTuple):
    name: str
    formula: str
    flops: int
    """Per token; below 0 for what a convention counts and nothing runs."""


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
        """`6N + 12LHQT`."""
        return " + ".join(term.formula for term in self.terms).replace("+ -", "- ")


# ---- forward, product by product ---------------------------------------------------------------------------------------


def forward_flops(model: ModelConfig, sequence_length: int) -> Count:
    """The forward pass's matrix products as they run: attention in full (not causal), logits of all stored vocabulary rows."""
    L, D, F = model.layers, model.d_model, model.d_ff
    heads, kv = model.heads * model.head_dim, model.kv_heads * model.head_dim
    wide = 2 if model.gated else 1
    return Count(
        "forward",
        (
            Term("attention q", "2LD·HQ", 2 * L * D * heads),
            Term("attention k", "2LD·KQ", 2 * L * D * kv),
            Term("attention v", "2LD·KQ", 2 * L * D * kv),
            Term("attention scores", "2LHQT", 2 * L * heads * sequence_length),
            Term("attention values", "2LHQT", 2 * L * heads * sequence_length),
            Term("attention o", "2L·HQ·D", 2 * L * heads * D),
            Term("feed-forward in", f"{2 * wide}LDF", 2 * wide * L * D * F),
            Term("feed-forward out", "2LFD", 2 * L * F * D),
            Term("logits", "2DV", 2 * D * model.vocab_rows),
        ),
    )


PARTS = {
    "attention projections": ("attention q", "attention k", "attention v", "attention o"),
    "attention products": ("attention scores", "attention values"),
    "feed-forward": ("feed-forward in", "feed-forward out"),
    "logits": ("logits",),
}


def flops_by_part(model: ModelConfig, sequence_length: int, kernel: str = "reference") -> dict[str, int]:
    """Training FLOPs per token by part of the model, and what is computed again, as executed."""
    forward = {term.name: term.flops for term in forward_flops(model, sequence_length).terms}
    parts = {part: 3 * sum(forward[name] for name in names) for part, names in PARTS.items()}
    parts["attention products"] = 6 * _met(model, sequence_length, kernel) + sum(
        term.flops for term in _inside_kernel(model, sequence_length, kernel)
    )
    return {**parts, "computed again": sum(term.flops for term in recomputed(model, sequence_length, kernel))}


# ---- conventions -------------------------------------------------------------------------------------------------------


def counted_parameters(model: ModelConfig) -> int:
    """N: all parameters, less an untied model's input table, which is looked up and not multiplied."""
    table = parameters_by_part(model)["embedding"]
    return parameter_count(model) - (table if model.head == "untied" else 0)


def model_flops(model: ModelConfig, sequence_length: int, convention: str = "palm") -> Count:
    """FLOPs per token of training by a named convention. Raises UserError for another name."""
    if convention not in CONVENTIONS:
        raise UserError(f"there is no FLOP convention {convention!r}; choose one of {', '.join(CONVENTIONS)}.")
    n, attention = counted_parameters(model), model.layers * model.heads * model.head_dim * sequence_length
    if convention == "palm_no_embedding":
        tied = parameters_by_part(model)["embedding"] if model.head == "tied" else 0
        parameters = Term("parameters without the embedding", "6(N - E)", 6 * (n - tied))
    else:
        parameters = Term("parameters", "6N", 6 * n)
    if convention == "causal":
        return Count(convention, (parameters, Term("causal attention", "6LHQT", 6 * attention)))
    return Count(convention, (parameters, Term("attention", "12LHQT", 12 * attention)))


def hardware_flops(model: ModelConfig, sequence_length: int, convention: str = "palm") -> Count:
    """Model FLOPs and what `model.remat` computes again, as PaLM counts it (arXiv 2204.02311, appendix B).

    attention, dots: the attention's forward, 4LHQT. palm: also 75 % of the rest of the forward, 0.75·2N. full: all of the
    forward, 2N + 4LHQT, the usual statement for it. What this program computes again is in `executed_flops`.
    """
    n, attention = counted_parameters(model), 4 * model.layers * model.heads * model.head_dim * sequence_length
    again = {
        "palm": (Term("75 % of the forward again", "0.75·2N", 3 * n // 2),),
        "full": (Term("the forward again", "2N", 2 * n),),
    }.get(model.remat, ())
    if model.remat != "none":
        again += (Term("attention's forward again", "4LHQT", attention),)
    return Count(f"{convention} + remat {model.remat}", model_flops(model, sequence_length, convention).terms + again)


QUERY_BLOCKS, LEAST_BLOCK = 8, 128
"""Blocks of queries that `nn/blocked.py` cuts a sequence into, at most, and the least queries of one that is not the last."""


def query_blocks(sequence_length: int) -> list[tuple[int, int]]:
    """(first query, last query + 1) of each block; the keys of a block are those before its end."""
    size = max(LEAST_BLOCK, -(-sequence_length // QUERY_BLOCKS))
    return [(begin, min(begin + size, sequence_length)) for begin in range(0, sequence_length, size)]


# ---- as executed -------------------------------------------------------------------------------------------------------

KERNELS = ("reference", "blocked", "xla", "cudnn", "splash")


def executed_flops(model: ModelConfig, sequence_length: int, kernel: str = "reference") -> Count:
    """What a training step of this program runs per token: the palm convention and every term in which it differs.

    kernel: the attention implementation that runs (`model.attention`, settled for the platform). Its products are counted as full
    squares: splash and cuDNN skip about half of each under a causal mask. What `blocked` skips is known, and is a term.
    """
    terms = (
        *needed_flops(model, sequence_length, kernel).terms,
        *_inside_kernel(model, sequence_length, kernel),
        *recomputed(model, sequence_length, kernel),
    )
    return Count(f"executed, {kernel} attention, remat {model.remat}", tuple(term for term in terms if term.flops))


def needed_flops(model: ModelConfig, sequence_length: int, kernel: str = "reference") -> Count:
    """Of what `executed_flops` counts, each product of the forward pass once and the two of its gradient once."""
    norms = parameters_by_part(model)["norms"]
    padding = model.d_model * (model.vocab_rows - model.vocab_size)
    skipped = _met(model, sequence_length, kernel) - _met(model, sequence_length, "reference")
    terms = (
        *model_flops(model, sequence_length).terms,
        Term("norm scales multiply no matrix", "-6 N_norms", -6 * norms),
        Term("rows that pad the vocabulary", "6D·V_padding", 6 * padding),
        Term("keys after a block of queries", "12LHQ(S - T)", 6 * skipped),
    )
    return Count(f"once, {kernel} attention", tuple(term for term in terms if term.flops))


def _met(model: ModelConfig, sequence_length: int, kernel: str) -> int:
    """FLOPs per token of one attention product: 2LHQ times S, the keys that a query meets on average."""
    product = 2 * model.layers * model.heads * model.head_dim
    if kernel != "blocked":
        return product * sequence_length
    blocks = query_blocks(sequence_length)
    return product * sum((end - begin) * end for begin, end in blocks) // sequence_length


def _inside_kernel(model: ModelConfig, sequence_length: int, kernel: str) -> tuple[Term, ...]:
    """Products that a flash kernel's backward pass repeats to avoid keeping the scores (Dao et al., arXiv 2205.14135)."""
    product = _met(model, sequence_length, kernel)
    if kernel == "blocked":
        return (Term("the blocks' backward: scores again", "2LHQS", product),)
    if kernel == "cudnn":
        return (Term("cuDNN's backward: scores again", "2LHQT", product),)
    if kernel == "splash":
        return (Term("splash's two backward kernels: scores twice, their gradient once again", "6LHQT", 3 * product),)
    return ()


def attention_kernel_flops(model: ModelConfig, sequence_length: int, kernel: str) -> int:
    """Per token, what an attention kernel runs: its products forward and backward, and what `model.remat` makes it run again."""
    squares = 12 * model.layers * model.heads * model.head_dim * sequence_length
    again = (
        term for term in recomputed(model, sequence_length, kernel) if term.name.startswith(PARTS["attention products"])
    )
    return squares + sum(term.flops for term in (*_inside_kernel(model, sequence_length, kernel), *again))


def recomputed(model: ModelConfig, sequence_length: int, kernel: str = "reference") -> tuple[Term, ...]:
    """What `model.remat` makes this program run again before the backward pass, product by product.

    Nothing whose result the backward pass does not need runs again: not the last matmuls back to the stream (`attention o` and
    `feed-forward out` in a parallel block, `feed-forward out` in a serial one, where the second norm reads what attention adds).
    """
    if kernel not in KERNELS:
        raise UserError(f"there is no attention kernel {kernel!r}; choose one of {', '.join(KERNELS)}.")
    attention = ("attention scores", "attention values")
    after_attention = ("attention o",) if model.block == "serial" else ()
    names = {
        "none": (),
        # The values' product is kept; a flash kernel keeps what its backward pass needs of the scores as well.
        "attention": () if kernel in ("blocked", "cudnn", "splash") else attention[:1],
        "dots": attention + after_attention,
        "full": ("attention q", "attention k", "attention v", *attention, *after_attention, "feed-forward in"),
    }
    names["palm"] = names["full"]
    forward = {term.name: term for term in forward_flops(model, sequence_length).terms}
    met = _met(model, sequence_length, kernel)
    forward |= {name: Term(name, "2LHQS" if kernel == "blocked" else "2LHQT", met) for name in attention}
    # The blocks' backward pass makes the scores again in any case; made again before it, they are the same and made once.
    once = "attention scores" if kernel == "blocked" else ""
    again = (forward[name] for name in names[model.remat] if name != once)
    return tuple(Term(f"{term.name} again", term.formula, term.flops) for term in again)
