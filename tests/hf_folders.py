"""Hugging Face folders made of random parameters on the spot, without torch and without checks."""

import functools
import json
import math
import struct
from pathlib import Path

import numpy as np
from helpers import flat

from paxlike.config import Config
from paxlike.data.tokenizer import BytesTokenizer
from paxlike.interop import hf_layout, hf_tokenizer, safetensors


def write_hf_folder(
    folder: Path, config: Config, params: dict, dtype: str = "float32", shard_bytes: int = 10**9
) -> Path:
    """Writes the folder of a model with paxlike's parameters (nested dict of NumPy arrays)."""
    folder.mkdir(parents=True)
    model, tokenizer = config.model, BytesTokenizer()
    hf_config = hf_layout.to_config(model, config.data.sequence_length, dtype, tokenizer.eod)
    (folder / "config.json").write_text(json.dumps(hf_config))
    hf_tokenizer.write(folder, tokenizer, config.data.sequence_length)
    named, tensors = flat(params), {}
    for tensor in hf_layout.tensors(model, hf_layout.family(model)):
        tensors.setdefault(tensor.name, []).append(tensor)

    def read(shared: list[hf_layout.Tensor]) -> np.ndarray:
        parts = [
            t.to_hf(named[t.param] if t.layer is None else named[t.param][t.layer]) for t in shared
        ]
        joined = parts[0] if len(parts) == 1 else np.concatenate(parts, shared[0].axis)
        return joined.reshape(shared[0].shape).astype(safetensors.numpy_dtype(dtype))

    entries = [
        safetensors.Entry(name, shared[0].shape, functools.partial(read, shared))
        for name, shared in tensors.items()
    ]
    safetensors.write(folder, entries, safetensors.numpy_dtype(dtype), shard_bytes)
    return folder


def write_sparse_folder(folder: Path, config: Config, dtype: str, files: int) -> Path:
    """Writes a folder whose tensors are zeros in files without blocks, so that it costs no disk."""
    folder.mkdir(parents=True)
    model, tokenizer = config.model, BytesTokenizer()
    hf_config = hf_layout.to_config(model, config.data.sequence_length, dtype, tokenizer.eod)
    (folder / "config.json").write_text(json.dumps(hf_config))
    hf_tokenizer.write(folder, tokenizer, config.data.sequence_length)
    table = {t.name: t.shape for t in hf_layout.tensors(model, hf_layout.family(model))}
    word = {"bfloat16": "BF16", "float32": "F32"}[dtype]
    size, places = safetensors.numpy_dtype(dtype).itemsize, {}
    for n in range(files):
        header, end = {}, 0
        for name in list(table)[n::files]:
            begin, end = end, end + math.prod(table[name]) * size
            header[name] = {"dtype": word, "shape": table[name], "data_offsets": [begin, end]}
            places[name] = f"model-{n}.safetensors"
        text = json.dumps(header).encode()
        with open(folder / f"model-{n}.safetensors", "wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            file.truncate(8 + len(text) + end)
    (folder / safetensors.INDEX).write_text(json.dumps({"weight_map": places}))
    return folder
