"""seqio Tasks and Mixtures as documents of token ids.

A document is an example's `inputs`, if any, its `targets`, and the end-of-document id unless it
ends with it. Only `targets` are predicted. seqio's `DecoderFeatureConverter` concatenates both in
the same way.
"""

import functools
import hashlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from paxlike.config import DataConfig, UserError
from paxlike.data.seqio_source import libraries, load_module, registered
from paxlike.data.seqio_vocabulary import tokenizer_of
from paxlike.data.tokenizer import Tokenizer
from paxlike.data.writer import validation_threshold

HELD_OUT = 0.01
"""Fraction of documents held out for validation if there is no split `validation`."""
_SEEN_FIRST = 1000


class Document(NamedTuple):
    """Letters: n tokens."""

    tokens: np.ndarray
    """int32 [n]; the last one is the end-of-document id."""
    learned: np.ndarray
    """bool [n]: whether the token is predicted."""

    @property
    def hash(self) -> int:
        """64-bit hash of the content."""
        content = hashlib.blake2b(self.tokens.tobytes() + self.learned.tobytes(), digest_size=8)
        return int.from_bytes(content.digest(), "little")


@dataclass(frozen=True)
class SeqioMixture:
    """An opened Task or Mixture (see `open_mixture`)."""

    mixture: str
    provider: Any
    """The `seqio.Task` or `seqio.Mixture`."""
    length: int | None
    """Length in tokens of `inputs` and of `targets` that preprocessors get."""
    tokenizer: Tokenizer
    vocab_size: int
    """Size of its vocabulary, including extra ids without text."""
    held_out: int = 0
    """Training documents with a smaller hash are held out. 0: there is a split `validation`."""
    fingerprint: str = ""
    """sha256, hex, of its name, vocabulary and first documents, since reading all would take too
    long.
    """

    @property
    def name(self) -> str:
        return f"the seqio mixture {self.mixture}"

    chat_template = None

    @property
    def location(self) -> str:
        return f"seqio:{self.mixture}"

    def training(self, seed: int) -> Iterator[Document]:
        """Endless, shuffled by the seed as the tasks specify, mixed at their rates."""
        for document in self.documents("train", seed, shuffle=self._shuffles(), epochs=None):
            if not self.held_out or document.hash >= self.held_out:
                yield document

    def validation(self) -> Iterator[Document]:
        """Each validation document once, in a fixed order."""
        if not self.held_out:
            yield from self.documents("validation")
            return
        for document in self.documents("train"):
            if document.hash < self.held_out:
                yield document

    def documents(
        self,
        split: str,
        seed: int = 0,
        shuffle: bool = False,
        epochs: int | None = 1,
        sampled: bool = False,
    ) -> Iterator[Document]:
        """The documents of a split, `epochs` times (None: endless).

        A Mixture samples its tasks at its rates if it is endless or `sampled` is set; in the latter
        case it ends with the first exhausted task. Otherwise each document of every task appears
        once. Raises UserError if there is no such split, or an example cannot be read or is not
        suitable for a decoder.
        """
        _, tensorflow = libraries()
        # Also seeds preprocessors that sample without their own seed.
        tensorflow.random.set_seed(seed)
        with self._said():
            dataset = self._dataset(split, seed, shuffle, epochs, sampled)
            examples = dataset.as_numpy_iterator()
        while True:
            with self._said():
                example = next(examples, None)
            if example is None:
                return
            yield self._document(example)

    def _dataset(self, split: str, seed: int, shuffle: bool, epochs: int | None, sampled: bool):
        seqio, tensorflow = libraries()
        tasks = [task for task in seqio.get_subtasks(self.provider) if split in task.splits]
        if not tasks:
            raise UserError(
                f"{self.name} has no split {split!r}; there are {sorted(self.provider.splits)}."
            )
        names = list(self.provider.output_features)
        settings = {
            "sequence_length": self.length and dict.fromkeys(names, self.length),
            "split": split,
            "shuffle": shuffle,
            "seed": seed,
            "num_epochs": epochs,
            "use_cached": any(task.requires_caching for task in tasks),
            "trim_output_features": False,
        }
        if sampled or epochs is None:
            datasets = [self.provider.get_dataset(**settings)]
        else:
            datasets = [task.get_dataset(**settings) for task in tasks]
        datasets = [
            dataset.map(lambda example: {name: example[name] for name in names})
            for dataset in datasets
        ]
        mixed = datasets[0]
        if len(datasets) > 1:
            mixed = tensorflow.data.Dataset.sample_from_datasets(
                datasets, seed=seed, stop_on_empty_dataset=False
            )
        options = tensorflow.data.Options()
        options.deterministic = True
        return mixed.with_options(options)

    def _shuffles(self) -> bool:
        tasks = libraries()[0].get_subtasks(self.provider)
        return all(
            task.shuffle_buffer_size is not None or task.source.performs_internal_shuffling
            for task in tasks
        )

    def _document(self, example: dict) -> Document:
        parts = [
            _ids(self.name, name, example[name])
            for name in ("inputs", "targets")
            if name in example
        ]
        tokens, learned = np.concatenate(parts), np.ones(sum(map(len, parts)), bool)
        learned[: sum(map(len, parts[:-1]))] = False
        if not len(tokens) or tokens[-1] != self.tokenizer.eod:
            tokens, learned = (
                np.append(tokens, np.int32(self.tokenizer.eod)),
                np.append(learned, True),
            )
        if tokens.min() < 0 or tokens.max() >= self.vocab_size:
            raise UserError(
                f"{self.name} has an example with ids from {tokens.min()} to {tokens.max()}, but "
                "its vocabulary has "
                f"{self.vocab_size}; tokenize it with the vocabulary of its output_features."
            )
        return Document(tokens, learned)

    def _said(self):
        return _Said(self.name)


class _Said:
    """Turns errors of user code or seqio into a UserError that names the mixture."""

    def __init__(self, name: str):
        self._name = name

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind, error, traceback) -> None:
        if isinstance(error, Exception) and not isinstance(error, UserError | StopIteration):
            reason = " ".join(str(error).split())[:600]
            raise UserError(
                f"{self._name} cannot be read: {type(error).__name__}: {reason}"
            ) from error


def _ids(mixture: str, name: str, values: object) -> np.ndarray:
    array = np.asarray(values) if isinstance(values, np.ndarray) else None
    if array is None or array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        found = type(values).__name__ if array is None else f"{array.dtype} of shape {array.shape}"
        raise UserError(
            f"{mixture} has {name!r} that is not a row of token ids ({found}); end its "
            "preprocessors with seqio.preprocessors.tokenize."
        )
    return array.astype(np.int32)


def named(mixture: str, module: str, length: int | None) -> SeqioMixture:
    """Opens a Task or Mixture after loading the module (empty: none), without reading it.

    Raises UserError if it is not suitable for a decoder.
    """
    libraries()
    if module:
        load_module(Path(module).absolute())
    provider = registered(mixture)
    features = provider.output_features
    if "targets" not in features or set(features) - {"inputs", "targets"}:
        raise UserError(
            f"the seqio mixture {mixture} has the output features {sorted(features)}; a decoder "
            "needs `targets` and optionally `inputs`: rename the features and remove the others."
        )
    vocabularies = [feature.vocabulary for feature in features.values()]
    if any(vocabulary != vocabularies[0] for vocabulary in vocabularies):
        raise UserError(
            f"the seqio mixture {mixture} has another vocabulary for `inputs` than for `targets`; "
            "a decoder needs one vocabulary for both."
        )
    return SeqioMixture(
        mixture, provider, length, tokenizer_of(vocabularies[0]), vocabularies[0].vocab_size
    )


@functools.lru_cache(1)
def open_mixture(data: DataConfig) -> SeqioMixture:
    """The Task or Mixture that `data` names, with its first documents read.

    If it has no split `validation`, about 1 % of the documents are held out, selected by a hash of
    their content. Raises UserError if seqio is not installed, the name is not registered, or the
    mixture cannot be read.
    """
    opened = named(data.seqio_mixture, data.module, data.sequence_length)
    first = list(itertools.islice(opened.documents("train"), _SEEN_FIRST))
    if not first:
        raise UserError(f"{opened.name} has no example in its split 'train'.")
    held_out = 0
    if "validation" not in opened.provider.splits:
        hashes = np.array([document.hash for document in first], np.uint64)
        held_out = validation_threshold(hashes, HELD_OUT)
    content = hashlib.sha256(json.dumps([data.seqio_mixture, opened.vocab_size, held_out]).encode())
    for document in first:
        content.update(document.hash.to_bytes(8, "little"))
    return SeqioMixture(
        opened.mixture,
        opened.provider,
        opened.length,
        opened.tokenizer,
        opened.vocab_size,
        held_out,
        content.hexdigest(),
    )
