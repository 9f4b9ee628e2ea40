"""What a run reads: a token store, or a Task or Mixture of seqio. Both have the same face to the training loop."""

from typing import Protocol

from paxlike.config import ConfigError, DataConfig, ModelConfig, TrainConfig, UserError
from paxlike.data.default_store import default_store
from paxlike.data.grain_source import TrainBatches, ValidationBatches
from paxlike.data.seqio_batches import SeqioTrainBatches, SeqioValidationBatches
from paxlike.data.seqio_mixture import SeqioMixture, open_mixture
from paxlike.data.store import Store, open_store
from paxlike.data.tokenizer import Tokenizer


class Source(Protocol):
    """An opened one."""

    @property
    def name(self) -> str:
        """For messages."""

    @property
    def location(self) -> str:
        """For data.json: a folder, or seqio:NAME."""

    @property
    def fingerprint(self) -> str:
        """sha256, hex: two that differ in what is read have different ones."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def tokenizer(self) -> Tokenizer: ...


def open_data(data: DataConfig) -> Store | SeqioMixture:
    """The Task or Mixture or the store that `data` names, or the default corpus, prepared if it is not yet. Raises UserError."""
    if data.seqio_mixture:
        return open_mixture(data)
    return open_store(data.store or default_store(data))


def train_batches(source: Source, data: DataConfig, train: TrainConfig) -> TrainBatches | SeqioTrainBatches:
    """Raises ConfigError where the packing does not fit, UserError where there is not one sequence."""
    return (SeqioTrainBatches if isinstance(source, SeqioMixture) else TrainBatches)(source, data, train)


def validation_batches(
    source: Source, data: DataConfig, train: TrainConfig
) -> ValidationBatches | SeqioValidationBatches:
    """Raises as `train_batches`."""
    return (SeqioValidationBatches if isinstance(source, SeqioMixture) else ValidationBatches)(source, data, train)


def check_vocabulary(source: Source, model: ModelConfig) -> None:
    """Raises ConfigError where the model cannot predict every id of the source."""
    if source.vocab_size > model.vocab_size:
        raise ConfigError(
            f"model.vocab_size {model.vocab_size} is smaller than the {source.vocab_size} ids of the tokenizer of {source.name}; "
            f"set model.vocab_size to {source.vocab_size} or more."
        )


def check_unchanged(source: Source, fingerprint: str) -> None:
    """Raises UserError where the source is not the one that a run began with."""
    if source.fingerprint != fingerprint:
        raise UserError(
            f"{source.name} has fingerprint {source.fingerprint}, the run began with {fingerprint}: its content or packing "
            "changed. Put the old one back, or start a new run folder."
        )
