import numpy as np
import pytest

from paxlike.data import writer
from paxlike.data.writer import DOCUMENT, HashedFile, Tokenized, file_record, validation_threshold


def test_hashed_file_writes_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "_COPY", 7)
    values = np.arange(100, dtype=np.uint16).reshape(10, 10)
    with HashedFile(tmp_path / "a") as file:
        file.write(values[:4])
        file.write(values[4:])
        record = file.record
    assert np.array_equal(np.fromfile(tmp_path / "a", np.uint16), values.ravel())
    assert record == file_record(tmp_path / "a") and record.bytes == 200


def test_threshold_takes_about_the_fraction():
    hashes = np.random.default_rng(0).integers(0, 2**64, 10_000, np.uint64)
    for fraction in (0.01, 0.2, 0.9):
        assert (
            abs((hashes < np.uint64(validation_threshold(hashes, fraction))).mean() - fraction)
            < 0.02
        )


@pytest.mark.parametrize("fraction", [1e-9, 0.5, 1 - 1e-9])
@pytest.mark.parametrize(
    "pair", [(5, 6), (0, 2**64 - 1), (2**63, 2**63 + 1), (2**64 - 2, 2**64 - 1)]
)
def test_two_different_documents_are_kept_apart(fraction, pair):
    hashes = np.array(pair, np.uint64)
    assert (hashes < np.uint64(validation_threshold(hashes, fraction))).tolist() == [True, False]


def test_a_single_document_is_for_training():
    hashes = np.array([7, 7, 7], np.uint64)
    assert not (hashes < np.uint64(validation_threshold(hashes, 0.5))).any()


@pytest.mark.parametrize("slab", [1, 3, 1 << 20])
def test_streams_keep_the_order_of_documents(tmp_path, monkeypatch, slab):
    monkeypatch.setattr(writer, "_SLAB", slab)
    rng = np.random.default_rng(0)
    documents = np.zeros(20, DOCUMENT)
    documents["tokens"], documents["bytes"] = rng.integers(1, 6, 20), rng.integers(1, 9, 20)
    documents["hash"] = rng.integers(0, 2, 20)
    tokens = np.arange(documents["tokens"].sum(), dtype=np.uint16)
    splits, files = writer.write_streams(Tokenized(tokens, documents), 1, tmp_path)
    parts = np.split(tokens, np.cumsum(documents["tokens"])[:-1].astype(int))
    for split, wanted in (("train", 1), ("validation", 0)):
        chosen = documents["hash"] == wanted
        expected = np.concatenate([part for part, take in zip(parts, chosen, strict=True) if take])
        assert np.array_equal(np.fromfile(tmp_path / f"{split}.tokens", np.uint16), expected)
        assert files[f"{split}.tokens"] == file_record(tmp_path / f"{split}.tokens")
        counts = splits[split]
        assert (counts.documents, counts.tokens) == (chosen.sum(), len(expected))
        assert counts.text_bytes == documents["bytes"][chosen].sum()
