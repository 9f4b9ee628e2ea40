"""A trained model that a run can start from, and its form as a run directory."""

from pathlib import Path
from typing import Protocol

from paxlike.config import ModelConfig
from paxlike.data.tokenizer import Tokenizer, load_tokenizer
from paxlike.training.checkpoint_reader import CheckpointReader, StoredParam
from paxlike.training.init_parts import Sliceable
from paxlike.training.run_directory import read_config


class Source(Protocol):
    """A trained model whose parameters are read in parts."""

    @property
    def name(self) -> str:
        """In messages, such as `the run runs/base at step 100`."""

    @property
    def model(self) -> ModelConfig: ...

    @property
    def dtype(self) -> str:
        """Of the parameters as stored."""

    @property
    def tokenizer(self) -> Tokenizer | None:
        """None if the source has none."""

    @property
    def length(self) -> int | None:
        """Tokens per sequence in its training, if known."""

    def param(self, name: str, layer: int | None) -> Sliceable:
        """A parameter by its checkpoint name, or one layer of a stacked parameter."""


class RunSource:
    """A run directory."""

    def __init__(self, folder: Path):
        """Raises UserError if there is no run, or no readable checkpoint."""
        config = read_config(folder)
        self._stored = CheckpointReader(folder / "checkpoints")
        self.name = f"the run {folder} at step {self._stored.step}"
        self.model, self.dtype = config.model, config.precision.params
        self.tokenizer: Tokenizer | None = load_tokenizer(folder / "tokenizer")
        self.length: int | None = config.data.sequence_length

    def param(self, name: str, layer: int | None) -> StoredParam:
        return self._stored.part(name, layer)
