"""Files of tensors: what the real library writes and reads, and damage named."""

import importlib.util
import json
import struct

import ml_dtypes
import numpy as np
import pytest

from paxlike.config import UserError
from paxlike.interop.safetensors import Entry, Tensors, write

ARRAYS = {
    "a": np.arange(12, dtype=np.float32).reshape(3, 4),
    "b.c": np.array([np.inf, -0.0, 1e-30], np.float32),
    "d": np.full((2, 1, 5), 7, np.float32),
}


def written(folder, arrays=ARRAYS, dtype="float32", shard_bytes=10**9):
    entries = [
        Entry(name, array.shape, lambda array=array: array) for name, array in arrays.items()
    ]
    write(folder, entries, np.dtype(dtype), shard_bytes)
    return folder


@pytest.mark.parametrize("shard_bytes", [10**9, 50, 1])
def test_what_is_written_is_read(shard_bytes, tmp_path):
    found = Tensors(written(tmp_path, shard_bytes=shard_bytes))
    assert found.shapes == {name: array.shape for name, array in ARRAYS.items()}
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found.read(name), array)
    assert len(list(tmp_path.glob("*.safetensors"))) == {10**9: 1, 50: 3, 1: 3}[shard_bytes]


@pytest.mark.skipif(
    importlib.util.find_spec("safetensors") is None,
    reason="safetensors is not installed (extra hf)",
)
def test_the_real_library_reads_and_writes_the_same(tmp_path):
    from safetensors.numpy import load_file, save_file

    (tmp_path / "theirs").mkdir()
    for name, array in load_file(written(tmp_path) / "model.safetensors").items():
        np.testing.assert_array_equal(array, ARRAYS[name])
    save_file(
        {name: array.astype(ml_dtypes.bfloat16) for name, array in ARRAYS.items()},
        tmp_path / "theirs/model.safetensors",
    )
    found = Tensors(tmp_path / "theirs")
    assert found.dtypes == {np.dtype(ml_dtypes.bfloat16)}
    np.testing.assert_array_equal(found.read("d"), ARRAYS["d"].astype(ml_dtypes.bfloat16))


def with_header(path, header: object, data: bytes = b"") -> None:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (
            {"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}},
            "not a complete safetensors file",
        ),  # data is missing
        ({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, "bytes 0 to 4 for F32"),
        ({"x": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}}, "bytes -8 to 0"),
        (
            {"x": {"dtype": "I64", "shape": [1], "data_offsets": [0, 8]}},
            "x has type I64; F32, F16, BF16 can be read",
        ),
        ({"x": {"dtype": "F32"}}, "KeyError"),
        ([1, 2], "not a complete safetensors file"),
    ],
)
def test_damaged_headers(header, message, tmp_path):
    with_header(tmp_path / "model.safetensors", header)
    with pytest.raises(UserError, match=message):
        Tensors(tmp_path)


def test_cut_files(tmp_path):
    path = written(tmp_path) / "model.safetensors"
    whole = path.read_bytes()
    for size in (0, 5, 100, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match="not a complete safetensors file"):
            Tensors(tmp_path)


@pytest.mark.parametrize(
    "name", ["../secret.safetensors", "/etc/passwd", "not-there.safetensors", 3]
)
def test_an_index_names_files_of_its_folder_only(name, tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": name}}))
    with pytest.raises(UserError, match=r"which is not in|cannot be read"):
        Tensors(tmp_path)


def test_a_wrong_array_is_a_mistake_of_the_program(tmp_path):
    with pytest.raises(ValueError, match=r"a is float64 \(3,\), not float32 \(2,\)"):
        write(tmp_path, [Entry("a", (2,), lambda: np.zeros(3))], np.dtype("float32"), 100)
