"""ReFT runs as folders in the layout of pyreft (pyvene's `intervenable_model`) and back.

A folder has config.json and a file for each intervention, with the names and shapes of pyreft's
tensors. pyreft's own files are pickles, which are never read or written here: the files are
safetensors instead, and docs/interop.md has the lines that convert them.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import jax
import numpy as np

from paxlike.accounting.adapted_parameters import trained_count, trained_shapes
from paxlike.adapt.merge import assembled
from paxlike.architecture.reft import interventions
from paxlike.architecture.stack import layer_places
from paxlike.config import AdaptConfig, Config, ModelConfig, UserError
from paxlike.files import new_folder
from paxlike.infer.generate import for_inference
from paxlike.infer.logits import logits
from paxlike.interop import safetensors
from paxlike.interop.conversion_result import Converted
from paxlike.interop.hf import PROBE_TOKENS, nested
from paxlike.interop.new_adapter_runs import open_base, write_adapter_run
from paxlike.training.checkpoint_reader import CheckpointReader
from paxlike.training.loaded_run import numerics_of, on_one_device
from paxlike.training.run_directory import read_config

Array = np.ndarray
Form = Literal["loreft", "direft"]
TYPES: dict[Form, str] = {"loreft": "LoreftIntervention", "direft": "NodireftIntervention"}
"""The classes with the formulas of the paper. (pyreft's DireftIntervention is another: one of its
matrices is orthonormal.)"""
TENSORS: dict[Form, tuple[str, str, str]] = {
    "loreft": ("weight", "rotate_layer", "bias"),
    "direft": ("learned_source.weight", "proj_layer.weight", "learned_source.bias"),
}
"""Form -> the names of W, R and b there; rotate_layer is R transposed."""
ORTHONORMAL = 0.02
"""How much R R^T may differ from the identity in a file, which may be in bfloat16."""


def is_folder(folder: Path) -> bool:
    """Whether a folder has interventions, by its config.json."""
    config = folder / "config.json"
    return config.is_file() and "intervention_types" in config.read_text()


def export(run: Path, out: Path, step: int | None = None) -> Converted:
    """Writes the interventions of a run. Raises UserError if it also trains weights."""
    config = read_config(run)
    model, adapt = config.model, config.adapt
    if adapt.train:
        raise UserError(
            f"{run} also trains {', '.join(adapt.train)}; pyreft's folder has interventions only."
        )
    stored = CheckpointReader(run / "checkpoints", step, trained_only=True)
    rows = []
    with new_folder(out) as folder:
        for number, names in enumerate(interventions(adapt)):
            for layer, group, at in _places(model, adapt):
                parts = [stored.param(f"{group}/{spec.name}", at) for spec in names]
                _write(folder / _file(layer, number), adapt.form, parts)
                rows.append((layer, number))
        (folder / "config.json").write_text(json.dumps(_settings(adapt, rows), indent=2) + "\n")
    return Converted(out, trained_count(model, adapt), "the numbers of the run", [])


def load(source: Path, base: Path, out: Path, positions: str) -> Converted:
    """Makes an adapter run of a folder and its base, a Hugging Face folder or a run.

    positions: `adapt.positions`, which pyreft's config does not have; empty: those of the config.
    Raises UserError, and leaves nothing behind, for what has no equivalent, a tensor that is
    missing or of another shape, and interventions that change no logits.
    """
    opened = open_base(base)
    model = opened.config.model
    adapt, found = _read_folder(source, model, positions)
    params = {name: np.zeros(shape, np.float32) for name, shape in trained_shapes(model, adapt)}
    for number, names in enumerate(interventions(adapt)):
        for layer, group, at in _places(model, adapt):
            for spec, value in zip(names, found[layer, number], strict=True):
                params[f"{group}/{spec.name}"][at] = value
    with new_folder(out) as folder, on_one_device():
        config, weights = write_adapter_run(folder, opened, adapt, params)
        change = _change(config, weights, params)
    return Converted(out, trained_count(model, adapt), change, [])


def _places(model: ModelConfig, adapt: AdaptConfig) -> Iterator[tuple[int, str, int]]:
    """(layer, group of blocks, index in the trained stack) of every intervened layer."""
    seen: dict[str, int] = {}
    for layer, (group, _) in enumerate(layer_places(model)):
        if not adapt.layers or layer in adapt.layers:
            yield layer, group.name, seen.setdefault(group.name, 0)
            seen[group.name] += 1


def _file(layer: int, number: int) -> str:
    return f"intkey_{_key(layer, number)}.safetensors"


def _key(layer: int, number: int) -> str:
    return f"layer_{layer}_comp_block_output_unit_pos_nunit_1#{number}"


def _write(path: Path, form: Form, parts: list[Array]) -> None:
    source, rotate, bias = parts
    parts = [source, rotate.T if form == "loreft" else rotate, bias]
    entries = [
        safetensors.Entry(name, value.shape, value.copy)
        for name, value in zip(TENSORS[form], parts, strict=True)
    ]
    safetensors.write_file(path, entries, np.dtype("float32"))


def _settings(adapt: AdaptConfig, rows: list[tuple[int, int]]) -> dict:
    """config.json; `positions` and `tied` are our own."""
    nothing = [None] * 8
    return {
        "representations": [
            [layer, "block_output", "pos", 1, adapt.rank, *nothing] for layer, _ in rows
        ],
        "intervention_types": [_kind(adapt.form)] * len(rows),
        "intervention_dimensions": [None] * len(rows),
        "intervention_constant_sources": [True] * len(rows),
        "sorted_keys": [_key(*row) for row in rows],
        "mode": "parallel",
        "positions": adapt.positions,
        "tied": adapt.tied,
    }


def _kind(form: Form) -> str:
    return f"<class 'pyreft.interventions.{TYPES[form]}'>"


def _read_folder(
    folder: Path, model: ModelConfig, positions: str
) -> tuple[AdaptConfig, dict[tuple[int, int], list[Array]]]:
    """The adapter, and W, R and b by (layer, number). Raises UserError naming what does not fit."""
    path = folder / "config.json"
    try:
        settings = json.loads(path.read_text())
        kinds = {str(kind) for kind in settings["intervention_types"]}
        rows = [list(row) for row in settings["representations"]]
        layers = [int(row[0]) for row in rows]
        ranks = {row[4] for row in rows}
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(f"{path} is not the config of interventions: {error!r}.") from error
    forms = [form for form in TYPES if kinds == {_kind(form)}]
    if not forms or len(ranks) != 1 or any(row[1:4] != ["block_output", "pos", 1] for row in rows):
        raise UserError(
            f"{path} has {', '.join(sorted(kinds))} with low_rank_dimension "
            f"{', '.join(map(str, ranks))} on {', '.join(sorted({str(row[1]) for row in rows}))}; "
            f"supported are {' or '.join(TYPES.values())} alone, of one rank, on block_output."
        )
    positions = positions or settings.get("positions", "")
    if not positions:
        raise UserError(f"{path} does not have the positions; give them: --positions f7+l7.")
    own = sorted(set(layers))
    counts = {layers.count(layer) for layer in own}
    if counts - {1, 2} or len(counts) != 1 or own[-1] >= model.layers:
        raise UserError(
            f"{path} has interventions on layers {', '.join(map(str, layers))}; each must be there "
            f"once, or twice if untied, and the model has layers 0 to {model.layers - 1}."
        )
    every = own == list(range(model.layers))
    adapt = AdaptConfig(
        "reft", ranks.pop(), form=forms[0], positions=positions, tied=counts == {1},
        layers=() if every else tuple(own),
    )  # fmt: skip
    numbers = range(counts.pop())
    if len(numbers) != len(interventions(adapt)):
        raise UserError(f"{path} has two interventions a layer, but positions {positions}.")
    return adapt, {
        (layer, number): _read(folder / _file(layer, number), adapt, model)
        for layer in own
        for number in numbers
    }


def _read(path: Path, adapt: AdaptConfig, model: ModelConfig) -> list[Array]:
    """W, R and b of one file."""
    if not path.is_file():
        pickle = re.sub(r"safetensors$", "bin", path.name)
        raise UserError(
            f"there is no {path}. Files of pyreft ({pickle}) are pickles, which are not read; "
            "docs/interop.md has the lines that convert them."
        )
    files, (R, D) = safetensors.Tensors(path.parent, path.name), (adapt.rank, model.d_model)
    rotated = (D, R) if adapt.form == "loreft" else (R, D)
    expected = dict(zip(TENSORS[adapt.form], ((R, D), rotated, (R,)), strict=True))
    if files.shapes != expected:
        raise UserError(f"{path} has {files.shapes}; this model needs {expected}.")
    source, rotate, bias = (files.read(name).astype(np.float32) for name in expected)
    if adapt.form == "loreft":
        rotate = rotate.T
        difference = float(np.abs(rotate @ rotate.T - np.eye(R)).max())
        if not difference <= ORTHONORMAL:
            raise UserError(
                f"the columns of rotate_layer in {path} are not orthonormal: R R^T differs from "
                f"the identity by {difference:.2g}."
            )
    return [source, rotate, bias]


def _change(config: Config, weights: dict, params: dict[str, Array]) -> str:
    """How much the interventions change logits. Raises UserError if they do not."""
    model, numerics = config.model, numerics_of(config)
    tokens = np.random.default_rng(0).integers(0, model.vocab_size, (1, PROBE_TOKENS))
    trained = jax.tree.map(jax.numpy.asarray, nested(params))
    both = assembled(config, numerics, weights, trained)
    after, before = (
        logits(model, numerics, for_inference(model, numerics, one), tokens)
        for one in (both, weights)
    )
    change = float(np.abs(after - before).max() / before.std())
    if not change:
        raise UserError("the interventions do not change the base's logits. Nothing was written.")
    return f"logits differ by {change:.1e} of their standard deviation from the base's"
