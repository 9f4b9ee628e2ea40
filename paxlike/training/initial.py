"""The state that a run without a checkpoint starts from: random, or a trained model's parameters.

The origin of every parameter is checked before the run directory exists, shown, and recorded in
init.json when the parameters have been read.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import jax

from paxlike.adapt.prefix import of_text
from paxlike.config import Config, UserError
from paxlike.data.compare_tokenizers import tokenizer_difference
from paxlike.data.source import AnySource
from paxlike.infer.stream import prompt_tokens
from paxlike.nn.numerics import Numerics
from paxlike.optim.optimizer import Optimizer
from paxlike.training.base import frozen_of, record_base
from paxlike.training.derived import make_derived
from paxlike.training.init_params import first_params, name_of
from paxlike.training.init_plan import Plan, make_plan
from paxlike.training.init_source import Source
from paxlike.training.run_directory import write_text
from paxlike.training.state import State, abstract_params, initial_params, make_state

RECORD = "init.json"


class Initial:
    def __init__(
        self,
        config: Config,
        program: tuple[Numerics, Optimizer],
        data: AnySource,
        source: Source | None,
    ):
        """Raises UserError if the model does not fit the source, or `adapt.prefix_prompt` its
        length."""
        self._config, self._program, self._source = config, program, source
        self._prompt = _prefix_prompt(config, data)
        if source is not None:
            leaves = jax.tree_util.tree_leaves_with_path(self._shapes())
            names = [name_of(path) for path, _ in leaves]
            self._plan = make_plan(config.model, names, config.init, source)
            self._plan.notes.extend(_notes(config, data, source))

    def state(self, folder: Path, say: Callable[[str], None]) -> State:
        """Makes the state on the active mesh.

        With a source: shows where parameters come from and records it in the run directory. Raises
        UserError if the source cannot be read.
        """
        config, (numerics, optimizer) = self._config, self._program
        if self._source is None and not config.adapt.active:
            return make_state(config, numerics, optimizer)
        base, derived = self._params(say), {}
        if config.adapt.active:
            record_base(folder, config, base)
            derived = make_derived(folder, config, base, say)
        if self._source is not None and jax.process_index() == 0:
            write_text(folder / RECORD, json.dumps(_record(self._source, self._plan), indent=2))
        start = None
        if self._prompt:
            start = of_text(config.model, numerics, base, self._prompt)
        return make_state(config, numerics, optimizer, base, derived, start)

    def frozen(self, folder: Path) -> dict:
        """What checkpoints of the run in `folder` leave out. Raises UserError if the base is
        another one than the run's."""
        if not self._config.adapt.active:
            return {}
        return frozen_of(self._config, folder, self._params(lambda line: None))

    def _shapes(self) -> dict:
        return abstract_params(self._config, self._program[0])

    def _params(self, say: Callable[[str], None]) -> dict:
        """All parameters of the source, or random ones."""
        config, numerics = self._config, self._program[0]
        if self._source is None:
            return initial_params(config, numerics)
        say(f"starting from {self._source.name}")
        for line in self._plan.lines():
            say(f"  {line}")
        return first_params(config, numerics, self._shapes(), self._plan.origins)


def _prefix_prompt(config: Config, data: AnySource) -> list[int]:
    """The tokens that a prefix starts from. Raises UserError if it has another length."""
    adapt = config.adapt
    if not adapt.prefix_prompt:
        return []
    tokens = prompt_tokens(data.tokenizer, adapt.prefix_prompt)
    if len(tokens) != adapt.prefix_length:
        raise UserError(
            f"adapt.prefix_prompt has {len(tokens)} tokens with the tokenizer of {data.name}, and "
            f"adapt.prefix_length is {adapt.prefix_length}; set it to {len(tokens)}."
        )
    return tokens


def _notes(config: Config, data: AnySource, source: Source) -> Iterator[str]:
    params, length = config.precision.params, config.data.sequence_length
    if params != source.dtype:
        yield f"parameters are stored as {params}; the source has {source.dtype}"
    if source.length and length > source.length:
        yield (
            f"data.sequence_length is {length}; the source was trained on at most {source.length} "
            "tokens"
        )
    yield tokenizer_note(config, data, source)


def tokenizer_note(config: Config, data: AnySource, source: Source) -> str:
    """How the tokenizer of the data and the source's compare."""
    ours = data.tokenizer
    origin = "" if config.data.store or config.data.mixture or config.data.seqio_mixture else (
        " No data.store is set, so the default corpus is used, with data.tokenizer "
        f"{config.data.tokenizer}."
    )  # fmt: skip
    mine = f"the tokenizer of {data.name} ({ours.kind}, {ours.vocab_size:,} ids)"
    theirs = source.tokenizer
    if theirs is None:
        return f"{mine} is used; the source has none to compare it with.{origin}"
    named = f"the source's ({theirs.kind}, {theirs.vocab_size:,} ids)"
    if different := tokenizer_difference(theirs, ours):
        return (
            f"WARNING: {mine} is not {named}: {different}. Rows of the embedding keep the meaning "
            f"of the source's ids.{origin} Prepare the data with the source's tokenizer (paxlike "
            "data prepare --tokenizer), or give --init.new embedding_VD (and head_DV)"
        )
    if ours.vocab_size > theirs.vocab_size:
        more = ours.vocab_size - theirs.vocab_size
        return f"{mine} is {named} with {more:,} more ids"
    return f"{mine} gives the same ids as {named}"


def _record(source: Source, plan: Plan) -> dict:
    return {
        "source": source.name,
        "parameters": {name: origin.how for name, origin in plan.origins.items()},
        "notes": plan.notes,
    }
