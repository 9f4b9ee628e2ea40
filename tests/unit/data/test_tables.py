"""Parquet and Arrow files, saved datasets, directories and .xz as inputs of `data prepare`."""

import json
import lzma

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest

from paxlike.config import UserError
from paxlike.data import blocks
from paxlike.data.bad_lines import BadLine, ReadOptions
from paxlike.data.corpus import read_blocks
from paxlike.data.input_files import find_files
from paxlike.data.prepare import PrepareConfig, prepare

TEXTS = [f"text {number} é😀\r\n" * (number % 5) for number in range(3000)]


def texts(path, field="text", **options) -> list:
    found: list = []
    for block in read_blocks(path, field):
        for piece in block.pieces(ReadOptions(field, **options)):
            if isinstance(piece, BadLine):
                found.append(piece.place)
            elif piece.first:
                found.append(piece.text)
            else:
                found[-1] += piece.text
    return found


def write_parquet(path, table):
    pyarrow.parquet.write_table(table, path, row_group_size=700)


def write_stream(path, table):
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=700)


WRITERS = {
    "a.parquet": write_parquet,
    "a.arrow": write_stream,
    "a.feather": lambda path, table: pyarrow.feather.write_feather(table, str(path), "zstd"),
}


@pytest.fixture(params=WRITERS)
def write(request, tmp_path):
    """write(table) -> path, in each format."""

    def written(table):
        path = tmp_path / request.param
        WRITERS[request.param](path, table)
        return path

    return written


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.binary(), pa.dictionary(pa.int32(), pa.string())]
)
def test_rows_are_documents(write, kind, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 4000)
    column = pa.array(TEXTS).cast(kind)
    path = write(pa.table({"id": np.arange(len(TEXTS)), "text": column, "other": TEXTS}))
    assert texts(path) == [text for text in TEXTS if text]
    found = list(read_blocks(path, "text"))
    assert len(found) > 5 and sum(block.disk_bytes for block in found) <= path.stat().st_size
    assert [block.first_row for block in found[:1]] == [1]


def test_nested_columns(write):
    rows = [{"body": {"text": "a"}, "n": 1}, {"body": {"text": "b"}, "n": 2}, None]
    path = write(pa.table({"meta": pa.array(rows), "a.b": ["x", "y", "z"]}))
    assert texts(path, "meta.body.text", skip_bad_lines=True) == ["a", "b", f"{path}:3"]
    assert texts(path, "a.b") == ["x", "y", "z"]
    with pytest.raises(UserError, match="no column 'text'; the columns are 'meta.body.text'"):
        texts(path)


def test_rows_without_a_document(write):
    path = write(pa.table({"text": ["a", None, "c"]}))
    with pytest.raises(UserError, match=":2: null text: column 'text' is null. .*--skip-bad-lines"):
        texts(path)
    assert texts(path, skip_bad_lines=True) == ["a", f"{path}:2", "c"]
    path = write(pa.table({"text": pa.array([b"ok", b"bad\xff"])}))
    with pytest.raises(UserError, match=":2: not utf8: byte 0xff at offset 3"):
        texts(path)
    assert texts(path, errors="replace") == ["ok", "bad\ufffd"]


@pytest.mark.parametrize("kind", [pa.int64(), pa.list_(pa.string())])
def test_columns_that_are_no_text(write, kind):
    path = write(pa.table({"text": pa.array([None], kind)}))
    with pytest.raises(UserError, match="column 'text' is of type (int64|list.*), not text"):
        texts(path)


@pytest.mark.parametrize("kept", [0.5, 0.9, 0.999])
def test_truncated_files(write, kept):
    path = write(pa.table({"text": TEXTS}))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(UserError, match="is damaged and cannot be read"):
        texts(path)


def saved_dataset(folder, **state):
    """As `datasets.save_to_disk` writes it; the cache file is of another dataset."""
    folder.mkdir()
    for number in range(2):
        write_stream(
            folder / f"data-0000{number}-of-00002.arrow", pa.table({"text": [f"t{number}"]})
        )
    write_stream(folder / "cache-1.arrow", pa.table({"text": ["stale"]}))
    names = [{"filename": f"data-0000{number}-of-00002.arrow"} for number in range(2)]
    (folder / "state.json").write_text(json.dumps({"_data_files": names, **state}))
    (folder / "dataset_info.json").write_text("{}")


def test_saved_datasets(tmp_path):
    saved_dataset(tmp_path / "train")
    found = find_files((str(tmp_path / "train"),))
    assert [text for path in found for text in texts(path)] == ["t0", "t1"]
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train"]}')
    with pytest.raises(UserError, match=r"has several splits \(train\); name the directory of one"):
        find_files((str(tmp_path),))
    saved_dataset(tmp_path / "chosen", _indices_files=[{"filename": "indices.arrow"}])
    with pytest.raises(UserError, match="flatten_indices"):
        find_files((str(tmp_path / "chosen"),))
    (tmp_path / "train" / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(UserError, match="names files that are missing: data-00001-of-00002.arrow"):
        find_files((str(tmp_path / "train"),))


def test_directories(tmp_path):
    names = ("a.txt", "b/c.JSONL", "b/d.csv.gz", "e.parquet", "b/.hidden.txt", "README", "f.bin")
    for name in (*names, ".git/x.txt", "dataset_infos.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found = [str(path.relative_to(tmp_path)) for path in find_files((str(tmp_path),))]
    assert found == ["a.txt", "b/c.JSONL", "b/d.csv.gz", "e.parquet"]
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="has no file with the suffix .txt"):
        find_files((str(tmp_path / "none"),))


def test_xz(tmp_path):
    path = tmp_path / "a.txt.xz"
    path.write_bytes(lzma.compress(b"some text " * 1000))
    assert texts(path) == ["some text " * 1000]
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match="is damaged"):
        texts(path)


def test_a_store_of_several_formats(tmp_path):
    write_parquet(tmp_path / "a.parquet", pa.table({"text": TEXTS[:40]}))
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXTS[:40]))
    config = PrepareConfig((str(tmp_path),), str(tmp_path / "store"), tokenizer="bytes")
    store = prepare(config)
    documents = sum(split.documents for split in store.manifest.splits.values())
    assert documents == 2 * sum(bool(text) for text in TEXTS[:40])


def test_nested_fields_of_json_lines(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"meta": {"text": "a"}}\n{"meta.text": "b"}\n{"meta": 3}\n')
    assert texts(path, "meta.text", skip_bad_lines=True) == ["a", "b", f"{path}:3"]
