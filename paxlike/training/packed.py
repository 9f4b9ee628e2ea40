"""Packed models: a quantized model in one safetensors file, with its config and tokenizer.

A quantized weight `blocks/wq_DNH` is stored as two tensors:

    blocks/wq_DNH.bits    uint8 [layers, bytes per column, columns], packed (`quant/packing.py`)
    blocks/wq_DNH.beta    float32 [layers, input tiles, output tiles] (`quant/tiles.py`)

Other parameters are float32 under their own names. `tokenizer/NAME` holds the bytes of a tokenizer
file. The header's metadata holds the config as JSON, the step, and the version that wrote the file.
"""

import math
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from paxlike import __version__
from paxlike.config import Config, UserError, from_json, to_json
from paxlike.data.tokenizer import Tokenizer, load_tokenizer
from paxlike.files import check_free, write_file
from paxlike.nn.numerics import Numerics
from paxlike.nn.quantized import QuantizedWeight, layout_of, quantize_params, quantized_specs
from paxlike.parallel.axes import letters_of
from paxlike.parallel.mesh import make_mesh
from paxlike.quant.packing import pack, unpack
from paxlike.training.loaded_run import LoadedRun, widest_mesh
from paxlike.training.state import abstract_params

FORMAT = "paxlike packed 1"


def save_packed(path: Path, run: LoadedRun) -> int:
    """Writes the file and returns its size in bytes.

    Raises UserError if the file exists, or if the model was not trained quantized.
    """
    check_free(path)
    quant = run.config.model.quant
    if not quant.active:
        raise UserError(
            f"{run.config.name} was not trained quantized (model.quant.weights is none), and "
            "quantizing it after training would destroy its accuracy; train a model with "
            "--model.quant.weights bitnet, as in configs/bitnet_tiny.py."
        )
    with jax.set_mesh(run.mesh):
        params = jax.device_get(quantize_params(run.config.model, run.numerics, run.params))
    tensors: dict[str, np.ndarray] = {}
    for name, value in _by_name(params).items():
        if isinstance(value, QuantizedWeight):
            signs = value.signs.reshape(len(value.signs), _inputs(name, value.shape[1:]), -1)
            tensors[f"{name}.bits"], tensors[f"{name}.beta"] = (
                np.asarray(pack(signs, quant.bits)),
                value.beta,
            )
        else:
            tensors[name] = np.asarray(value, np.float32)
    with tempfile.TemporaryDirectory() as folder:
        for file in run.tokenizer.save(Path(folder)):
            tensors[f"tokenizer/{file}"] = np.frombuffer(
                (Path(folder) / file).read_bytes(), np.uint8
            )
    metadata = {
        "format": FORMAT,
        "config": to_json(run.config),
        "step": str(run.step),
        "paxlike": __version__,
    }
    content = save(tensors, metadata)
    write_file(path, content)
    return len(content)


def open_packed(path: Path) -> LoadedRun:
    """Loads a packed file for generation, on the mesh of `widest_mesh`.

    Raises UserError if the file is not a packed model.
    """
    try:
        with safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise UserError(
                    f"{path} is not a packed model of this version ({metadata.get('format')!r}, "
                    f"not {FORMAT!r})."
                )
            names = file.keys()
            tensors = {name: file.get_tensor(name) for name in names}
        config = from_json(metadata["config"])
    except (SafetensorError, KeyError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read as a packed model: {error}. Write it again with `paxlike pack`."
        ) from error
    numerics = Numerics.of_run(config, jax.default_backend())
    mesh = make_mesh(widest_mesh(config.model, len(jax.devices())))
    with jax.set_mesh(mesh):
        params = _load_params(config, numerics, tensors)
    return LoadedRun(config, numerics, params, int(metadata["step"]), _tokenizer(tensors), mesh)


def _by_name(tree: dict) -> dict[str, object]:
    leaves = jax.tree_util.tree_leaves_with_path(
        tree, is_leaf=lambda leaf: isinstance(leaf, QuantizedWeight)
    )
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _inputs(name: str, shape: tuple[int, ...]) -> int:
    """Returns the number of rows of a weight as a matrix: the size of its contracted dimensions."""
    return shape[0] if letters_of(name)[0] == "D" else math.prod(shape[:-1])


def _load_params(config: Config, numerics: Numerics, tensors: dict[str, np.ndarray]) -> dict:
    def one(path, like):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if f"{name}.bits" not in tensors:
            return jax.device_put(tensors[name].astype(like.dtype), like.sharding)
        layer = like.shape[1:]
        signs = unpack(
            jnp.asarray(tensors[f"{name}.bits"]), config.model.quant.bits, _inputs(name, layer)
        )
        value = QuantizedWeight(np.asarray(signs).reshape(like.shape), tensors[f"{name}.beta"])
        specs = quantized_specs(layout_of(letters_of(name), layer, config.model.quant))
        return QuantizedWeight(
            *(
                jax.device_put(array, NamedSharding(jax.sharding.get_mesh(), P(None, *place)))
                for array, place in ((value.signs, specs.signs), (value.beta, specs.beta))
            )
        )

    return jax.tree_util.tree_map_with_path(one, abstract_params(config, numerics))


def _tokenizer(tensors: dict[str, np.ndarray]) -> Tokenizer:
    with tempfile.TemporaryDirectory() as folder:
        for name, array in tensors.items():
            if name.startswith("tokenizer/"):
                (Path(folder) / Path(name).name).write_bytes(array.tobytes())
        return load_tokenizer(folder)
