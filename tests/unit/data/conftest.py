"""What the tests of `data/` share: texts that are easy to lose something of, and small stores."""

from pathlib import Path

import numpy as np
import pytest

from paxlike.data.prepare import PrepareConfig, prepare
from paxlike.data.tokenizer import train_sentencepiece

AWKWARD = (
    "",
    " ",
    "\n",
    "a  b   c    d ",
    "\tif x:\r\n\t\treturn 1234567\r\n\r\n    # indent\n",
    "nul \x00 bell \x07 escape \x1b delete \x7f",
    "\U0001f600 family \U0001f468\u200d\U0001f469\u200d\U0001f467 e\u0301 \ufb01 \u2460 \u00a0 "
    "\u3000 \u2028 \ufeff",
    "\u2581\u2581 meta \u2581 and a space \u2581",
    "\u2585 \ufffd \ufffe \U0010ffff",
    "<unk> <s></s> <pad> <0x41> \u2047",
    "日本語の文章には空白がありません。",
)


def random_texts(count: int, seed: int = 0) -> list[str]:
    """Texts of characters that tokenizers like to change, mixed with any others."""
    rng = np.random.default_rng(seed)
    likely = [
        *" \t\r\n\u2581\u2585\x00\x01",
        "  ",
        "\r\n",
        "ab",
        "12",
        "\u00a0",
        "e\u0301",
        "\U0001f600",
        "def ",
    ]
    texts = []
    for _ in range(count):
        anything = rng.integers(1, 0x110000, 40)
        pool = likely + [chr(c) for c in anything if not 0xD800 <= c < 0xE000]
        texts.append("".join(pool[i] for i in rng.integers(0, len(pool), rng.integers(1, 30))))
    return texts


def source_text(number: int, lines: int = 40) -> str:
    """A text that looks like a program, different for each number."""
    rng = np.random.default_rng(number)
    words = [
        "def",
        "return",
        "value",
        "index",
        "for",
        "in",
        "range",
        "print",
        "self",
        "name",
        "=",
        "+",
        "(x)",
        "[i]",
    ]
    body = "".join(
        "    " * rng.integers(0, 3)
        + " ".join(words[i] for i in rng.integers(0, len(words), rng.integers(1, 9)))
        + "\n"
        for _ in range(lines)
    )
    return f"# file {number}\n{body}"


@pytest.fixture(scope="session")
def sentencepiece_tokenizer():
    return train_sentencepiece([source_text(n) for n in range(30)], 400)


@pytest.fixture
def text_folder(tmp_path) -> Path:
    """Twelve text files of about 1 kB."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(12):
        (folder / f"{number:02}.txt").write_text(source_text(number), newline="")
    return folder


@pytest.fixture
def make_store(tmp_path, text_folder):
    """make_store(name, **PrepareConfig fields): a store of `text_folder`, of bytes unless told
    otherwise.
    """

    def make(name: str = "store", **fields):
        values = {
            "input": (f"{text_folder}/*.txt",),
            "tokenizer": "bytes",
            "validation_fraction": 0.2,
            **fields,
        }
        return prepare(PrepareConfig(output=str(tmp_path / name), **values))

    return make
