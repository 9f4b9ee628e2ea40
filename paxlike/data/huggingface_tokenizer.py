"""Any tokenizer.json, through the library `tokenizers`: byte-level BPE, SentencePiece BPE, Unigram.

Its own files define the special and added tokens, the token that ends a document (`eos_token`), and
the tokens that begin a text, such as Llama's `<|begin_of_text|>`.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from paxlike.config import UserError
from paxlike.data.lossless import is_lossless

DEFINITION, SETTINGS = "tokenizer.huggingface.json", "tokenizer_config.json"
"""Names of the files in a store or run: the tokenizer.json, and the settings beside it."""
_END_TOKENS = ("</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>", "<|END_OF_TURN_TOKEN|>")


class HuggingFaceTokenizer:
    """A tokenizer.json and the tokenizer_config.json beside it.

    Args:
      definition, settings: the contents of the two files. settings may be `{}`.
      name: the origin, for error messages.
      eod: the id that ends a document, if the files do not say it.

    Raises UserError if the files are not valid or do not say which token ends a document.
    """

    kind = "huggingface"

    def __init__(
        self, definition: bytes, settings: bytes, name: str = "tokenizer.json", eod: int = -1
    ):
        import tokenizers

        self._definition, self._settings = definition, settings
        self._values: dict = {}
        try:
            self._tokenizer = tokenizers.Tokenizer.from_buffer(definition)
            values = json.loads(settings)
            if not isinstance(values, dict):
                raise ValueError(f"{SETTINGS} is not a JSON object")
            self._values = values
        except Exception as error:  # the library raises Exception itself
            raise UserError(f"{name} cannot be read: {error}.") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        # Text that looks like a special token stays text.
        self._tokenizer.encode_special_tokens = True
        self.vocab_size: int = 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values())
        self.eod: int = eod if eod >= 0 else self._end(values, name)
        self.prefix: tuple[int, ...] = self._begin(values)
        self.lossless: bool = is_lossless(self)

    def _id(self, token: object) -> int | None:
        """The id of a token, which tokenizer_config.json names by text or as an object."""
        text = token.get("content") if isinstance(token, dict) else token
        return self._tokenizer.token_to_id(text) if isinstance(text, str) else None

    def _end(self, settings: dict, name: str) -> int:
        found = self._id(settings.get("eos_token"))
        if found is None:
            known = [self._id(token) for token in _END_TOKENS]
            ids = [id_ for id_ in known if id_ is not None]
            if len(ids) != 1:
                raise UserError(
                    f"{name} does not say which token ends a document: give the folder that also "
                    f"has {SETTINGS} with an eos_token that is in the vocabulary."
                )
            (found,) = ids
        return found

    def _begin(self, settings: dict) -> tuple[int, ...]:
        """The ids that the tokenizer puts before a text."""
        if settings.get("add_bos_token") is False:
            return ()
        plain = self._tokenizer.encode("a", add_special_tokens=False).ids
        whole = self._tokenizer.encode("a", add_special_tokens=True).ids
        for begin in range(len(whole)):
            if whole[begin : begin + len(plain)] == plain:
                prefix = tuple(whole[:begin])
                break
        else:
            prefix = ()
        bos = self._id(settings.get("bos_token"))
        if not prefix and settings.get("add_bos_token") and bos is not None:
            return (bos,)
        return prefix

    def encode(self, text: str) -> np.ndarray:
        """The ids of `text`, int32, without `prefix`."""
        return np.array(self._tokenizer.encode(text, add_special_tokens=False).ids, np.int32)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """`encode` of every text, on all cores."""
        found = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(one.ids, np.int32) for one in found]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`, without special ids. Bytes that are not UTF-8 become U+FFFD."""
        ids = np.asarray(ids, np.int64)
        known = ids[(ids >= 0) & (ids < self.vocab_size)]
        return self._tokenizer.decode(known.tolist(), skip_special_tokens=True)

    @property
    def special_tokens(self) -> list[tuple[str, int, bool, bool]]:
        """(text, id, whether whitespace before it belongs to it, and after it) of each."""
        added = self._tokenizer.get_added_tokens_decoder()
        return [
            (token.content, id_, token.lstrip, token.rstrip)
            for id_, token in added.items()
            if token.special
        ]

    @property
    def named_tokens(self) -> dict[str, str]:
        """The texts of bos_token, eos_token and so on in tokenizer_config.json."""
        found = {}
        for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"):
            token = self._values.get(f"{name}_token")
            text = token.get("content") if isinstance(token, dict) else token
            if isinstance(text, str):
                found[f"{name}_token"] = text
        return found

    @property
    def chat_template(self) -> str | None:
        """The Jinja source in tokenizer_config.json; of several named ones, `default`."""
        found = self._values.get("chat_template")
        if isinstance(found, list):
            pairs = [one for one in found if isinstance(one, dict)]
            found = {one.get("name"): one.get("template") for one in pairs}.get("default")
        return found if isinstance(found, str) and found.strip() else None

    @property
    def files(self) -> dict[str, bytes]:
        """The contents of tokenizer.json and tokenizer_config.json."""
        return {"tokenizer.json": self._definition, SETTINGS: self._settings}

    def save(self, folder: Path) -> list[str]:
        """Writes the files to `folder`; returns their names."""
        (folder / DEFINITION).write_bytes(self._definition)
        (folder / SETTINGS).write_bytes(self._settings)
        description = {"kind": self.kind, "sha256": self._digest(), "eod": self.eod}
        (folder / "tokenizer.json").write_text(json.dumps(description, indent=2) + "\n")
        return [DEFINITION, SETTINGS, "tokenizer.json"]

    def _digest(self) -> str:
        return digest(self._definition, self._settings)


def digest(definition: bytes, settings: bytes) -> str:
    """sha256, hex, of both files."""
    return hashlib.sha256(definition + b"\0" + settings).hexdigest()


def load_huggingface(path: Path) -> HuggingFaceTokenizer:
    """The tokenizer of a folder, or of a tokenizer.json and the settings beside it.

    Raises UserError if there is none, or it cannot be used.
    """
    definition = path / "tokenizer.json" if path.is_dir() else path
    settings = definition.parent / SETTINGS
    try:
        content = definition.read_bytes()
        values = settings.read_bytes() if settings.is_file() else b"{}"
    except OSError as error:
        raise UserError(
            f"the tokenizer {definition} cannot be read: {error.strerror}. Give a tokenizer.json, "
            "or a folder that has one."
        ) from error
    return HuggingFaceTokenizer(content, values, str(definition))
