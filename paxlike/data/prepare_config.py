"""The settings of `paxlike data prepare`."""

from dataclasses import dataclass
from typing import Literal

from paxlike.config.validation import require
from paxlike.data.bad_lines import Errors, ReadOptions
from paxlike.data.chat.messages import Format


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
