"""Decides where each parameter of a run that starts from a trained model comes from.

The models must be equal, except for what is listed here, which is reported by name: a larger
vocabulary, another head, fewer key/value heads, more biases, scaled RoPE, and parameters that
`init.new` names.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import NamedTuple

from paxlike.accounting.parameters import Weight, stored_shapes, weights
from paxlike.config import ConfigError, InitConfig, ModelConfig, UserError
from paxlike.config.validation import near
from paxlike.parallel.axes import letters_of
from paxlike.training.init_parts import FewerHeads, HeadOfEmbedding, Sliceable, Vocabulary
from paxlike.training.init_source import Source

STORAGE = ("vocab_multiple", "remat", "attention")
"""Fields that describe how a model is stored and computed, not which model it is."""
BIASES = ("attention_bias", "feed_forward_bias", "norm_bias")
COPIED = "copied"
_VALUES = {
    "bias": "zeros",
    "scale": "ones",
    "embedding": "N(0, 1)",
    "kernel": "N(0, 1/sqrt(fan-in))",
    "expert": "N(0, 1/sqrt(fan-in))",
    "router": "N(0, 1/sqrt(fan-in))",
    "selection": "zeros",
}


class Origin(NamedTuple):
    """Where a parameter comes from."""

    how: str
    """For the user: `copied`, or what is different."""
    read: Callable[[int | None], Sliceable] | None
    """read(layer): the parameter or one layer of it, in the shape of the new run. None: new."""


class Plan(NamedTuple):
    origins: dict[str, Origin]
    """Checkpoint name -> origin, for every parameter of the run."""
    notes: list[str]
    """What else differs, one line each."""

    def lines(self) -> list[str]:
        """For the user: everything that is not copied, by name."""
        names: dict[str, list[str]] = {}
        for name, origin in self.origins.items():
            names.setdefault(origin.how, []).append(name)
        copied = names.pop(COPIED, [])
        first = f"{len(copied)} of {len(self.origins)} parameters are copied"
        return [first, *(f"{', '.join(names[how])}: {how}" for how in names), *self.notes]


def make_plan(model: ModelConfig, names: list[str], init: InitConfig, source: Source) -> Plan:
    """names: the checkpoint names of the run's parameters.

    Raises UserError naming every field in which the models differ too much, and names in `init.new`
    that are none of the parameters.
    """
    if unknown := [name for name in init.new if name not in names]:
        raise UserError(
            f"init.new names {', '.join(unknown)}; the parameters of this run are "
            f"{', '.join(names)}.{near(unknown[0], names)}"
        )
    remedy = (
        "Leave out the --model flags of these fields."
        if init.config
        else "Set these fields to the source's values, or give --init.config to take the model "
        "from the source."
    )
    if errors := list(_mismatches(model, source.model, init)):
        raise ConfigError(f"the model does not fit {source.name}: {'; '.join(errors)}. {remedy}")
    theirs = dict.fromkeys(name for name, _ in stored_shapes(source.model))
    declared = {weight.name: weight for weight in weights(model)}
    origins = {name: _origin(name, model, declared, theirs, init, source) for name in names}
    return Plan(origins, list(_notes(model, source.model, names, theirs)))


def changed_fields(old: ModelConfig, new: ModelConfig) -> dict[str, tuple[object, object]]:
    """Field with its sections (`rope_scaling.kind`) -> both values, where they differ."""
    # 0 is another word for the default.
    old, new = (dataclasses.replace(one, logit_scale=one.logits_factor) for one in (old, new))
    both = zip(_flat(old).items(), _flat(new).values(), strict=True)
    changed = {name: (a, b) for (name, a), b in both if a != b}
    if old.block_kinds == new.block_kinds:  # a pattern replaces the block
        changed = {name: both for name, both in changed.items() if name not in ("block", "pattern")}
    if "head" in changed:  # its conversion accounts for the scale
        changed.pop("logit_scale", None)
    return changed


def _flat(section: object, prefix: str = "") -> dict[str, object]:
    found: dict[str, object] = {}
    for field in dataclasses.fields(section):  # type: ignore[arg-type]
        value, name = getattr(section, field.name), prefix + field.name
        if dataclasses.is_dataclass(value):
            found |= _flat(value, f"{name}.")
        else:
            found[name] = value
    return found


def _mismatches(model: ModelConfig, source: ModelConfig, init: InitConfig) -> Iterator[str]:
    """`model.field value (source: value)` for every difference that is not supported."""
    theirs, ours = ({name for name, _ in stored_shapes(one)} for one in (source, model))
    for field, (old, new) in changed_fields(source, model).items():
        reason = ""
        if field in (*STORAGE, "head"):
            continue
        if field.startswith("rope_scaling.") and model.rope_scaling.kind != "none":
            continue
        if field in BIASES:
            if theirs - {"head_DV"} <= ours:
                continue
            reason = ", whose biases would be lost"
        elif field == "kv_heads":
            if source.kv_heads % model.kv_heads == 0:
                continue
            reason = ", not a multiple"
        elif field == "vocab_size":
            rest = [n for n in ours if "V" in letters_of(n) and n not in init.new]
            if model.vocab_size > source.vocab_size or not rest:
                continue
            reason = f", with rows that would be lost; or give --init.new {' '.join(sorted(rest))}"
        yield f"model.{field} {new} (source: {old}{reason})"


def _origin(
    name: str,
    model: ModelConfig,
    declared: dict[str, Weight],
    theirs: dict[str, None],
    init: InitConfig,
    source: Source,
) -> Origin:
    old = source.model
    fewer = name in declared and "K" in letters_of(name) and old.kv_heads != model.kv_heads
    from_embedding = name == "head_DV" and name not in theirs
    if (
        name in init.new
        or (name not in theirs and not from_embedding)
        or (fewer and init.kv_heads == "random")
    ):
        values = _VALUES[declared[name].kind] if name in declared else "as in a new run"
        return Origin(f"new, {values}", None)
    factor = old.logits_factor / model.logits_factor
    letters, hows = letters_of(name), []
    if from_embedding:
        hows.append("the source's embedding, transposed and scaled: the tied head's logits")
    if fewer:
        group = old.kv_heads // model.kv_heads
        word = "the mean" if init.kv_heads == "mean" else "the first"
        hows.append(f"{model.kv_heads} heads, each {word} of {group} contiguous heads")
    if "V" in letters and model.vocab_size > old.vocab_size:
        added = f"{model.vocab_size - old.vocab_size:,} new of {model.vocab_size:,} ids"
        hows.append(f"{added} have the mean of the source's {old.vocab_size:,}")

    def read(layer: int | None) -> Sliceable:
        parts = (
            HeadOfEmbedding(source.param("embedding_VD", None), factor)
            if from_embedding
            else source.param(name, layer)
        )
        if fewer:
            parts = FewerHeads(parts, letters.index("K"), model.kv_heads, init.kv_heads)
        if "V" in letters and (old.vocab_size, old.vocab_rows) != (
            model.vocab_size,
            model.vocab_rows,
        ):
            sizes = old.vocab_size, model.vocab_size, model.vocab_rows
            parts = Vocabulary(parts, letters.index("V"), *sizes)
        return parts

    return Origin("; ".join(hows) or COPIED, read)


def _notes(
    model: ModelConfig, source: ModelConfig, names: list[str], theirs: dict[str, None]
) -> Iterator[str]:
    changed = changed_fields(source, model)
    shown = [f"{f} {a} -> {b}" for f, (a, b) in changed.items() if f not in STORAGE]
    if shown:
        yield f"the model differs from the source's: {', '.join(shown)}"
    if unused := [name for name in theirs if name not in names]:
        yield f"of the source, {', '.join(unused)} is not used"
    if "kv_heads" in changed and model.qk_norm != "none":
        yield "query/key norm is applied to the new heads, so equal heads are the only exact case"
