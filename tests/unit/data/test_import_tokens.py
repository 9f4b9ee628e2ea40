"""Token files of nanoGPT, llm.c and Megatron-LM."""

import struct

import numpy as np
import pytest
from made_tokenizers import byte_level

from paxlike.config import UserError
from paxlike.data.import_tokens import ImportConfig, import_tokens

DOCUMENTS = [[5, 6, 7, 1], [8, 1], [9, 10, 11, 12, 1], [200, 1]]
"""Of the bytes tokenizer, whose end-of-document id is 1."""


def stored(store) -> list[list[int]]:
    found = []
    for split in ("train", "validation"):
        tokens = store.tokens(split)
        ends = np.flatnonzero(tokens == store.manifest.eod) + 1
        found += [part.tolist() for part in np.split(tokens, ends) if part.size]
    return sorted(found)


def imported(tmp_path, name: str, tokenizer="bytes"):
    return import_tokens(ImportConfig(str(tmp_path / name), str(tmp_path / "store"), tokenizer))


def write_megatron(path, documents, code=4, dtype="<i4"):
    sizes = [len(document) for document in documents]
    np.concatenate(documents).astype(dtype).tofile(path.with_suffix(".bin"))
    pointers = np.concatenate([[0], np.cumsum(sizes)[:-1]]) * np.dtype(dtype).itemsize
    path.with_suffix(".idx").write_bytes(
        b"MMIDIDX\0\0"
        + struct.pack("<QBQQ", 1, code, len(sizes), len(sizes) + 1)
        + np.array(sizes, "<i4").tobytes()
        + pointers.astype("<i8").tobytes()
        + np.arange(len(sizes) + 1, dtype="<i8").tobytes()
    )


def test_nanogpt(tmp_path):
    np.concatenate(DOCUMENTS).astype("<u2").tofile(tmp_path / "a.bin")
    store = imported(tmp_path, "a.bin")
    assert stored(store) == sorted(DOCUMENTS)
    assert store.manifest.splits["validation"].documents > 0
    store.verify()


def test_a_folder_of_nanogpt_keeps_its_splits(tmp_path):
    np.concatenate(DOCUMENTS[:3])[:-1].astype("<u2").tofile(tmp_path / "train.bin")
    np.concatenate(DOCUMENTS[3:]).astype("<u2").tofile(tmp_path / "val.bin")
    store = import_tokens(ImportConfig(str(tmp_path), str(tmp_path / "store"), "bytes"))
    assert store.tokens("train").tolist() == sum(DOCUMENTS[:3], [])  # with the last end added
    assert store.tokens("validation").tolist() == DOCUMENTS[3]


@pytest.mark.parametrize(("magic", "dtype"), [(20240520, "<u2"), (20240801, "<u4")])
def test_llm_c(tmp_path, magic, dtype):
    tokens = np.concatenate(DOCUMENTS).astype(dtype)
    header = np.zeros(256, "<i4")
    header[:3] = magic, 1, len(tokens)
    (tmp_path / "a.bin").write_bytes(header.tobytes() + tokens.tobytes())
    assert stored(imported(tmp_path, "a.bin")) == sorted(DOCUMENTS)
    header[2] += 1
    (tmp_path / "b.bin").write_bytes(header.tobytes() + tokens.tobytes())
    with pytest.raises(UserError, match="says that it has 14 tokens, but has 13"):
        import_tokens(ImportConfig(str(tmp_path / "b.bin"), str(tmp_path / "other"), "bytes"))


@pytest.mark.parametrize(("code", "dtype"), [(4, "<i4"), (8, "<u2"), (5, "<i8")])
@pytest.mark.parametrize("name", ["a.idx", "a.bin"])
def test_megatron(tmp_path, code, dtype, name):
    """A document without an end gets one; an end inside of a document does not split it."""
    documents = [*DOCUMENTS[:3], [20, 21]]
    write_megatron(tmp_path / "a", documents, code, dtype)
    store = imported(tmp_path, name)
    assert stored(store) == sorted([*DOCUMENTS[:3], [20, 21, 1]])
    assert sum(split.documents for split in store.manifest.splits.values()) == 4


def test_a_large_vocabulary_and_the_tokenizers_own_end(tmp_path):
    folder = byte_level(tmp_path / "tokenizer")
    from paxlike.data.huggingface_tokenizer import load_huggingface

    tokenizer = load_huggingface(folder)
    documents = [[*tokenizer.encode(text).tolist(), tokenizer.eod] for text in ("The fox", "café")]
    np.concatenate(documents).astype("<u2").tofile(tmp_path / "a.bin")
    store = imported(tmp_path, "a.bin", str(folder))
    assert stored(store) == sorted(documents) and store.tokenizer.eod == tokenizer.eod


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.bin", b"\1\0\2", "has 3 bytes, which is no whole number of 2-byte tokens"),
        ("a.bin", b"", "has no tokens"),
        ("a.bin", b"\1\0\xff\xff", "has the id 65535 near token 1, but the tokenizer has ids"),
        ("a.idx", b"x" * 40, "is no index of Megatron-LM: it does not begin with MMIDIDX"),
        ("missing.bin", None, "cannot be read: No such file"),
        (".", None, "has no train.bin and no val.bin"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        imported(tmp_path, name)
    assert not (tmp_path / "store").exists()


def test_damaged_megatron_files(tmp_path):
    write_megatron(tmp_path / "a", DOCUMENTS)
    index, tokens = (tmp_path / "a.idx").read_bytes(), (tmp_path / "a.bin").read_bytes()
    (tmp_path / "a.bin").write_bytes(tokens[:-4])
    with pytest.raises(UserError, match="a.bin has 48 bytes; a.idx says 52"):
        imported(tmp_path, "a.idx")
    (tmp_path / "a.idx").write_bytes(index[:-20])
    with pytest.raises(UserError, match="it is truncated"):
        imported(tmp_path, "a.idx")
