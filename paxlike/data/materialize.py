"""`paxlike data materialize`: a Task or Mixture of seqio into a token store, once; from there it is
read without TensorFlow.

The same module, Task or Mixture and flags give the same files, byte by byte.
"""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from paxlike.config import ConfigError, UserError
from paxlike.data import writer
from paxlike.data.manifest import FORMAT, Manifest, write_manifest
from paxlike.data.progress import counting, say
from paxlike.data.seqio_mixture import Document, SeqioMixture, named
from paxlike.data.store import Store, open_store
from paxlike.files import new_folder

_FLUSH = 4096


@dataclass(frozen=True)
class MaterializeConfig:
    """Writes a seqio Task or Mixture to a token store: its splits `train` and, if it exists,
    `validation`.
    """

    seqio_mixture: str
    """A registered Task or Mixture."""
    module: str
    """Python file that registers the Task or Mixture."""
    output: str
    """Directory to write the token store to. It must not exist."""
    examples: int = 0
    """Number of training examples; a shorter split is repeated. 0: a Task's examples once, a
    Mixture's at its rates until its first Task is exhausted.
    """
    packing: Literal["split", "whole"] = "split"
    """split: concatenate examples, and split them at any length during training (PaLM). whole: pack
    whole examples into sequences of `sequence_length`, and truncate longer ones.
    """
    sequence_length: int = 0
    """Tokens per sequence with packing whole, and the length of each feature that preprocessors
    get.
    """
    validation_fraction: float = 0.01
    """Fraction of examples to hold out, by a hash of their content, if there is no split
    `validation`.
    """
    seed: int = 0
    """Seed of a Mixture's sampling and of preprocessors that sample."""

    def __post_init__(self):
        def require(condition: bool, message: str) -> None:
            if not condition:
                raise ConfigError(message)

        require(bool(self.output), "output is empty; name the folder to write with --output.")
        require(
            self.packing == "split" or self.sequence_length > 0,
            f"sequence_length is {self.sequence_length}; packing whole needs a --sequence-length "
            "above 0.",
        )
        for name in ("examples", "sequence_length", "seed"):
            require(
                getattr(self, name) >= 0, f"{name} is {getattr(self, name)}; it must be 0 or more."
            )
        require(
            0 < self.validation_fraction < 1,
            f"validation_fraction is {self.validation_fraction}; it must be between 0 and 1.",
        )


def materialize(config: MaterializeConfig) -> Store:
    """Writes the store and opens it. Raises UserError; leaves no folder behind then, nor when
    interrupted.
    """
    output = Path(config.output)
    with new_folder(output) as folder:
        mixture = named(config.seqio_mixture, config.module, config.sequence_length or None)
        described = mixture.tokenizer.save(folder)
        dtype = np.dtype("<u2" if mixture.vocab_size <= 1 << 16 else "<u4")
        data, counts = _write_documents(mixture, config, dtype, folder)
        hashes = data.documents["hash"]
        with_split = "validation" in counts
        threshold = (
            1 if with_split else writer.validation_threshold(hashes, config.validation_fraction)
        )
        if config.packing == "split":
            splits, written = writer.write_streams(data, threshold, folder)
        else:
            splits, written = writer.write_rows(data, threshold, folder, config.sequence_length)
        for name in ("tokens", "documents", "loss_mask"):
            (folder / name).unlink()
        manifest = Manifest(
            format=FORMAT,
            tokenizer=mixture.tokenizer.kind,
            lossless=mixture.tokenizer.lossless,
            vocab_size=mixture.vocab_size,
            eod=mixture.tokenizer.eod,
            dtype=dtype.str,
            packing=config.packing,
            sequence_length=config.sequence_length if config.packing == "whole" else 0,
            validation_fraction=0.0 if with_split else config.validation_fraction,
            splits=splits,
            files=written | {name: writer.file_record(folder / name) for name in described},
            inputs={
                f"seqio:{config.seqio_mixture}/{split}": count for split, count in counts.items()
            },
        )
        write_manifest(folder, manifest)
    for split, written in splits.items():
        say(f"{output}: {split} {written.documents:,} documents, {written.tokens:,} tokens")
    return open_store(output)


def _write_documents(
    mixture: SeqioMixture, config: MaterializeConfig, dtype: np.dtype, folder: Path
) -> tuple[writer.Tokenized, dict[str, int]]:
    """All documents of both splits, in files of the folder; and how many each split has."""
    training = mixture.documents(
        "train", config.seed, epochs=None if config.examples else 1, sampled=True
    )
    sources: dict[str, Iterable[Document]] = {
        "train": itertools.islice(training, config.examples or None)
    }
    if "validation" in mixture.provider.splits:
        sources["validation"] = mixture.documents("validation", config.seed)
    counts, masked = {}, False
    with (
        (folder / "tokens").open("xb") as tokens,
        (folder / "documents").open("xb") as table,
        (folder / "loss_mask").open("xb") as mask,
        counting(f"reading {mixture.name}", "documents") as show,
    ):
        for split, source in sources.items():
            # Where there are two splits, the hash says which: `validation_threshold` is 1 then.
            given = {"train": 1, "validation": 0}[split] if len(sources) > 1 else None
            counts[split] = 0
            for documents in _some(source):
                tokens.write(
                    np.concatenate([document.tokens for document in documents]).astype(dtype).data
                )
                learned = np.concatenate([document.learned for document in documents])
                mask.write(learned.astype(np.uint8).data)
                masked = masked or not learned.all()
                table.write(_rows(documents, mixture, given).data)
                counts[split] += len(documents)
                show(sum(counts.values()))
            if not counts[split]:
                raise UserError(f"{mixture.name} has no example in its split {split!r}.")
    if counts["train"] < config.examples:
        raise UserError(
            f"{mixture.name} ended after {counts['train']:,} of {config.examples:,} examples."
        )
    mask_bytes = np.memmap(folder / "loss_mask", np.uint8, "r") if masked else None
    return writer.Tokenized(
        np.memmap(folder / "tokens", dtype, "r"),
        np.memmap(folder / "documents", writer.DOCUMENT, "r"),
        mask_bytes,
    ), counts


def _some(documents: Iterable[Document]) -> Iterable[list[Document]]:
    documents = iter(documents)
    while some := list(itertools.islice(documents, _FLUSH)):
        yield some


def _rows(documents: list[Document], mixture: SeqioMixture, given: int | None) -> np.ndarray:
    rows = np.zeros(len(documents), writer.DOCUMENT)
    for row, document in zip(rows, documents, strict=True):
        text = mixture.tokenizer.decode(document.tokens)
        row["hash"] = document.hash if given is None else given
        row["tokens"], row["bytes"] = len(document.tokens), len(text.encode())
    return rows
