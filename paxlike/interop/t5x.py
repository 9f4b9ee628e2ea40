"""Reads and writes T5X checkpoints without T5X. Also provides the T5X module (`decoder_module`).

`checkpoint_<step>/checkpoint` is a msgpack of {version: 3, optimizer: {target, state: {step,
param_states}}}. Arrays in it are TensorStore specs (zarr) with relative paths, such as
`target.decoder.decoder_norm.scale/`; small arrays may be inline. The optimizer state is
Adafactor's: m, v, v_row and v_col for every parameter. `palm`, Adafactor without factorization,
uses m and v.
"""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import tensorstore
from flax import serialization

from paxlike.accounting.parameters import parameter_count, stored_shapes
from paxlike.config import Config, UserError
from paxlike.data.source import Source
from paxlike.files import new_folder
from paxlike.interop.conversion_result import Converted
from paxlike.interop.t5x_layout import Leaf, leaves
from paxlike.interop.t5x_module import decoder_module
from paxlike.training.checkpoint import write_checkpoint
from paxlike.training.checkpoint_reader import CheckpointReader
from paxlike.training.run_directory import RunDirectory, read_config

__all__ = ["decoder_module", "from_t5x", "to_t5x"]

VERSION = 3
_CHUNK_BYTES = 2**26
MOMENTS = {"m": "momentum", "v": "second"}
_UNUSED = ("v_row", "v_col")
"""Adafactor's factored moments, which hold a single zero if unfactored."""


# ---- to T5X --------------------------------------------------------------------------------------


def to_t5x(run: Path, out: Path, step: int | None = None) -> Converted:
    """Writes a run's checkpoint as `out/checkpoint_<step>`, one parameter of one layer at a time.

    The moments of the optimizer `palm` are included. Other optimizers have no equivalent in T5X's
    Adafactor; a note says so. Raises UserError, and leaves nothing behind, if the run cannot be
    read or `out` exists.
    """
    config = read_config(run)
    stored = CheckpointReader(run / "checkpoints", step)
    table = leaves(config.model)
    with_moments = config.optim.name == "palm" and stored.has_optimizer()
    notes = (
        []
        if with_moments
        else ["the optimizer state was not written, because it is not Adafactor's with momentum."]
    )
    with new_folder(out) as folder:
        target_folder = folder / f"checkpoint_{stored.step}"
        target_folder.mkdir()
        target: dict = {}
        states: dict = {}
        for leaf in table:
            array = stored.param(leaf.param, leaf.layer).reshape(leaf.shape)
            _put(target, leaf.path, _write(target_folder, ("target", *leaf.path), array))
            if not with_moments:
                continue
            leaf_state: dict = {name: np.zeros((1,), np.float32) for name in _UNUSED}
            for t5x_name, moment in MOMENTS.items():
                array = stored.moment(leaf.param, moment, leaf.layer).reshape(leaf.shape)
                leaf_state[t5x_name] = _write(
                    target_folder, ("state", "param_states", *leaf.path, t5x_name), array
                )
            _put(states, leaf.path, leaf_state)
        state = {"step": np.int32(stored.step), "param_states": states}
        index = {"version": VERSION, "optimizer": {"target": target, "state": state}}
        (target_folder / "checkpoint").write_bytes(serialization.msgpack_serialize(index))
    return Converted(out, parameter_count(config.model), f"step {stored.step}", notes)


def _write(folder: Path, path: tuple[str, ...], array: np.ndarray) -> dict:
    """Writes an array as zarr. Returns its spec for the index, with a path relative to `folder`."""
    name = ".".join(path) + "/"
    rows = max(1, _CHUNK_BYTES * array.shape[0] // max(array.nbytes, 1))
    chunks = [min(rows, array.shape[0]), *array.shape[1:]]
    metadata = {
        "shape": list(array.shape),
        "chunks": chunks,
        "compressor": {"id": "zstd", "level": 1},
    }
    spec = {"driver": "zarr", "dtype": array.dtype.name, "metadata": metadata}
    opened = tensorstore.open(
        {**spec, "kvstore": {"driver": "file", "path": str(folder / name)}}, create=True, open=True
    ).result()
    opened.write(array).result()
    return {**spec, "kvstore": {"driver": "file", "path": name}}


def _put(tree: dict, path: tuple[str, ...], value: object) -> None:
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = value


# ---- from T5X ------------------------------------------------------------------------------------


def from_t5x(checkpoint: Path, config: Config, store: Source, out: Path) -> Converted:
    """Converts a T5X checkpoint (`…/checkpoint_1000`) to a run directory.

    config: the new run's config. store: its data and tokenizer. If `config.optim` is palm and the
    checkpoint has m and v, training resumes at the checkpoint's step. Otherwise the run has
    parameters only; a note says so. Raises UserError, and leaves nothing behind, if the checkpoint
    cannot be read, does not fit the config's model, or `out` exists.
    """
    table = leaves(config.model)
    folder, index = read_index(checkpoint)
    target, state = get(index, "optimizer", "target"), get(index, "optimizer", "state")
    found = flatten(target)
    check_tree(found, table)
    step = int(np.asarray(_array(folder, get(state, "step"), "step")).reshape(()))
    params = _load_params(
        config, table, lambda leaf: read_leaf(folder, found, "/".join(leaf.path), leaf.shape)
    )
    plain: dict[str, Any] = {
        "params": _nested(jax.tree.map(lambda array: array.astype(config.precision.params), params))
    }
    moments = _moments(folder, config, table, flatten(state.get("param_states") or {}))
    notes = []
    if moments is None:
        notes = [
            "the checkpoint has no m and v for optim.name palm: the run has parameters only, and "
            "cannot be resumed."
        ]
    else:
        plain["optimizer"] = {"step": np.int32(step), "moments": moments}
        plain["step"] = np.int32(step)
    position = {
        "step": step,
        "sequences": config.train.sequences_before(step),
        "store": store.fingerprint,
    }
    with new_folder(out) as target_folder:
        RunDirectory(target_folder, config, store).close()
        if moments is None:
            (target_folder / "data.json").unlink()
        write_checkpoint(target_folder / "checkpoints", plain, step, position)
    return Converted(out, parameter_count(config.model), f"step {step}", notes)


def read_index(checkpoint: Path) -> tuple[Path, dict]:
    """(directory of the arrays, contents of the msgpack). Raises UserError."""
    path = checkpoint if checkpoint.is_file() else checkpoint / "checkpoint"
    try:
        index = serialization.msgpack_restore(path.read_bytes())
        version = index["version"]
    except OSError as error:
        raise UserError(
            f"{path} cannot be read: {error.strerror}. Specify a folder such as checkpoint_1000."
        ) from error
    except Exception as error:  # msgpack raises several kinds of errors for invalid bytes
        raise UserError(
            f"{path} is not a T5X checkpoint ({type(error).__name__}: {error})."
        ) from error
    if version != VERSION:
        raise UserError(f"{path} has version {version}; only version {VERSION} is supported.")
    return path.parent, index


def get(tree: Any, *path: str) -> Any:
    """A subtree. Raises UserError if it is missing."""
    for name in path:
        if not isinstance(tree, dict) or name not in tree:
            raise UserError(f"the T5X checkpoint has no {'/'.join(path)}.")
        tree = tree[name]
    return tree


def flatten(tree: dict, prefix: str = "") -> dict[str, object]:
    """Flattens a tree to `decoder/…/kernel` -> array or spec."""
    out: dict[str, object] = {}
    for name, value in tree.items():
        if isinstance(value, dict) and not {"driver", "kvstore"} <= set(value):
            out.update(flatten(value, f"{prefix}{name}/"))
        else:
            out[prefix + name] = value
    return out


def shape_of(value: object) -> tuple[int, ...] | None:
    """Returns the shape of an inline array or of a spec; None if the spec has no shape."""
    if isinstance(value, dict):
        shape = (value.get("metadata") or {}).get("shape")
        return None if shape is None else tuple(shape)
    return np.asarray(value).shape


def check_tree(found: dict[str, object], table: list[Leaf]) -> None:
    """Raises UserError naming parameters that are missing, unexpected or misshapen."""
    shapes = {"/".join(leaf.path): leaf.shape for leaf in table}
    errors = [f"{name} is missing" for name in shapes if name not in found]
    errors += [
        f"{name} {shape_of(found[name])} is unexpected" for name in found if name not in shapes
    ]
    for name, shape in shapes.items():
        if name in found and shape_of(found[name]) not in (None, shape):
            errors.append(f"{name} is {shape_of(found[name])}, not {shape}")
    if errors:
        more = f", and {len(errors) - 5} more" if len(errors) > 5 else ""
        raise UserError(
            f"the T5X checkpoint does not fit the config's model: {'; '.join(errors[:5])}{more}."
        )


def _array(folder: Path, value: object, name: str) -> np.ndarray:
    if not isinstance(value, dict):
        return np.asarray(value)
    try:
        path = str(value["kvstore"].get("path") or value["path"])
        if value["driver"] != "zarr" or Path(path).is_absolute() or ".." in Path(path).parts:
            raise ValueError(f"driver {value['driver']}, path {path!r}")
        spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": str(folder / path)}}
        return tensorstore.open(spec, open=True, read=True).result().read().result()
    except (ValueError, KeyError, AttributeError) as error:
        raise UserError(
            f"{name} of the T5X checkpoint cannot be read ({str(error).splitlines()[0][:200]})."
        ) from error


def read_leaf(
    folder: Path, found: dict[str, object], name: str, shape: tuple[int, ...]
) -> np.ndarray:
    """An array of the tree by its name. Raises UserError if it cannot be read or is misshapen."""
    array = _array(folder, found[name], name)
    if array.shape != shape:
        raise UserError(f"{name} of the T5X checkpoint is {array.shape}, not {shape}.")
    return array


def _load_params(config: Config, table: list[Leaf], read) -> dict[str, np.ndarray]:
    arrays = {name: np.empty(shape, np.float32) for name, shape in stored_shapes(config.model)}
    for leaf in table:
        array = read(leaf)
        arrays[leaf.param][... if leaf.layer is None else leaf.layer] = array.reshape(
            leaf.param_shape
        )
    return arrays


def _moments(
    folder: Path, config: Config, table: list[Leaf], found: dict[str, object]
) -> dict | None:
    """Returns the moments in the layout of the optimizer palm.

    Returns None if the optimizer is not palm, or if the checkpoint has other moments.
    """
    names = {(leaf.path, m): f"{'/'.join(leaf.path)}/{m}" for leaf in table for m in MOMENTS}
    shapes = {name: leaf.shape for leaf in table for name in (names[leaf.path, m] for m in MOMENTS)}
    if config.optim.name != "palm" or any(
        shape_of(found.get(name)) != shape for name, shape in shapes.items()
    ):
        return None
    read = {
        moment: _load_params(
            config,
            table,
            lambda leaf, m=m: read_leaf(folder, found, names[leaf.path, m], leaf.shape),
        )
        for m, moment in MOMENTS.items()
    }
    return _nested(
        {
            name: {moment: arrays[name] for moment, arrays in read.items()}
            for name, _ in stored_shapes(config.model)
        }
    )


def _nested(values: dict[str, object]) -> dict:
    nested: dict = {}
    for name, value in values.items():
        _put(nested, tuple(name.split("/")), value)
    return nested
