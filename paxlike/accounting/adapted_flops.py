"""FLOPs per token of training a part of the parameters (`config.adapt`), as a sum of named terms.

A frozen weight has a forward product and a gradient of its input, 4 FLOPs per parameter instead of
6. A trained one also has its own gradient. Below the first layer with anything trained there is
only a forward pass. (The compiler also leaves out the gradient of that layer's input if its loop
has one layer.) LoRA's factors have all three products, 6 R (inputs + outputs).
"""

import math
from typing import NamedTuple

from paxlike.accounting.flops import (
    Count,
    Term,
    attention_flops,
    executed_flops,
    flops_by_part,
    inside_kernel,
    model_flops,
    needed_flops,
    recomputed,
    skipped_flops,
)
from paxlike.accounting.parameters import KERNELS
from paxlike.architecture.adapters import adapted, trained_whole
from paxlike.architecture.remat_policies import KEPT, PROJECTION, STREAM
from paxlike.architecture.stack import groups, outer_weights
from paxlike.config import AdaptConfig, ModelConfig


class _Sizes(NamedTuple):
    """Parameters that multiply a token, by what the backward pass does with them."""

    above: int
    """In kernels of layers with a backward pass, and the logits'."""
    below: int
    """In kernels of layers without one."""
    trained: int
    """Of kernels trained whole, and the logits' weight if it is."""
    factors_in: int
    """Of the adapters' first factors."""
    factors_out: int
    into_branches: int
    """Of the second factors whose product a branch's backward pass reads."""
    into_stream: int
    """Of those whose product a following norm reads, in serial blocks."""
    share: float
    """Part of the layers that has a backward pass."""


def training_flops(
    model: ModelConfig, adapt: AdaptConfig, sequence_length: int, convention: str = "palm"
) -> Count:
    """The numerator of MFU: a published convention, or for a partly frozen model its products
    without recomputation."""
    if not adapt.active:
        return model_flops(model, sequence_length, convention)
    return once(model, adapt, sequence_length)


def executed(
    model: ModelConfig, adapt: AdaptConfig, sequence_length: int, kernel: str = "reference"
) -> Count:
    """`executed_flops`, also of a partly frozen model."""
    if not adapt.active:
        return executed_flops(model, sequence_length, kernel)
    sizes = _sizes(model, adapt)
    terms = [*once(model, adapt, sequence_length, kernel).terms]
    for term in inside_kernel(model, sequence_length, kernel):
        terms.append(_scaled(term, sizes.share))
    read = kernel != "reference" or any("serial" in kind for kind in model.block_kinds)
    needs_values = read or _output_has_gradient(model, adapt)
    for term in recomputed(model, sequence_length, kernel):
        if term.name != "attention values again" or needs_values:
            terms.append(_scaled(term, sizes.share))
    kept = KEPT.get(model.remat, ())
    if model.remat != "none":
        again = 0 if STREAM in kept else sizes.into_stream
        again += 0 if PROJECTION in kept else sizes.factors_in + sizes.into_branches
        terms.append(Term("adapters again", "2 N_adapters", 2 * again))
    return Count(
        f"executed, {kernel} attention, remat {model.remat}, adapt {adapt.kind}",
        tuple(term for term in terms if term.flops),
    )


def by_part(
    model: ModelConfig, adapt: AdaptConfig, sequence_length: int, kernel: str
) -> dict[str, int]:
    """`flops_by_part`, or the terms of `executed` if a part of the model is frozen."""
    if not adapt.active:
        return flops_by_part(model, sequence_length, kernel)
    terms = executed(model, adapt, sequence_length, kernel).terms
    return {term.name: term.flops for term in terms}


def once(
    model: ModelConfig, adapt: AdaptConfig, sequence_length: int, kernel: str = "reference"
) -> Count:
    """The products of a step without recomputation. `needed_flops` if nothing is frozen."""
    if not adapt.active:
        return needed_flops(model, sequence_length, kernel)
    s, attention = _sizes(model, adapt), attention_flops(model, sequence_length)
    attention += skipped_flops(model, sequence_length, kernel)
    terms = (
        Term("frozen and trained weights, and gradients of their inputs", "4N", 4 * s.above),
        Term("layers below all that is trained", "2N", 2 * s.below),
        Term("gradients of weights trained whole", "2 N_trained", 2 * s.trained),
        Term("adapters", "6 N_adapters", 6 * (s.factors_in + s.factors_out)),
        Term("attention, forward", "4LHQS", 2 * attention),
        Term("attention, backward", "8LHQS", round(4 * attention * s.share)),
    )
    return Count("adapted", tuple(term for term in terms if term.flops))


def forward_of(model: ModelConfig, adapt: AdaptConfig, sequence_length: int, kernel: str) -> Count:
    """The forward pass of a partly frozen model."""
    s, attention = _sizes(model, adapt), attention_flops(model, sequence_length)
    attention += skipped_flops(model, sequence_length, kernel)
    terms = (
        Term("weights", "2N", 2 * (s.above + s.below)),
        Term("adapters", "2 N_adapters", 2 * (s.factors_in + s.factors_out)),
        Term("attention", "4LHQS", 2 * attention),
    )
    return Count("forward", tuple(term for term in terms if term.flops))


def chosen_layers(model: ModelConfig, adapt: AdaptConfig) -> int:
    """The number of layers that are adapted or trained."""
    return len(set(adapt.layers)) if adapt.layers else model.layers


def _scaled(term: Term, share: float) -> Term:
    return term._replace(flops=round(term.flops * share))


def _output_has_gradient(model: ModelConfig, adapt: AdaptConfig) -> bool:
    """Whether attention's output is read by a gradient of the weight after it."""
    names = {name for group in adapted(model, adapt).values() for name in group}
    whole = {name.rpartition("/")[2] for name in trained_whole(model, adapt)}
    return "wo_NHD" in names | whole


def _sizes(model: ModelConfig, adapt: AdaptConfig) -> _Sizes:
    whole, updates = trained_whole(model, adapt), adapted(model, adapt)
    chosen = chosen_layers(model, adapt)
    share_chosen = chosen / model.layers
    kernels = trained = factors_in = factors_out = branches = stream = 0
    trains_layers = False
    for group, block, layers in groups(model):
        mine = round(layers * share_chosen)
        for spec in block.weights(model):
            trains_layers |= f"{group}/{spec.name}" in whole or spec.name in updates.get(group, {})
            if spec.kind in KERNELS:
                size = math.prod(spec.active_shape(model))
                kernels += layers * size
                trained += mine * size * (f"{group}/{spec.name}" in whole)
        for name, pair in updates.get(group, {}).items():
            first, second = (math.prod(spec.shape(model)) for spec in pair)
            factors_in, factors_out = factors_in + mine * first, factors_out + mine * second
            branches += mine * second * (not name.endswith("D"))
            stream += mine * second * (block.kind == "serial" and name == "wo_NHD")
    share = 0.0
    if "embedding_VD" in whole:
        share = 1.0
    elif trains_layers:
        share = 1.0 - (min(adapt.layers) if adapt.layers else 0) / model.layers
    logits = model.d_model * model.vocab_rows
    head = "embedding_VD" if model.head == "tied" else "head_DV"
    trained += logits * (head in whole)
    # Nothing below the head is differentiated if only the head is trained.
    norms = {spec.name for spec in outer_weights(model) if spec.part == "norms"}
    through = share > 0 or bool(norms & whole)
    above = round(kernels * share) + logits * through
    below = kernels - round(kernels * share) + logits * (not through)
    return _Sizes(above, below, trained, factors_in, factors_out, branches, stream, share)
