"""T5X's checkpoints, written and read without T5X, and its module (`decoder_module`).

`checkpoint_<step>/checkpoint` is a msgpack of {version: 3, optimizer: {target, state: {step, param_states}}} in which arrays stand as
TensorStore specs (zarr) with paths beside it, such as `target.decoder.decoder_norm.scale/`; small ones may stand there themselves. The
optimizer's state is Adafactor's: for every parameter m, v, v_row and v_col, of which `palm`, Adafactor without factorization, uses the
first two.
"""

from pathlib import Path

import jax
import numpy as np
import tensorstore
from flax import serialization

from paxlike.accounting.parameters import parameter_count, stored_shapes
from paxlike.config import Config, UserError
from paxlike.data.source import Source
from paxlike.files import new_folder
from paxlike.interop.converted import Converted
from paxlike.interop.t5x_layout import Leaf, leaves
from paxlike.interop.t5x_module import decoder_module
from paxlike.train.checkpoint import write_checkpoint
from paxlike.train.run import Run, read_config
from paxlike.train.stored import Stored

__all__ = ["decoder_module", "from_t5x", "to_t5x"]

VERSION = 3
_CHUNK_BYTES = 2**26
MOMENTS = {"m": "momentum", "v": "second"}
_UNUSED = ("v_row", "v_col")
"""Adafactor's factored moments, which hold one zero where nothing is factored."""


# ---- to T5X ---------------------------------------------------------------------------------------------------------


def to_t5x(run: Path, out: Path, step: int | None = None) -> Converted:
    """Writes a run's checkpoint as `out/checkpoint_<step>`, a parameter of a layer at a time.

    The moments of the optimizer `palm` go with it; others have no equivalent in T5X's Adafactor, which is noted. Raises UserError, and
    leaves nothing behind, where the run cannot be read or `out` exists.
    """
    config = read_config(run)
    stored = Stored(run / "checkpoints", step)
    table = leaves(config.model)
    with_moments = config.optim.name == "palm" and stored.has_optimizer()
    notes = [] if with_moments else ["the optimizer's state is not written: it is not that of Adafactor with momentum."]
    with new_folder(out) as folder:
        into = folder / f"checkpoint_{stored.step}"
        into.mkdir()
        target, states = {}, {}
        for leaf in table:
            array = stored.param(leaf.ours, leaf.layer).reshape(leaf.shape)
            _put(target, leaf.path, _write(into, ("target", *leaf.path), array))
            if not with_moments:
                continue
            state = {name: np.zeros((1,), np.float32) for name in _UNUSED}
            for theirs, ours in MOMENTS.items():
                array = stored.moment(leaf.ours, ours, leaf.layer).reshape(leaf.shape)
                state[theirs] = _write(into, ("state", "param_states", *leaf.path, theirs), array)
            _put(states, leaf.path, state)
        state = {"step": np.int32(stored.step), "param_states": states}
        index = {"version": VERSION, "optimizer": {"target": target, "state": state}}
        (into / "checkpoint").write_bytes(serialization.msgpack_serialize(index))
    return Converted(out, parameter_count(config.model), f"step {stored.step}", notes)


def _write(folder: Path, path: tuple[str, ...], array: np.ndarray) -> dict:
    """Writes an array as zarr; returns the spec that stands for it in the index, with a path relative to `folder`."""
    name = ".".join(path) + "/"
    rows = max(1, _CHUNK_BYTES * array.shape[0] // max(array.nbytes, 1))
    chunks = [min(rows, array.shape[0]), *array.shape[1:]]
    metadata = {"shape": list(array.shape), "chunks": chunks, "compressor": {"id": "zstd", "level": 1}}
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


# ---- from T5X -------------------------------------------------------------------------------------------------------


def from_t5x(checkpoint: Path, config: Config, store: Source, out: Path) -> Converted:
    """Makes a run folder of a T5X checkpoint (`…/checkpoint_1000`); `config` is the run's, `store` its data and tokenizer.

    Where `config.optim` is palm and the checkpoint has m and v, the run goes on training at the checkpoint's step. Otherwise it has
    parameters only, which is noted. Raises UserError, and leaves nothing behind, where the checkpoint cannot be read, does not fit the
    config's model, or `out` exists.
    """
    table = leaves(config.model)
    folder, index = _read_index(checkpoint)
    target, state = _of(index, "optimizer", "target"), _of(index, "optimizer", "state")
    found = _flat(target)
    _check_tree(found, table)
    step = int(np.asarray(_array(folder, _of(state, "step"), "step")).reshape(()))
    params = _assembled(config, table, lambda leaf: _array(folder, found["/".join(leaf.path)], "/".join(leaf.path)))
    plain = {"params": _nested(jax.tree.map(lambda array: array.astype(config.precision.params), params))}
    moments = _moments(folder, config, table, _flat(state.get("param_states") or {}))
    notes = []
    if moments is None:
        notes = [
            "the checkpoint has no m and v for optim.name palm: the run has parameters only, and cannot go on training."
        ]
    else:
        plain["optimizer"] = {"step": np.int32(step), "moments": moments}
        plain["step"] = np.int32(step)
    position = {"step": step, "sequences": config.train.sequences_before(step), "store": store.fingerprint}
    with new_folder(out) as into:
        Run(into, config, store).close()
        if moments is None:
            (into / "data.json").unlink()
        write_checkpoint(into / "checkpoints", plain, step, position)
    return Converted(out, parameter_count(config.model), f"step {step}", notes)


def _read_index(checkpoint: Path) -> tuple[Path, dict]:
    path = checkpoint if checkpoint.is_file() else checkpoint / "checkpoint"
    try:
        index = serialization.msgpack_restore(path.read_bytes())
        version = index["version"]
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}. Name a folder such as checkpoint_1000.") from error
    except Exception as error:  # msgpack raises several kinds for bytes that are none
        raise UserError(f"{path} is no T5X checkpoint ({type(error).__name__}: {error}).") from error
    if version != VERSION:
        raise UserError(f"{path} is of version {version}; version {VERSION} can be read.")
    return path.parent, index


def _of(tree: object, *path: str) -> object:
    for name in path:
        if not isinstance(tree, dict) or name not in tree:
            raise UserError(f"the T5X checkpoint has no {'/'.join(path)}.")
        tree = tree[name]
    return tree


def _flat(tree: dict, prefix: str = "") -> dict[str, object]:
    """`decoder/…/kernel` -> array or spec."""
    out: dict[str, object] = {}
    for name, value in tree.items():
        if isinstance(value, dict) and not {"driver", "kvstore"} <= set(value):
            out.update(_flat(value, f"{prefix}{name}/"))
        else:
            out[prefix + name] = value
    return out


def _shape(value: object) -> tuple[int, ...] | None:
    """An inline array's shape, or that in a spec; None where the spec does not say it."""
    if isinstance(value, dict):
        shape = (value.get("metadata") or {}).get("shape")
        return None if shape is None else tuple(shape)
    return np.shape(value)


def _check_tree(found: dict[str, object], table: list[Leaf]) -> None:
    wanted = {"/".join(leaf.path): leaf.shape for leaf in table}
    wrong = [f"{name} is missing" for name in wanted if name not in found]
    wrong += [f"{name} {_shape(found[name])} is extra" for name in found if name not in wanted]
    for name, shape in wanted.items():
        if name in found and _shape(found[name]) not in (None, shape):
            wrong.append(f"{name} is {_shape(found[name])}, not {shape}")
    if wrong:
        more = f", and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise UserError(f"the T5X checkpoint does not fit the config's model: {'; '.join(wrong[:5])}{more}.")


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
        raise UserError(f"{name} of the T5X checkpoint cannot be read ({str(error).splitlines()[0][:200]}).") from error


def _assembled(config: Config, table: list[Leaf], read) -> dict[str, np.ndarray]:
    arrays = {name: np.empty(shape, np.float32) for name, shape in stored_shapes(config.model)}
    for leaf in table:
        array = read(leaf)
        if array.shape != leaf.shape:
            raise UserError(f"{'/'.join(leaf.path)} of the T5X checkpoint is {array.shape}, not {leaf.shape}.")
        arrays[leaf.ours][... if leaf.layer is None else leaf.layer] = array.reshape(leaf.ours_shape)
    return arrays


def _moments(folder: Path, config: Config, table: list[Leaf], found: dict[str, object]) -> dict | None:
    """The moments as the optimizer palm keeps them; None where it is not palm, or the checkpoint has others."""
    names = {(leaf.path, m): f"{'/'.join(leaf.path)}/{m}" for leaf in table for m in MOMENTS}
    shapes = {name: leaf.shape for leaf in table for name in (names[leaf.path, m] for m in MOMENTS)}
    if config.optim.name != "palm" or any(_shape(found.get(name)) != shape for name, shape in shapes.items()):
        return None
    read = {
        ours: _assembled(
            config, table, lambda leaf, m=m: _array(folder, found[names[leaf.path, m]], names[leaf.path, m])
        )
        for m, ours in MOMENTS.items()
    }
    return _nested(
        {name: {ours: arrays[name] for ours, arrays in read.items()} for name, _ in stored_shapes(config.model)}
    )


def _nested(values: dict[str, object]) -> dict:
    nested: dict = {}
    for name, value in values.items():
        _put(nested, tuple(name.split("/")), value)
    return nested
