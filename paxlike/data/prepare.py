"""`paxlike data prepare`: makes a token store from text files, or from conversations.

The tokens of all documents are written to one file first (`partial.py`). Then, with the hash of
every document known, they are distributed to the training and the validation split.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from paxlike.config import UserError
from paxlike.config.validation import require
from paxlike.data import tokenizer as tokenizers
from paxlike.data import writer
from paxlike.data.bad_lines import BadLineCount, Errors, ReadOptions, summary
from paxlike.data.chat.messages import Format
from paxlike.data.chat.reader import ChatEncoder, chat_options, chat_reader, check_files
from paxlike.data.chat.template import ChatTemplate
from paxlike.data.chat.write import write_conversations
from paxlike.data.huggingface_tokenizer import load_huggingface
from paxlike.data.input_files import find_files
from paxlike.data.location import in_bucket
from paxlike.data.manifest import FORMAT, FileRecord, Manifest, SplitCounts, write_manifest
from paxlike.data.partial import Partial, partial_work
from paxlike.data.progress import say
from paxlike.data.store import TEMPLATE_FILE, Store, open_store
from paxlike.data.tokenize_files import Encoder, sample_text, tokenize_files
from paxlike.files import check_new, new_folder


@dataclass(frozen=True)
class PrepareConfig:
    """Makes a token store for training from text files or conversations: tokenizer, splits,
    manifest.
    """

    input: tuple[str, ...]
    """Text files: names, patterns ('texts/**/*.txt') or directories, on disk or in a bucket
    (gs://, s3://). A plain text file is one document; .jsonl, .ndjson and .json files have one JSON
    object per line, .csv files a header and one document per row. Each may be compressed (.gz,
    .bz2, .xz, .zst). Parquet and Arrow files, and directories that `datasets.save_to_disk` wrote,
    have one document per row. The text must be UTF-8."""
    output: str
    """Directory to write the token store to. It must not exist."""
    field: str = ""
    """JSONL field, or column of a table, that holds the document or the turns. Dots separate the
    names of nested fields. Default: `text`, `messages` or `conversations`, as --format says.
    """
    tokenizer: str = "sentencepiece"
    """`bytes`, `sentencepiece` (trains a model on the text, unless `tokenizer_model` names one), or
    the path of a tokenizer.json, of a Hugging Face folder that has one, of a run or a store (their
    tokenizer), or of a SentencePiece .model file.
    """
    tokenizer_model: str = ""
    """An existing SentencePiece .model file."""
    tokenizer_vocab: int = 32_000
    """Vocabulary size of the SentencePiece model to train (PaLM: 256,000)."""
    tokenizer_sample: int = 16_000_000
    """Bytes of text, from all files, that the SentencePiece model is trained on."""
    packing: Literal["split", "whole"] | None = None
    """split: documents are concatenated and cut into sequences of any length when they are read
    (PaLM). whole: each document is packed into one sequence of `sequence_length`; longer documents
    are cut, longer conversations lose their end. Default: split; whole for conversations.
    """
    sequence_length: int = 0
    """Tokens of a sequence, for packing whole."""
    validation_fraction: float = 0.01
    """Fraction of the documents used for validation, chosen by a hash of their content."""
    deduplicate: bool = False
    """Keep only the first of several equal documents."""
    min_bytes: int = 0
    """Drop documents whose text has fewer bytes."""
    max_bytes: int = 0
    """Drop documents whose text has more bytes. 0: keep all."""
    workers: int = 0
    """Threads. 0: one per core."""
    errors: Errors = "strict"
    """Bytes that are not UTF-8. strict: fail and report their place. replace: use U+FFFD."""
    skip_bad_lines: bool = False
    """Skip JSONL lines and CSV rows without a readable document (broken JSON or CSV, missing field,
    null or another type, bytes that are not UTF-8) instead of failing. The manifest lists how many
    were skipped, by kind, and where the first ones are."""
    format: Format = "text"
    """text, or how a record holds a conversation, of which the assistant's turns are learned.
    messages: a list of {role, content}. sharegpt: `conversations`, a list of {from, value}. alpaca:
    instruction, input and output. prompt-completion: two texts, or two lists of messages."""
    template: str = ""
    """Chat template of conversations: chatml, llama3, plain, or a Jinja file. Default: the
    tokenizer's own. Texts of format prompt-completion are joined without one by default."""

    def __post_init__(self):
        require(bool(self.input), "input is empty; name text files or patterns with --input.")
        require(bool(self.output), "output is empty; name the directory to write with --output.")
        self._check_format()
        require(
            (self.packed == "whole") == (self.sequence_length > 0),
            f"sequence_length is {self.sequence_length} for packing {self.packed!r}; packing "
            "whole needs a --sequence-length above 0, packing split none: it is read at any length."
            + ("" if self.format == "text" else " Conversations are packed whole."),
        )
        require(
            self.tokenizer == "sentencepiece" or not self.tokenizer_model,
            f"tokenizer_model {self.tokenizer_model} is a SentencePiece model, tokenizer is "
            f"{self.tokenizer!r}; leave one of the two out.",
        )
        require(
            0 < self.validation_fraction < 1,
            f"validation_fraction is {self.validation_fraction}; it must be between 0 and 1.",
        )
        for name, least in (
            ("workers", 0), ("tokenizer_vocab", 1), ("tokenizer_sample", 1), ("min_bytes", 0),
            ("max_bytes", 0),
        ):  # fmt: skip
            value = getattr(self, name)
            require(value >= least, f"{name} is {value}; it must be {least} or more.")
        require(
            not self.max_bytes or self.min_bytes <= self.max_bytes,
            f"min_bytes {self.min_bytes} is above max_bytes {self.max_bytes}, so that no document "
            "is kept.",
        )

    def _check_format(self) -> None:
        if self.format == "text":
            require(
                not self.template,
                f"template {self.template} is for conversations; choose their --format.",
            )
            return
        require(
            self.packing != "split",
            f"packing is 'split'; conversations of format {self.format} are packed whole.",
        )
        require(
            not self.field or self.format in ("messages", "sharegpt"),
            f"field is {self.field!r}; the fields of format {self.format} are fixed.",
        )
        require(
            self.tokenizer != "sentencepiece" or bool(self.tokenizer_model),
            "no tokenizer is named; name the one of the model to fine-tune with --tokenizer.",
        )
        require(
            self.errors == "strict",
            "errors is 'replace'; it applies to texts only: use --skip-bad-lines.",
        )

    @property
    def packed(self) -> Literal["split", "whole"]:
        return self.packing or ("split" if self.format == "text" else "whole")

    @property
    def options(self) -> ReadOptions:
        """How texts are read."""
        return ReadOptions(self.field or "text", self.errors, self.skip_bad_lines)


def prepare(config: PrepareConfig) -> Store:
    """Writes the store and opens it.

    Raises UserError. If it fails or is interrupted, only tokenized text of a large corpus is left
    behind, which the same call resumes from (`partial.py`).
    """
    return prepare_files(find_files(config.input), config)


def prepare_files(files: list[Path], config: PrepareConfig) -> Store:
    """`prepare` for these files; `config.input` is used in messages only."""
    output, sizes = Path(config.output), [_size(path) for path in files]
    check_new(output)
    if not sum(sizes):
        raise _empty(files, config, {})
    if config.format != "text":
        check_files(files, config.format)
    with partial_work(output, _key(files, sizes, config)) as work, new_folder(output) as folder:
        tokenizer = _tokenizer_of(work, files, sizes, config)
        tokenizer_files = tokenizer.save(folder)
        encoder, template = _encoder(tokenizer, config)
        bad_lines = tokenize_files(files, sum(sizes), encoder, config.workers, work)
        if not (work.folder / "documents").stat().st_size:
            raise _empty(files, config, bad_lines)
        written = _write_splits(encoder.dtype, config, work.folder, folder)
        names = [*tokenizer_files, *_save_template(folder, template)]
        manifest = Manifest(
            format=FORMAT,
            tokenizer=tokenizer.kind,
            lossless=tokenizer.lossless,
            vocab_size=tokenizer.vocab_size,
            eod=tokenizer.eod,
            dtype=encoder.dtype.str,
            packing=config.packed,
            sequence_length=config.sequence_length,
            validation_fraction=config.validation_fraction,
            splits=written.splits,
            files=written.files | {name: writer.file_record(folder / name) for name in names},
            inputs=dict(zip(map(str, files), sizes, strict=True)),
            bad_lines=bad_lines,
            dropped=written.dropped,
            truncated=written.truncated,
            predicted=written.predicted,
            chat_template=template.name if template else "",
        )
        write_manifest(folder, manifest)
    _report(output, manifest)
    return open_store(output)


def _report(output: Path, manifest: Manifest) -> None:
    for split, counts in manifest.splits.items():
        predicted = manifest.predicted.get(split)
        learned = "" if predicted is None else f", {predicted:,} of them predicted"
        say(f"{output}: {split} {counts.documents:,} documents, {counts.tokens:,} tokens{learned}")
    if not manifest.splits["validation"].documents:
        say("note: the validation split is empty, because all documents are identical")
    if manifest.bad_lines:
        say(summary(manifest.bad_lines))
    for reason, count in manifest.dropped.items():
        say(f"dropped {count:,} documents: {reason.replace('_', ' ')}")
    if manifest.truncated:
        say(
            f"truncated {manifest.truncated:,} conversations to {manifest.sequence_length:,} tokens"
        )


def _key(files: list[Path], sizes: list[int], config: PrepareConfig) -> str:
    """Identifies what the tokens depend on: the files and the settings of reading them."""
    times = [getattr(path.stat(), "st_mtime_ns", None) for path in files]
    settings = [
        config.options.field, config.tokenizer, config.tokenizer_model, config.tokenizer_vocab,
        config.tokenizer_sample, config.errors, config.skip_bad_lines,
    ]  # fmt: skip
    if config.format != "text":
        settings += [config.format, config.field, config.template, _content(config.template)]
    values = [FORMAT, settings, *zip(map(str, files), sizes, times, strict=True)]
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def _content(template: str) -> str:
    """The content of a template that is a file."""
    path = Path(template).expanduser()
    return path.read_text(errors="replace") if template and path.is_file() else ""


def _encoder(
    tokenizer: tokenizers.Tokenizer, config: PrepareConfig
) -> tuple[Encoder | ChatEncoder, ChatTemplate | None]:
    """The encoder, and the template of conversations."""
    if config.format == "text":
        return Encoder(tokenizer, config.options), None
    folder = tokenizer_folder(config.tokenizer)
    reader = chat_reader(tokenizer, folder, config.format, config.field, config.template)
    options = chat_options(reader, config.skip_bad_lines)
    return ChatEncoder(tokenizer, options), reader.template


def _save_template(folder: Path, template: ChatTemplate | None) -> list[str]:
    """Writes the template; returns the names of the files written."""
    if template is None:
        return []
    (folder / TEMPLATE_FILE).write_text(template.source)
    return [TEMPLATE_FILE]


class _Written(NamedTuple):
    """What the manifest says of the splits."""

    splits: dict[str, SplitCounts]
    files: dict[str, FileRecord]
    dropped: dict[str, int]
    truncated: int = 0
    predicted: dict[str, int] = {}  # noqa: RUF012


def _tokenizer_of(
    work: Partial, files: list[Path], sizes: list[int], config: PrepareConfig
) -> tokenizers.Tokenizer:
    """The tokenizer of resumed work, or a new one."""
    saved = work.folder / "tokenizer"
    if work.journal.blocks:
        return tokenizers.load_tokenizer(saved)
    tokenizer = _tokenizer(files, sizes, config)
    saved.mkdir()
    tokenizer.save(saved)
    return tokenizer


def _write_splits(dtype: np.dtype, config: PrepareConfig, work: Path, folder: Path) -> _Written:
    """Distributes the documents tokenized in `work`."""
    documents: np.ndarray = np.memmap(work / "documents", writer.DOCUMENT, "r")
    kept, dropped = writer.keep(documents, config.deduplicate, config.min_bytes, config.max_bytes)
    count = len(documents) if kept is None else int(kept.sum())
    if not count:
        reasons = ", ".join(
            f"{count:,} {name.replace('_', ' ')}" for name, count in dropped.items()
        )
        raise UserError(
            f"no document is kept ({reasons}); change --min-bytes, --max-bytes or the input."
        )
    if config.format != "text":
        tokens = np.memmap(work / "tokens", dtype, "r")
        mask = np.memmap(work / "loss_mask", np.uint8, "r")
        data = writer.Tokenized(tokens, documents, mask, kept)
        splits, files, truncated, predicted, nothing = write_conversations(
            data, config.validation_fraction, folder, config.sequence_length
        )
        dropped |= {"nothing_predicted": nothing} if nothing else {}
        return _Written(splits, files, dropped, truncated, predicted)
    if len(documents) == 1:
        documents = writer.cut_in_two(documents, config.validation_fraction)
        kept = None
        say("note: the text is one document; its end is used for validation")
    data = writer.Tokenized(np.memmap(work / "tokens", dtype, "r"), documents, kept=kept)
    hashes = documents["hash"] if kept is None else documents["hash"][kept]
    threshold = writer.validation_threshold(hashes, config.validation_fraction)
    if config.packed == "split":
        splits, files = writer.write_streams(data, threshold, folder)
    else:
        splits, files = writer.write_rows(data, threshold, folder, config.sequence_length)
    return _Written(splits, files, dropped)


def _empty(
    files: list[Path], config: PrepareConfig, bad_lines: dict[str, BadLineCount]
) -> UserError:
    skipped = f" ({summary(bad_lines)})" if bad_lines else ""
    count = f"{len(files)} file{'' if len(files) == 1 else 's'}"
    return UserError(
        f"the corpus is empty: there is no text in the {count} matching "
        f"{' '.join(config.input)}{skipped}."
    )


def _size(path: Path) -> int:
    try:
        found = path.stat()
        return found.length if in_bucket(path) else found.st_size  # type: ignore[attr-defined]
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error


def _tokenizer(files: list[Path], sizes: list[int], config: PrepareConfig) -> tokenizers.Tokenizer:
    if config.tokenizer != "sentencepiece":
        return _noted(named_tokenizer(config.tokenizer), config.tokenizer)
    if not config.tokenizer_model:
        say(f"training a SentencePiece model with a vocabulary of {config.tokenizer_vocab}")
        texts = sample_text(files, sizes, config.tokenizer_sample, config.options)
        return tokenizers.train_sentencepiece(texts, config.tokenizer_vocab)
    model = config.tokenizer_model
    return _noted(tokenizers.load_sentencepiece(model), model)


def named_tokenizer(name: str) -> tokenizers.Tokenizer:
    """`bytes`, or the tokenizer of a tokenizer.json, a folder that has one, a .model file, a run or
    a store.

    Raises UserError if it cannot be read.
    """
    if name == "bytes":
        return tokenizers.BytesTokenizer()
    path = Path(name).expanduser()
    if path.suffix == ".model":
        return tokenizers.load_sentencepiece(path)
    folder = tokenizer_folder(name)
    if path.is_dir() and tokenizers.is_saved(folder):
        return tokenizers.load_tokenizer(folder)
    return load_huggingface(path)


def tokenizer_folder(name: str) -> Path:
    """The folder of a named tokenizer's files; of a run, that of its tokenizer."""
    path = Path(name).expanduser()
    if not path.is_dir():
        return path.parent
    return path / "tokenizer" if (path / "tokenizer" / "tokenizer.json").is_file() else path


def _noted(tokenizer: tokenizers.Tokenizer, name: str) -> tokenizers.Tokenizer:
    if not tokenizer.lossless:
        say(
            f"note: {name} does not reproduce every text exactly: it changes whitespace or "
            "characters that it lacks"
        )
    return tokenizer
