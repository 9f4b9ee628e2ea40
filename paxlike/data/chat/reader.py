"""Reads records of fine-tuning data as rendered conversations, and encodes them."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from paxlike.config import UserError
from paxlike.data import writer
from paxlike.data.bad_lines import BadLine, BadLineError, ReadOptions
from paxlike.data.blocks import Piece
from paxlike.data.chat.encode import encode_parts
from paxlike.data.chat.messages import Format, Message, columns, is_texts, read_messages
from paxlike.data.chat.named_templates import NAMED_TEMPLATES
from paxlike.data.chat.rendering import Part, TemplateError
from paxlike.data.chat.special_tokens import Special
from paxlike.data.chat.template import ChatTemplate, chat_template, found_template
from paxlike.data.corpus import Block
from paxlike.data.input_files import file_format
from paxlike.data.tokenize_files import Encoded
from paxlike.data.tokenizer import Tokenizer


@dataclass(frozen=True)
class ChatReader:
    """Turns a record into a piece with its rendered parts.

    template: None for records whose prompt and completion are joined without one.
    """

    tokenizer: Tokenizer
    template: ChatTemplate | None
    format: Format
    field: str
    joined: bool
    """Whether texts of format prompt-completion are joined without a template."""

    def __call__(self, record: dict) -> Piece:
        """Raises BadLineError for a record without a conversation that can be rendered."""
        messages = read_messages(record, self.format, self.field)
        if self.joined and is_texts(record):
            parts = self._joined(messages)
        elif self.template is None:
            raise BadLineError(
                "template",
                "the prompt and the completion are messages, and tokenizer_config.json has no "
                "chat_template",
            )
        else:
            try:
                parts = self.template.parts(messages)
            except TemplateError as error:
                raise BadLineError("template", str(error)) from None
        content = json.dumps([list(message) for message in messages]).encode()
        digest = hashlib.blake2b(content, digest_size=8).digest()
        text = "".join(part.text for part in parts if not part.special)
        return Piece(text, len(text.encode()), int.from_bytes(digest, "little"), True, tuple(parts))

    def _joined(self, messages: Sequence[Message]) -> list[Part]:
        prompt, completion = messages
        start = [Part("", Special(id_), False) for id_ in self.tokenizer.prefix]
        return [
            *start,
            Part(prompt.content, None, False),
            Part(completion.content, None, True),
            Part("", Special(self.tokenizer.eod), True),
        ]


def chat_reader(
    tokenizer: Tokenizer, folder: Path | None, format: Format, field: str, choice: str
) -> ChatReader:
    """The reader of a format. choice: the template that the user names.

    folder: where the tokenizer comes from. Raises UserError if there is no usable template.
    """
    joined = format == "prompt-completion" and not choice
    if joined:
        # Only records with messages need one, and the store keeps that of the tokenizer.
        return ChatReader(tokenizer, found_template(tokenizer), format, field, joined)
    template = chat_template(tokenizer, choice, folder)
    if template is None:
        raise UserError(
            f"the tokenizer has no chat template, which --format {format} needs. Choose one with "
            f"--template: {', '.join(NAMED_TEMPLATES)}, or a Jinja file."
        )
    return ChatReader(tokenizer, template, format, field, joined)


def chat_options(reader: ChatReader, skip_bad_lines: bool) -> ReadOptions:
    """How conversations are read from blocks."""
    wanted = columns(reader.format, reader.field)
    return ReadOptions(wanted[0][0], "strict", skip_bad_lines, reader, wanted)


def check_files(files: Sequence[Path], format: Format) -> None:
    """Raises UserError for a file that cannot have conversations."""
    for path in files:
        if file_format(path).content not in ("jsonl", "parquet", "arrow"):
            raise UserError(
                f"{path} cannot have conversations of format {format}: they are read from .jsonl, "
                ".ndjson, .json, .parquet, .arrow and .feather files. Convert it, or exclude it "
                "from --input."
            )


@dataclass(frozen=True)
class ChatEncoder:
    """Turns blocks of conversations into tokens and their loss mask."""

    tokenizer: Tokenizer
    options: ReadOptions

    @property
    def dtype(self) -> np.dtype:
        """How token ids are stored."""
        return np.dtype("<u2" if self.tokenizer.vocab_size <= 1 << 16 else "<u4")

    def __call__(self, block: Block) -> Encoded:
        found = list(block.pieces(self.options))
        pieces = [piece for piece in found if not isinstance(piece, BadLine)]
        encoded = encode_parts(self.tokenizer, [piece.parts for piece in pieces])
        documents = [
            (piece.hash or 0, len(one.ids), piece.bytes)
            for piece, one in zip(pieces, encoded, strict=True)
        ]
        ids = [np.zeros(0, np.int32), *(one.ids for one in encoded)]
        masks = [np.zeros(0, np.uint8), *(one.predicted for one in encoded)]
        return Encoded(
            block.disk_bytes,
            np.concatenate(ids).astype(self.dtype),
            np.array([*documents, (0, 0, 0)], writer.DOCUMENT),
            [line for line in found if isinstance(line, BadLine)],
            np.concatenate(masks),
        )
