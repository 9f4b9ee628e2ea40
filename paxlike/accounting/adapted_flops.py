"""FLOPs per token of training a part of the parameters (`config.adapt`), as a sum of named terms.

A frozen weight has a forward product and a gradient of its input, 4 FLOPs per parameter instead of
6. A trained one also has its own gradient. Below the first layer with anything trained there is
only a forward pass. (The compiler also leaves out the gradient of that layer's input if its loop
has one layer.) LoRA's factors have all three products, 6 R (inputs + outputs).

Shifted singular values have the gradient of the whole weight, and two products per step and weight
instead of per token: the weight is composed in 2 inputs R outputs FLOPs, and as many contract its
gradient. The tokens of an accumulation step share them.

ReFT's interventions have all three products of their two matrices, 12 R D per token. They read the
stream after a block, so its last products are computed again where a remat policy does not keep the
stream. (Where the lowest run of intervened layers is a single layer, the compiler leaves out its
whole backward pass.) Keeping the rows of R orthonormal takes 4 R^2 D + 2 R^3 per update.
"""

import functools
import math
from fractions import Fraction
from typing import NamedTuple

from paxlike.accounting import prefix_flops
from paxlike.accounting.executed_flops import (
    executed_flops,
    flops_by_part,
    inside_kernel,
    recomputed,
    skipped_flops,
)
from paxlike.accounting.flops import Count, Term, attention_flops, model_flops
from paxlike.accounting.parameters import KERNELS
from paxlike.architecture import depths
from paxlike.architecture.adapters import added_weights, trained_whole
from paxlike.architecture.branch import Product
from paxlike.architecture.lora import inputs_outputs, lora_updates
from paxlike.architecture.reft import interventions
from paxlike.architecture.remat_policies import ATTENTION, KEPT, PROJECTION, STREAM
from paxlike.architecture.stack import Group, groups, outer_weights
from paxlike.config import AdaptConfig, Config, ModelConfig


class _Sizes(NamedTuple):
    """Parameters that multiply a token, by what the backward pass does with them."""

    above: int
    """In kernels of layers with a backward pass, and the logits'."""
    below: int
    """In kernels of layers without one, and of predictors, whose input has no gradient."""
    trained: int
    """Of kernels trained whole, and the logits' weight if it is."""
    factors_in: int
    """Of the adapters' first factors."""
    factors_out: int
    into_branches: int
    """Of the second factors whose product a branch's backward pass reads."""
    into_stream: int
    """Of those whose product a following norm reads, in serial blocks, or a router's weight."""
    orthonormal: int
    """FLOPs that keep the rows of LoReFT's projections orthonormal, per update."""
    composed: int
    """FLOPs that compose all weights with shifted singular values, per accumulation step."""
    share: float
    """Part of the layers that has a backward pass."""


def tokens_at_once(config: Config) -> int:
    """The tokens of an accumulation step, which share what is computed from weights alone. Each pod
    computes it for its own."""
    sequences = config.train.batch_size // config.train.accumulate // max(1, config.mesh.pod)
    return max(1, sequences) * config.data.sequence_length


def tokens_per_step(config: Config) -> int:
    """The tokens of an update."""
    return config.train.batch_size * config.data.sequence_length


def training_flops(config: Config, convention: str = "palm") -> Count:
    """The numerator of MFU: a published convention, or for a partly frozen model its products
    without recomputation."""
    model, T = config.model, config.data.sequence_length
    if not config.adapt.active:
        return model_flops(model, T, convention)
    return _once(config)


def executed(config: Config, kernel: str = "reference") -> Count:
    """`executed_flops`, also of a partly frozen model."""
    model, adapt, sequence_length = config.model, config.adapt, config.data.sequence_length
    if not adapt.active:
        return executed_flops(model, sequence_length, kernel)
    sizes = _sizes(model, adapt, sequence_length)
    terms = [*_once(config, kernel).terms]
    for term in inside_kernel(model, sequence_length, kernel):
        terms.append(_scaled(term, sizes.share))
    kept = KEPT.get(model.remat, ())
    reads_stream = adapt.kind == "reft" and STREAM not in kept
    is_read = functools.partial(_is_read, model, adapt, kernel != "reference" or reads_stream)
    again = recomputed(model, sequence_length, kernel, is_read)
    terms += [_scaled(term, sizes.share) for term in again]
    terms += prefix_flops.again_terms(model, adapt, kernel, is_read)
    if model.remat != "none":
        factors = 0 if STREAM in kept else sizes.into_stream
        factors += 0 if PROJECTION in kept else sizes.factors_in + sizes.into_branches
        terms.append(Term("adapters again", "2 N_adapters", 2 * factors))
        composed = sizes.composed // tokens_at_once(config)
        terms.append(Term("shifted weights again", "2 R N/tokens", composed))
        if reads_stream:
            products = _products_before_stream(model, sequence_length)
            share = chosen_layers(model, adapt) / model.layers
            terms.append(Term("output projections again", "2 N_out", round(share * products)))
    return Count(
        f"executed, {kernel} attention, remat {model.remat}, adapt {adapt.kind}",
        tuple(term for term in terms if term.flops),
    )


def by_part(config: Config, kernel: str) -> dict[str, int]:
    """`flops_by_part`, or the terms of `executed` if a part of the model is frozen."""
    if not config.adapt.active:
        return flops_by_part(config.model, config.data.sequence_length, kernel)
    return {term.name: term.flops for term in executed(config, kernel).terms}


def _once(config: Config, kernel: str = "reference") -> Count:
    """The products of a step of a partly frozen model without recomputation."""
    model, adapt, sequence_length = config.model, config.adapt, config.data.sequence_length
    s, attention = _sizes(model, adapt, sequence_length), attention_flops(model, sequence_length)
    attention += skipped_flops(model, sequence_length, kernel)
    terms = (
        Term("frozen and trained weights, and gradients of their inputs", "4N", 4 * s.above),
        Term("layers below all that is trained", "2N", 2 * s.below),
        Term("gradients of whole weights", "2 N_trained", 2 * s.trained),
        Term("adapters", "6 N_adapters", 6 * (s.factors_in + s.factors_out)),
        Term(
            "shifted weights and their gradients",
            "4 R N/tokens",
            2 * (s.composed // tokens_at_once(config)),
        ),
        Term("rows kept orthonormal", "4 L R^2 D/tokens", s.orthonormal // tokens_per_step(config)),
        Term("attention, forward", "4LHQS", 2 * attention),
        Term("attention, backward", "8LHQS", round(4 * attention * s.share)),
        *prefix_flops.training_terms(model, adapt, tokens_at_once(config)),
    )
    return Count("adapted", tuple(term for term in terms if term.flops))


def forward_of(config: Config, kernel: str) -> Count:
    """The forward pass of a partly frozen model."""
    model, adapt, sequence_length = config.model, config.adapt, config.data.sequence_length
    s, attention = _sizes(model, adapt, sequence_length), attention_flops(model, sequence_length)
    attention += skipped_flops(model, sequence_length, kernel)
    terms = (
        Term("weights", "2N", 2 * (s.above + s.below)),
        Term("adapters", "2 N_adapters", 2 * (s.factors_in + s.factors_out)),
        Term("shifted weights", "2 R N/tokens", s.composed // tokens_at_once(config)),
        Term("attention", "4LHQS", 2 * attention),
        *prefix_flops.forward_terms(model, adapt, tokens_at_once(config)),
    )
    return Count("forward", tuple(term for term in terms if term.flops))


def chosen_layers(model: ModelConfig, adapt: AdaptConfig) -> int:
    """The number of layers that are adapted or trained."""
    return len(set(adapt.layers)) if adapt.layers else model.layers


def _scaled(term: Term, share: float) -> Term:
    return term._replace(flops=round(term.flops * share))


def _is_read(
    model: ModelConfig, adapt: AdaptConfig, attention_is_read: bool, group: Group, product: Product
) -> bool:
    """Whether the backward pass of a partly frozen model reads a product that it recomputes.

    attention_is_read: whether something reads attention's output in all blocks: the kernel, or
    ReFT.
    """
    if product.name == depths.PREDICTOR:
        return any("/predictor_" in name for name in trained_whole(model, adapt))
    if product.kept_as != ATTENTION or attention_is_read:
        return True
    # Its output is read by a norm after it, or the gradient of a score or of the next weight.
    block = group.block
    if block.kind == "serial" or block.routed or block.branches[0].name == "expert_heads":
        return True
    changed = added_weights(model, adapt).targets | trained_whole(model, adapt)
    return bool(changed & {f"{group.name}/wo_NHD", f"{group.name}/wo_ENHD"})


def _products_before_stream(model: ModelConfig, sequence_length: int) -> int:
    """FLOPs per token of the products whose results a backward pass reads only as the stream after
    their block."""
    return sum(
        layers * product.flops
        for _, block, layers in groups(model)
        for product in block.products(model, sequence_length)
        if not product.needed
    )


def _sizes(model: ModelConfig, adapt: AdaptConfig, sequence_length: int) -> _Sizes:
    whole, updates = trained_whole(model, adapt), lora_updates(model, adapt)
    chosen = chosen_layers(model, adapt)
    share_chosen = chosen / model.layers
    added = added_weights(model, adapt)
    kernels = trained = factors_in = factors_out = branches = stream = composed = predictors = 0
    trains_layers = False
    for group, block, layers in groups(model):
        mine = round(layers * share_chosen)
        trains_layers |= bool(added.layers.get(group))
        selected = Fraction(model.depths.tokens(sequence_length), sequence_length)
        part = selected if block.routed else 1
        for spec in block.weights(model):
            trains_layers |= f"{group}/{spec.name}" in whole
            if spec.part in depths.PARTS:
                # The predictor's matrix; vectors are no matrix products.
                size = math.prod(spec.shape(model)) * (len(spec.letters) > 1)
                predictors += layers * size
                trained += mine * size * (f"{group}/{spec.name}" in whole)
            elif spec.kind in KERNELS:
                whole_size = math.prod(spec.active_shape(model))
                size = int(whole_size * part)
                kernels += layers * size
                trained += mine * size * (f"{group}/{spec.name}" in whole | added.composed)
                if f"{group}/{spec.name}" in added.composed:
                    composed += mine * 2 * whole_size * min(inputs_outputs(spec, model))
        for name, pair in updates.get(group, {}).items():
            first, second = (int(math.prod(spec.shape(model)) * part) for spec in pair)
            factors_in, factors_out = factors_in + mine * first, factors_out + mine * second
            branches += mine * second * (not name.endswith("D"))
            is_read = block.routed or (block.kind == "serial" and name == "wo_NHD")
            stream += mine * second * (is_read and name.endswith("D"))
    orthonormal = 0
    if adapt.kind == "reft":
        count, R, D = chosen * len(interventions(adapt)), adapt.rank, model.d_model
        factors_in = factors_out = count * R * D
        orthonormal = count * (4 * R * R * D + 2 * R**3) * (adapt.form == "loreft")
        trains_layers = True
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
    below = kernels - round(kernels * share) + logits * (not through) + predictors
    factors = factors_in, factors_out, branches, stream
    return _Sizes(above, below, trained, *factors, orthonormal, composed, share)
