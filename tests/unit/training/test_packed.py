"""Packed models: the restored parameters, the file size, the header and the errors."""

import dataclasses
import json
import struct
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import flat, mesh_of, model_config, put
from safetensors.numpy import load_file, save_file

from paxlike.accounting.parameters import packed_bytes
from paxlike.config import ModelConfig, QuantConfig, UserError, load
from paxlike.data.tokenizer import BytesTokenizer
from paxlike.infer.cache import prefill
from paxlike.infer.generate import Generator
from paxlike.models.decoder import init_params
from paxlike.nn.numerics import Numerics
from paxlike.nn.quantized import QuantizedWeight, quantize_params
from paxlike.parallel.axes import is_stacked
from paxlike.training.loaded_run import LoadedRun
from paxlike.training.packed import open_packed, save_packed

pytestmark = pytest.mark.slow

CONFIGS = Path(__file__).parents[3] / "configs"
KINDS = {
    "one-bit": QuantConfig(weights="bitnet", groups=4, data_tiles=2),
    "one-bit-code": QuantConfig(weights="bitnet", variant="code"),
    "ternary": QuantConfig(weights="bitnet_b158", groups=8),
}


def loaded_run(quant: QuantConfig, sizes=(1, 1, 4), model: ModelConfig | None = None) -> LoadedRun:
    """Returns a model with its initial parameters, on a mesh."""
    config = model_config(
        d_model=64, head_dim=16, d_ff=128, kv_heads=2, vocab_size=300, quant=quant
    )
    if model:
        config = dataclasses.replace(config, model=model)
    numerics = Numerics.of(config.model, config.precision, "cpu")
    mesh = mesh_of(*sizes)
    with jax.set_mesh(mesh):
        params = jax.jit(init_params, static_argnums=(0, 1, 2))(config.model, numerics, 0)
    return LoadedRun(config, numerics, params, 7, BytesTokenizer(), mesh)


def leaves(params: dict) -> dict[str, np.ndarray]:
    return {name: np.asarray(leaf) for name, leaf in flat(jax.device_get(params)).items()}


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def model(request) -> LoadedRun:
    return loaded_run(request.param)


def generate(model: LoadedRun) -> np.ndarray:
    with jax.set_mesh(model.mesh):
        generator = Generator(
            model.config.model, model.numerics, model.params, model.tokenizer.eod, 64
        )
        return generator.generate([np.arange(5, 25)], 12)[0]


def test_a_packed_model_is_restored_bit_for_bit_and_generates_the_same(model, tmp_path):
    save_packed(tmp_path / "model.safetensors", model)
    back = open_packed(tmp_path / "model.safetensors")
    assert (
        back.config == model.config
        and back.step == 7
        and isinstance(back.tokenizer, BytesTokenizer)
    )
    with jax.set_mesh(model.mesh):
        expected = leaves(quantize_params(model.config.model, model.numerics, model.params))
    found = leaves(back.params)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
    assert {type(leaf).__name__ for name, leaf in back.params["blocks"].items()} == {
        "QuantizedWeight"
    }
    np.testing.assert_array_equal(generate(back), generate(model))


@pytest.mark.parametrize("sizes", [(1, 2, 1), (1, 2, 4), (2, 2, 2)])
@pytest.mark.parametrize("kind", KINDS)
def test_quantizing_packing_and_generating_are_the_same_on_every_mesh(kind, sizes, tmp_path):
    """Including meshes that shard the weights over `data`."""
    one, many = loaded_run(KINDS[kind], (1, 1, 1)), loaded_run(KINDS[kind], sizes)
    quantized = []
    for number, model in enumerate((one, many)):
        with jax.set_mesh(model.mesh):
            params = quantize_params(model.config.model, model.numerics, model.params)
            quantized.append(leaves(params))
        save_packed(tmp_path / str(number), model)
    for name, array in quantized[0].items():
        # A scale is a mean, and its summation order depends on the mesh.
        np.testing.assert_allclose(
            quantized[1][name], array, rtol=0 if array.dtype == np.int8 else 2e-6, err_msg=name
        )
    packed = [load_file(tmp_path / name) for name in "01"]
    assert all(
        (packed[0][name] == packed[1][name]).all() for name in packed[0] if name.endswith(".bits")
    )
    np.testing.assert_array_equal(generate(many), generate(one))


@pytest.mark.parametrize("kind", KINDS)
def test_the_file_size_is_bits_times_parameters(kind, tmp_path):
    """For configs/bitnet_tiny.py: within 3 % of bits x parameters, including scales.

    The rest of the file is the embedding, names and the config.
    """
    quant, model = KINDS[kind], load(CONFIGS / "bitnet_tiny.py").model
    quant = dataclasses.replace(quant, groups=min(4, quant.groups))
    model = loaded_run(quant, model=dataclasses.replace(model, quant=quant))
    size = save_packed(tmp_path / "model.safetensors", model)
    tensors = load_file(tmp_path / "model.safetensors")
    bits = 1 if kind == "one-bit" else 2  # in the published code, a 1-bit weight can also be 0
    quantized = {name: array for name, array in tensors.items() if is_stacked(name)}
    parameters = sum(leaf.size for leaf in jax.tree.leaves(model.params["blocks"]))
    assert sum(array.nbytes for array in quantized.values()) == pytest.approx(
        parameters * bits / 8, rel=0.03
    )
    assert {array.dtype for name, array in quantized.items() if name.endswith(".bits")} == {
        np.dtype("uint8")
    }
    assert size - sum(array.nbytes for array in tensors.values()) < 8000
    weight_bytes = sum(
        array.nbytes
        for name, array in tensors.items()
        if not name.startswith("tokenizer/") and not name.endswith(".beta")
    )
    assert weight_bytes == packed_bytes(model.config.model)


def test_a_model_that_was_not_trained_quantized_is_rejected(tmp_path):
    model = loaded_run(QuantConfig())
    with pytest.raises(
        UserError, match=r"was not trained quantized \(model.quant.weights is none\)"
    ):
        save_packed(tmp_path / "model.safetensors", model)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["truncated", "other tensors", "text"])
def test_a_file_that_is_not_a_packed_model_is_rejected(kind, tmp_path):
    path = tmp_path / "model.safetensors"
    if kind == "other tensors":
        save_file({"a": np.zeros(3)}, path)
    elif kind == "text":
        path.write_text("not a model")
    else:
        save_packed(path, loaded_run(KINDS["one-bit"]))
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="not a packed model|cannot be read as a packed model"):
        open_packed(path)


def test_the_safetensors_header(tmp_path):
    """A safetensors file starts with the header's length in eight bytes, then the JSON header."""
    model = loaded_run(KINDS["one-bit"])
    save_packed(tmp_path / "model.safetensors", model)
    raw = (tmp_path / "model.safetensors").read_bytes()
    header = json.loads(raw[8 : 8 + struct.unpack("<Q", raw[:8])[0]])
    assert header["__metadata__"]["format"] == "paxlike packed 1"
    assert json.loads(header["__metadata__"]["config"])["model"]["quant"]["groups"] == 4
    assert header["blocks/wup_DF.bits"]["shape"] == [2, 64 // 8, 128]


def test_generation_uses_one_activation_scale_per_token():
    """Even if training used one scale per tensor: a row's logits do not depend on other rows."""
    model = loaded_run(QuantConfig(weights="bitnet"), (1, 1, 1))
    assert not model.config.model.quant.per_token
    rows = np.random.default_rng(0).integers(3, 300, (2, 16), dtype=np.int32)
    with jax.set_mesh(model.mesh):
        run = jax.jit(prefill, static_argnums=(0, 1, 5))
        logits = [
            run(
                model.config.model,
                model.numerics,
                model.params,
                put("BT", tokens),
                put("B", np.array([16, 16])),
                16,
            )[1]
            for tokens in (rows, np.stack([rows[0], np.full(16, 3, np.int32)]))
        ]
    np.testing.assert_array_equal(logits[0][0], logits[1][0])
    assert np.abs(np.asarray(logits[0][1] - logits[1][1])).max() > 0.1


def test_quantizing_twice_changes_nothing():
    model = loaded_run(KINDS["one-bit"])
    with jax.set_mesh(model.mesh):
        once = quantize_params(model.config.model, model.numerics, model.params)
        twice = quantize_params(model.config.model, model.numerics, once)
    jax.tree.map(np.testing.assert_array_equal, once, twice)
    assert all(isinstance(w, QuantizedWeight) for w in twice["blocks"].values())


def test_an_existing_file_is_not_overwritten(tmp_path):
    (tmp_path / "mine").write_text("other content")
    with pytest.raises(UserError, match="mine already exists and is not overwritten"):
        save_packed(tmp_path / "mine", loaded_run(QuantConfig(weights="bitnet")))
    assert (tmp_path / "mine").read_text() == "other content"
