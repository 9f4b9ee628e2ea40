"""The data source of a run: a token store, a mixture of stores, or a Task or Mixture of seqio, with
one interface.
"""

from typing import Protocol

from paxlike.config import ConfigError, DataConfig, ModelConfig, TrainConfig, UserError
from paxlike.data.default_store import default_store
from paxlike.data.grain_source import TrainBatches, ValidationBatches
from paxlike.data.mixture import Mixture, open_stores
from paxlike.data.mixture_batches import MixtureBatches, validation_parts
from paxlike.data.seqio_batches import SeqioTrainBatches, SeqioValidationBatches
from paxlike.data.seqio_mixture import SeqioMixture, open_mixture
from paxlike.data.store import Store, open_store
from paxlike.data.tokenizer import Tokenizer

AnySource = Store | Mixture | SeqioMixture


class Source(Protocol):
    """An opened data source."""

    @property
    def name(self) -> str:
        """The name used in messages."""

    @property
    def location(self) -> str:
        """A directory, or seqio:NAME; recorded in data.json."""

    @property
    def fingerprint(self) -> str:
        """sha256, hex, of the content and how it is packed."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def chat_template(self) -> str | None:
        """The Jinja source of the template of conversations."""


def open_data(data: DataConfig) -> AnySource:
    """Opens the Task, Mixture, stores or store that `data` names, or the default corpus.

    The default corpus is prepared if it is not cached. Raises UserError.
    """
    if data.seqio_mixture:
        return open_mixture(data)
    if data.mixture:
        return open_stores(data)
    return open_store(data.store or default_store(data))


def train_batches(
    source: AnySource, data: DataConfig, train: TrainConfig
) -> TrainBatches | MixtureBatches | SeqioTrainBatches:
    """Raises ConfigError if the packing differs, UserError if there is no complete sequence."""
    if isinstance(source, SeqioMixture):
        return SeqioTrainBatches(source, data, train)
    if isinstance(source, Mixture):
        return MixtureBatches(source, data, train)
    return TrainBatches(source, data, train)


def validation_batches(
    source: AnySource, data: DataConfig, train: TrainConfig
) -> dict[str, ValidationBatches] | dict[str, SeqioValidationBatches]:
    """The validation batches of each part of the source; one without a name has the name "".

    Raises as `train_batches`.
    """
    if isinstance(source, SeqioMixture):
        return {"": SeqioValidationBatches(source, data, train)}
    if isinstance(source, Mixture):
        return validation_parts(source, data, train)
    return {"": ValidationBatches(source, data, train)}


def weights_at(source: AnySource, step: int) -> dict[str, float]:
    """The part of each of the `validation_batches` in training at `step`; the sum is 1."""
    return source.weights(step) if isinstance(source, Mixture) else {"": 1.0}


def check_vocabulary(source: Source, model: ModelConfig) -> None:
    """Raises ConfigError if the model cannot predict every id of the source."""
    if source.vocab_size > model.vocab_size:
        raise ConfigError(
            f"model.vocab_size {model.vocab_size} is smaller than the {source.vocab_size} ids of "
            "the "
            f"tokenizer of {source.name}; set model.vocab_size to {source.vocab_size} or more."
        )


def check_unchanged(source: Source, fingerprint: str) -> None:
    """Raises UserError if the source is not the one that the run began with."""
    if source.fingerprint != fingerprint:
        raise UserError(
            f"{source.name} has fingerprint {source.fingerprint}, the run began with "
            f"{fingerprint}: "
            "its content or packing changed. Restore the original, or start a new run directory."
        )
