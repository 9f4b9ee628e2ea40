"""`paxlike data prepare`: makes a token store from text files, or from conversations.

The tokens of all documents are written to one file first (`partial.py`). Then, with the hash of
every document known, they are distributed to the training and the validation split.
"""

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from paxlike.config import UserError
from paxlike.data import tokenizer as tokenizers
from paxlike.data import writer
from paxlike.data.bad_lines import BadLineCount, summary
from paxlike.data.chat.reader import ChatEncoder, chat_options, chat_reader, check_files
from paxlike.data.chat.template import ChatTemplate
from paxlike.data.chat.write import write_conversations
from paxlike.data.huggingface_tokenizer import SETTINGS, load_huggingface
from paxlike.data.input_files import find_files
from paxlike.data.location import in_bucket
from paxlike.data.manifest import FORMAT, FileRecord, Manifest, SplitCounts, write_manifest
from paxlike.data.partial import Partial, partial_work
from paxlike.data.prepare_config import PrepareConfig
from paxlike.data.progress import say
from paxlike.data.store import TEMPLATE_FILE, Store, open_store
from paxlike.data.tokenize_files import Encoder, sample_text, tokenize_files
from paxlike.files import check_new, new_folder


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
        beside = tokenizer_folder(config.tokenizer)
        sources = [config.template, str(beside / TEMPLATE_FILE), str(beside / SETTINGS)]
        settings += [config.format, config.field, config.template, *map(_content, sources)]
    values = [FORMAT, settings, *zip(map(str, files), sizes, times, strict=True)]
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def _content(name: str) -> str:
    """The content of a file that a template may come from."""
    path = Path(name).expanduser()
    return path.read_text(errors="replace") if name and path.is_file() else ""


def _encoder(
    tokenizer: tokenizers.Tokenizer, config: PrepareConfig
) -> tuple[Encoder | ChatEncoder, ChatTemplate | None]:
    """The encoder, and the template of conversations."""
    if config.format == "text":
        return Encoder(tokenizer, config.options), None
    folder = tokenizer_folder(config.tokenizer)
    reader = chat_reader(tokenizer, folder, config.format, config.field, config.template)
    options = chat_options(reader, config.skip_bad_lines)
    return ChatEncoder(tokenizer, options), None if reader.joined else reader.template


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
