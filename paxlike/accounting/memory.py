"""Estimates the memory that a train step needs on each device, term by term.

Sharding follows `parallel/rules.py`: weights, gradients and optimizer state are sharded over data x
expert x model; the residual stream has its batch over pod x data x expert and D over model; heads
and feed-forward columns are over model. Use the estimate to choose a mesh and a rematerialization
policy before compiling; `paxlike plan` reports the compiler's exact numbers. For six programs of
about 1 B parameters, compiled by libtpu for 8 and 16 chips, the estimate was 9% too low to 4% too
high.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from paxlike.accounting.adapted_flops import chosen_layers
from paxlike.accounting.adapted_parameters import ADAPTERS, trained_weights
from paxlike.accounting.parameters import KERNELS, Weight, weights
from paxlike.architecture.adapters import added_weights
from paxlike.architecture.branch import Activation, ActivationSizes
from paxlike.architecture.remat_policies import BLOCK_INPUT, KEPT, STREAM
from paxlike.architecture.stack import groups
from paxlike.config import Config, OptimConfig
from paxlike.parallel import rules
from paxlike.parallel.axes import is_stacked

BYTES = {"float32": 4, "bfloat16": 2}
LOSS_CHUNK_ELEMENTS = 2**27
"""Maximum number of logits in memory at once on a device (`training/loss.py`)."""
ONE_DEVICE = {"pod": 1, "data": 1, "model": 1}
FACTOR_FROM = 128
"""Adafactor does not factor moments with an axis shorter than this (`optim/optimizer.py`)."""


class Part(NamedTuple):
    name: str
    bytes: int
    """On one device."""
    description: str


@dataclasses.dataclass(frozen=True)
class MemoryEstimate:
    mesh: dict[str, int]
    """Axis -> size."""
    parts: tuple[Part, ...]

    @property
    def total(self) -> int:
        """Bytes on one device."""
        return sum(part.bytes for part in self.parts)


def memory_estimate(
    config: Config, devices: int, *, compute: str = "bfloat16", kernel: str = "flash"
) -> MemoryEstimate:
    """Estimates the peak bytes on each device in a step with the full batch (`train.batch_size`).

    compute: dtype of activations if `precision.compute` is auto. kernel: `flash` (cudnn, splash),
    or `reference` attention, which saves the probabilities. Raises ConfigError if the mesh does not
    fit the devices.
    """
    mesh = config.mesh.resolve(devices)
    if config.precision.compute != "auto":
        compute = config.precision.compute
    sequences = -(-config.train.batch_size // config.train.accumulate)
    tokens = math.ceil(
        sequences * config.data.sequence_length / rules.size_of(rules.BATCH_AXES, mesh)
    )
    step = _Step(config, mesh, tokens, BYTES[compute], kernel)
    state = _state(config, mesh, compute)
    gradients = next(part.bytes for part in state if part.name == "gradients")
    # The loss runs before the gradients of the blocks exist, so their memory is free then.
    in_layer, in_loss = step.layer_peak(), step.loss_peak() - gradients
    parts = [
        *state,
        Part(
            "saved activations",
            step.saved(),
            f"{config.model.layers} layers, remat {config.model.remat}",
        ),
        Part(
            "at work",
            max(in_layer, in_loss),
            "backward pass of one layer" if in_layer >= in_loss else "one chunk of the loss",
        ),
    ]
    return MemoryEstimate(mesh, tuple(parts))


def _state(config: Config, mesh: Mapping[str, int], compute: str) -> list[Part]:
    """Parameters, what is computed from them alone, and what has their shapes."""
    c, param = config.model, config.precision.params
    trained = trained_weights(c, config.adapt)

    def stored_here(chosen: Iterable[Weight]) -> int:
        return sum(_stored(weight, weight.stored_count, mesh) for weight in chosen)

    factors = stored_here(w for w in trained if w.part == ADAPTERS)
    whole = stored_here(w for w in trained if w.part != ADAPTERS)
    gradients = whole * BYTES[param] + 4 * factors
    parts = [
        Part(
            "parameters",
            stored_here(weights(c)) * BYTES[param],
            f"{param}, sharded over {' x '.join(axis for axis in mesh if axis != 'pod')}",
        )
    ]
    if factors:
        parts.append(Part("adapters", 4 * factors, f"{config.adapt.kind}, float32"))
    if derived := derived_elements(config, mesh):
        composed = 4 * composed_elements(config, mesh)
        how = "kept by remat none" if c.remat == "none" else "of a layer"
        words = f"{config.adapt.kind}, float32, sharded over data or model"
        parts.append(Part("derived from the base", 4 * derived, words))
        parts.append(Part("composed weights", composed, f"float32, {how}"))
    if compute != param:
        in_blocks = stored_here(w for w in weights(c) if is_stacked(w.name)) * BYTES[compute]
        parts.append(Part("parameters to compute with", in_blocks, f"of the blocks, in {compute}"))
    moments = 4 * optimizer_elements(config, mesh)
    parts.append(Part("optimizer state", moments, f"{config.optim.name}, float32"))
    parts.append(Part("gradients", gradients, "sharded like the parameters"))
    if config.train.accumulate > 1:
        words = f"sum over {config.train.accumulate} accumulation steps"
        parts.append(Part("accumulated gradients", gradients, words))
    return parts


def _stored(weight: Weight, elements: int, mesh: Mapping[str, int]) -> int:
    fully = weight.kind in (*KERNELS, "embedding") and len(weight.shape) > 1
    axes = (*rules.GATHERED_AXES, "model") if fully else ("model",)
    return -(-elements // rules.size_of(axes, mesh))


def derived_elements(config: Config, mesh: Mapping[str, int]) -> int:
    """Elements on one device of what the adapter derives from its base (`Added.derived`)."""
    elements, share = 0, chosen_layers(config.model, config.adapt)
    added = added_weights(config.model, config.adapt)
    for group, _, layers in groups(config.model):
        for derived in added.derived.get(group, ()):
            shape, places = derived.spec.shape(config.model), derived.places(config.model, mesh)
            shards = math.prod(rules.shards(place, mesh) for place in places)
            elements += round(layers * share / config.model.layers) * math.prod(shape) // shards
    return elements


def composed_elements(config: Config, mesh: Mapping[str, int]) -> int:
    """Elements on one device of the weights composed from them: of one layer, or of all adapted
    ones where nothing is rematerialized."""
    added = added_weights(config.model, config.adapt)
    found = [w for w in weights(config.model) if w.name in added.composed]
    elements = sum(_stored(w, w.stored_count, mesh) for w in found)
    layers = chosen_layers(config.model, config.adapt) if config.model.remat == "none" else 1
    return elements * layers // config.model.layers


def optimizer_elements(config: Config, mesh: Mapping[str, int] = ONE_DEVICE) -> int:
    """Returns the elements of optimizer state on one device.

    palm and adamw keep two moments, lion one, adafactor a factored one.
    """
    elements = 0
    for weight in trained_weights(config.model, config.adapt):
        count = moment_elements(weight, config.optim)
        elements += _stored(weight, count, mesh)
    return elements


def moment_elements(weight: Weight, optim: OptimConfig) -> int:
    """Returns the elements of one parameter's optimizer state, over all layers and devices."""
    if weight.kind == "selection":
        return 0
    if optim.name != "adafactor":
        return weight.stored_count * (1 if optim.name == "lion" else 2)
    shape = weight.stored_shape or weight.shape
    longest = sorted(range(len(shape)), key=lambda axis: shape[axis])[-2:]
    if len(longest) < 2 or shape[longest[0]] < FACTOR_FROM:
        return weight.stored_count
    return sum(weight.stored_count // shape[axis] for axis in longest)  # the means over either axis


@dataclasses.dataclass(frozen=True)
class _Step:
    config: Config
    mesh: Mapping[str, int]
    tokens: int
    """On one device, in one accumulation step."""
    bytes: int
    kernel: str

    def activations(self, *, fused: bool = False) -> list[tuple[Activation, int]]:
        """Returns (activation, number of layers) for all activations that a backward pass reads.

        This is without rematerialization. fused: see `ActivationSizes`.
        """
        sizes = ActivationSizes(
            self.mesh["model"],
            self.mesh.get("expert", 1),
            self.bytes,
            self.config.data.sequence_length,
            fused,
            self.kernel == "reference",
        )
        model = self.config.model
        return [
            (activation, layers)
            for _, block, layers in groups(model)
            for activation in block.activations(model, sizes)
        ]

    def saved(self) -> int:
        remat = self.config.model.remat
        saved = 0
        for activation, layers in self.activations():
            # Without rematerialization the block's input is saved as the norm's input.
            if remat == "none":
                is_saved = activation.kept_as != BLOCK_INPUT
            else:
                is_saved = activation.kept_as in KEPT[remat]
            saved += is_saved * layers * activation.bytes_per_token
        c = self.config
        if c.adapt.kind == "reft" and (remat == "none" or STREAM in KEPT[remat]):
            # What interventions read: the stream after their block.
            saved += (
                chosen_layers(c.model, c.adapt) * c.model.d_model // self.mesh["model"] * self.bytes
            )
        return self.tokens * saved

    def layer_peak(self) -> int:
        """Returns the bytes that one layer's backward pass needs beyond saved activations.

        These are its gathered weights and their unreduced gradients, its gathered input and its
        gradient, and the activations that it reads (unless saved) with their gradients. In a
        pattern of several blocks, the mean over them. The unreduced gradient of a tied head stays
        until the lookup's is added to it (`nn/embedding.py`).
        """
        c = self.config
        kernels = [w for w in weights(c.model) if is_stacked(w.name) and w.kind in KERNELS]
        matrices = sum(map(self._gathered, kernels)) // c.model.layers
        own = {w.name for w in trained_weights(c.model, c.adapt)}
        own |= added_weights(c.model, c.adapt).composed
        reduced = sum(self._gathered(w) for w in kernels if w.name in own) // c.model.layers
        stream = 2 * self.tokens * c.model.d_model * self.bytes
        per_token = sum(layers * a.bytes_per_token for a, layers in self.activations(fused=True))
        activations = self.tokens * per_token // c.model.layers
        activations *= 1 if c.model.remat == "none" else 2
        if c.model.head == "tied" and "embedding_VD" in own:
            reduced += c.model.vocab_rows // self.mesh["model"] * c.model.d_model
        gradients = reduced * BYTES[c.precision.gradients]
        return matrices * self.bytes + gradients + stream + activations

    def _gathered(self, weight: Weight) -> int:
        """Elements on one device of a stack of weights, as they are gathered for use."""
        axes = ("expert", "model") if weight.kind == "expert" else ("model",)
        return weight.count // rules.size_of(axes, self.mesh)

    def loss_peak(self) -> int:
        """Returns the bytes that the loss needs.

        These are the gathered head, the hidden states and one chunk of float32 logits, each with
        its gradient.
        """
        c = self.config
        rows = c.model.vocab_rows // self.mesh["model"]
        head = c.model.d_model * rows * (self.bytes + BYTES[c.precision.gradients])
        chunk = min(self.tokens, max(1, LOSS_CHUNK_ELEMENTS // rows)) * rows
        return head + 2 * self.tokens * c.model.d_model * self.bytes + 2 * 4 * chunk
