"""Chat templates: where they come from, and conversations as token ids."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from paxlike.config import UserError
from paxlike.data.chat.encode import Encoded, encode_parts
from paxlike.data.chat.jinja_environment import compiled
from paxlike.data.chat.messages import Message
from paxlike.data.chat.named_templates import NAMED_TEMPLATES
from paxlike.data.chat.rendering import Part, TemplateError, parts_of, prompt_of
from paxlike.data.chat.special_tokens import SpecialTokens, special_tokens
from paxlike.data.huggingface_tokenizer import SETTINGS, HuggingFaceTokenizer
from paxlike.data.store import TEMPLATE_FILE
from paxlike.data.tokenizer import Tokenizer

_PROBE = [
    Message("user", "What is 1 + 1?", False),
    Message("assistant", "It is 2.", True),
    Message("user", "Thanks.", False),
    Message("assistant", "You are welcome.", True),
]


@dataclass(frozen=True)
class ChatTemplate:
    """A Jinja template for the conversations of a tokenizer."""

    name: str
    """For messages and the manifest: a name, or the file that it comes from."""
    source: str
    tokenizer: Tokenizer

    @functools.cached_property
    def _specials(self) -> SpecialTokens:
        return special_tokens(self.tokenizer)

    def parts(self, messages: Sequence[Message]) -> list[Part]:
        """The conversation with what is predicted. Raises TemplateError."""
        return parts_of(messages, self._render, self._specials)

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """The ids that the assistant's next turn follows. Raises TemplateError."""
        return self.encode(prompt_of(messages, self._render, self._specials)).ids.tolist()

    def encode(self, parts: Sequence[Part]) -> Encoded:
        (found,) = encode_parts(self.tokenizer, [parts])
        return found

    @functools.cached_property
    def end_of_turn(self) -> int:
        """The id that ends a turn of the assistant. Raises UserError for an unusable template."""
        try:
            learned = [part for part in self.parts(_PROBE) if part.special and part.predicted]
        except TemplateError as error:
            raise UserError(
                f"the chat template {self.name} cannot be used with this tokenizer: {error}. "
                f"Choose another one with --template: {', '.join(NAMED_TEMPLATES)}, or a file."
            ) from None
        last = learned[-1].special
        assert last
        return last.id

    @functools.cached_property
    def stops(self) -> tuple[int, ...]:
        """The ids that end an answer: that of the turn, if it can be determined, and of a
        document.
        """
        try:
            return (self.end_of_turn, self.tokenizer.eod)
        except UserError:
            return (self.tokenizer.eod,)

    def _render(self, messages: Sequence[dict], prompt: bool) -> str:
        try:
            return compiled(self.source).render(
                messages=messages,
                tools=None,
                documents=None,
                add_generation_prompt=prompt,
                **self._specials.variables,
            )
        except Exception as error:  # a template may raise anything
            raise TemplateError(
                f"the template raises {type(error).__name__}: {' '.join(str(error).split())[:200]}"
            ) from None


def chat_template(
    tokenizer: Tokenizer, choice: str = "", folder: Path | None = None
) -> ChatTemplate | None:
    """The template that `choice` names: one of `NAMED_TEMPLATES`, or a file. Without a choice, that
    of the tokenizer: chat_template.jinja in `folder`, or in tokenizer_config.json.

    Returns None if there is none. Raises UserError if it cannot be used with the tokenizer.
    """
    template = found_template(tokenizer, choice, folder)
    if template is not None:
        _ = template.end_of_turn  # raises
    return template


def found_template(
    tokenizer: Tokenizer, choice: str = "", folder: Path | None = None
) -> ChatTemplate | None:
    """As `chat_template`, without a check: a template that generates need not learn."""
    found: tuple[str, str] | None = None
    if choice in NAMED_TEMPLATES:
        found = choice, NAMED_TEMPLATES[choice]
    elif choice:
        found = choice, _read(Path(choice).expanduser())
    elif folder is not None and (folder / TEMPLATE_FILE).is_file():
        found = str(folder / TEMPLATE_FILE), _read(folder / TEMPLATE_FILE)
    elif isinstance(tokenizer, HuggingFaceTokenizer) and tokenizer.chat_template:
        found = str(folder / SETTINGS) if folder else SETTINGS, tokenizer.chat_template
    if found is None:
        return None
    return ChatTemplate(*found, tokenizer)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"the chat template {path} cannot be read: {reason}. Name a Jinja file, or one of "
            f"{', '.join(NAMED_TEMPLATES)}."
        ) from None
