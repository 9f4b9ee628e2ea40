"""Counts the FLOPs per token that a training step of this program executes: the numerator of HFU.

The count is a list of named terms, starting from the palm convention (`flops.py`, also for the
notation). Its total equals the count in the compiled program (`hlo_matmuls`), including padding and
kernels. S is the mean number of keys per query if attention runs in blocks of queries
(`query_blocks.py`).
"""

from collections.abc import Callable, Iterator

from paxlike.accounting.flops import Count, Term, attention_flops, model_flops, products
from paxlike.accounting.parameters import parameters_by_part, weights
from paxlike.accounting.query_blocks import query_blocks
from paxlike.architecture import depths
from paxlike.architecture.branch import Product
from paxlike.architecture.remat_policies import ATTENTION, KEPT
from paxlike.architecture.stack import Group, groups
from paxlike.config import ModelConfig, UserError

KERNELS = ("reference", "blocked", "xla", "cudnn", "splash")


def executed_flops(model: ModelConfig, sequence_length: int, kernel: str = "reference") -> Count:
    """Returns the FLOPs per token that a training step of this program executes.

    The terms are those of the palm convention, plus one for every difference from it. kernel: the
    attention implementation (`model.attention`, resolved for the platform). Its products are
    counted as full squares, although splash and cuDNN skip about half of each under a causal mask;
    they skip keys outside of a window, too, which are not counted.
    What `blocked` skips is known exactly and has a term.
    """
    without = sum(
        flops for p, flops in products(model, sequence_length).values() if not p.input_gradient
    )
    terms = (
        *needed_flops(model, sequence_length, kernel).terms,
        Term("predictors' inputs have no gradient", "-2LDX", -without),
        *inside_kernel(model, sequence_length, kernel),
        *recomputed(model, sequence_length, kernel),
    )
    return Count(
        f"executed, {kernel} attention, remat {model.remat}",
        tuple(term for term in terms if term.flops),
    )


def flops_by_part(
    model: ModelConfig, sequence_length: int, kernel: str = "reference"
) -> dict[str, int]:
    """Returns executed training FLOPs per token by part of the model, and what is recomputed."""
    parts: dict[str, int] = {}
    for product, flops in products(model, sequence_length).values():
        if product.is_attention:
            flops = _executed(product, flops, sequence_length, kernel)
        times = 3 if product.input_gradient else 2
        parts[product.part] = parts.get(product.part, 0) + times * flops
    inside = sum(term.flops for term in inside_kernel(model, sequence_length, kernel))
    parts["attention products"] += inside
    parts["logits"] = 6 * model.d_model * model.vocab_rows
    again = sum(term.flops for term in recomputed(model, sequence_length, kernel))
    return {**parts, "computed again": again}


def needed_flops(model: ModelConfig, sequence_length: int, kernel: str = "reference") -> Count:
    """Returns `executed_flops` without recomputation: each forward product and two gradients."""
    parts = parameters_by_part(model)
    padding = model.d_model * (model.vocab_rows - model.vocab_size)
    difference = skipped_flops(model, sequence_length, kernel)
    keys = "keys outside of a window" if difference > 0 else "keys after a block of queries"
    terms = (
        *model_flops(model, sequence_length).terms,
        Term("norm scales multiply no matrix", "-6 N_norms", -6 * parts["norms"]),
        Term("biases multiply no matrix", "-6 N_biases", -6 * parts.get("biases", 0)),
        Term("rows that pad the vocabulary", "6D·V_padding", 6 * padding),
        Term(keys, "12LHQ(S - T)", 6 * difference),
        *_routed_terms(model, sequence_length),
    )
    return Count(f"once, {kernel} attention", tuple(term for term in terms if term.flops))


def _routed_terms(model: ModelConfig, sequence_length: int) -> tuple[Term, ...]:
    """What the conventions count differently in routed layers, of which C tokens are selected."""
    T, C = sequence_length, model.depths.tokens(sequence_length)
    layers = sum(n for _, block, n in groups(model) if block.routed)
    shared = [w for w in weights(model) if w.share != 1]
    rounded = sum(w.count * C // T - w.active_count for w in shared)
    vectors = layers * depths.vectors(model)
    return (
        Term("vectors of routers multiply no matrix", "-6 N_vectors", -6 * vectors),
        Term("whole tokens in routed layers", "6 N_routed(C/T - c)", 6 * rounded),
    )


def skipped_flops(model: ModelConfig, sequence_length: int, kernel: str) -> int:
    """Returns 2LHQ(S - T): what an attention kernel adds to one product of the conventions.

    Negative for keys that it leaves out, positive for those outside of a window.
    """
    computed = _attention_product_flops(model, sequence_length, kernel)
    return computed - attention_flops(model, sequence_length)


def _attention_product_flops(model: ModelConfig, sequence_length: int, kernel: str) -> int:
    """Returns 2LHQS, the FLOPs per token of one attention product. S: mean keys per query."""
    found = products(model, sequence_length).values()
    both = (_executed(p, f, sequence_length, kernel) for p, f in found if p.is_attention)
    return sum(both) // 2


def _executed(product: Product, flops: int, sequence_length: int, kernel: str) -> int:
    """The FLOPs per token that the kernel executes of an attention product, of which the
    conventions count `flops`.
    """
    queries, keys = product.length(sequence_length), product.keys(sequence_length)
    if kernel in ("cudnn", "splash"):
        return flops
    if kernel != "blocked":
        return flops // keys * queries
    blocks = query_blocks(queries, product.window)
    pairs = sum((q.stop - q.start) * (k.stop - k.start) for q, k in blocks)
    return flops // keys * pairs // queries


def inside_kernel(model: ModelConfig, sequence_length: int, kernel: str) -> tuple[Term, ...]:
    """Returns the products that a flash kernel's backward pass repeats.

    It recomputes the scores instead of saving them (Dao et al., arXiv 2205.14135).
    """
    product = _attention_product_flops(model, sequence_length, kernel)
    if kernel == "blocked":
        return (Term("the blocks' backward: scores again", "2LHQS", product),)
    if kernel == "cudnn":
        return (Term("cuDNN's backward: scores again", "2LHQT", product),)
    if kernel == "splash":
        return (
            Term(
                "splash's two backward kernels: scores twice, their gradient once again",
                "6LHQT",
                3 * product,
            ),
        )
    return ()


def attention_kernel_flops(model: ModelConfig, sequence_length: int, kernel: str) -> int:
    """Returns FLOPs per token of an attention kernel: forward, backward, and recomputed."""
    attention = (p for p, _ in products(model, sequence_length).values() if p.is_attention)
    names = tuple(f"{product.name} again" for product in attention)
    again = (t for t in recomputed(model, sequence_length, kernel) if t.name in names)
    extra = (*inside_kernel(model, sequence_length, kernel), *again)
    return 6 * attention_flops(model, sequence_length) + sum(term.flops for term in extra)


FLASH_KERNELS = ("blocked", "cudnn", "splash")
"""Kernels that save row statistics for the backward pass, under the name of attention's output."""


def recomputed_products(
    model: ModelConfig, sequence_length: int, kernel: str = "reference"
) -> Iterator[tuple[Group, Product]]:
    """The products that `model.remat` recomputes before the backward pass, each in its group.

    A product is recomputed if the backward pass reads its result and the policy does not save it.
    Raises UserError for an unknown kernel.
    """
    if kernel not in KERNELS:
        raise UserError(f"unknown attention kernel {kernel!r}. Choose one of {', '.join(KERNELS)}.")
    if model.remat == "none":
        return
    kept = KEPT[model.remat]
    for group in groups(model):
        for product in group.block.products(model, sequence_length):
            if not product.needed or product.kept_as in kept:
                continue
            # The backward pass of `blocked` computes the scores anyway, and only once.
            once = kernel == "blocked" or (kernel in FLASH_KERNELS and ATTENTION in kept)
            if once and product.is_attention and product.kept_as is None:  # the scores
                continue
            yield group, product


def recomputed(
    model: ModelConfig,
    sequence_length: int,
    kernel: str = "reference",
    is_read: Callable[[Group, Product], bool] = lambda group, product: True,
) -> tuple[Term, ...]:
    """`recomputed_products` as terms, by name. is_read: whether to count one."""
    found: dict[str, Term] = {}
    for group, product in recomputed_products(model, sequence_length, kernel):
        if not is_read(group, product):
            continue
        flops, formula = group.layers * product.flops, product.formula
        if product.is_attention:
            flops = _executed(product, flops, sequence_length, kernel)
            formula = "2LHQS" if kernel == "blocked" else formula
        name = f"{product.name} again"
        flops += found[name].flops if name in found else 0
        found[name] = Term(name, formula, flops)
    return tuple(found.values())
