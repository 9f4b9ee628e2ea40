"""Layer pruning of a run: measured on text, shown, and written as a complete run."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import NamedTuple

import jax
from rich.table import Table

from paxlike.accounting.parameters import parameter_count
from paxlike.accounting.report.document import write_page
from paxlike.adapt.prune import (
    Drop,
    best,
    check_layers,
    possible_drops,
    pruned_model,
    pruned_params,
    simple_start,
)
from paxlike.config import Config, DataConfig, InitConfig, MeshConfig, UserError, to_json
from paxlike.data.compare_tokenizers import tokenizer_difference
from paxlike.data.source import AnySource, check_vocabulary
from paxlike.data.store import open_store
from paxlike.data.tokenizer import load_tokenizer
from paxlike.files import new_folder
from paxlike.interop.conversion_result import Converted
from paxlike.interop.pruning_page import drops_table, pruning_page
from paxlike.training.checkpoint import write_checkpoint
from paxlike.training.layer_distances import Measured, Text, measure
from paxlike.training.loaded_run import LoadedRun, load_run, open_recorded
from paxlike.training.run_directory import read_config

RECORD, PAGE = "pruning.json", "pruning.html"


class Choice(NamedTuple):
    """What the user asks for."""

    layers: int | None
    """How many to drop; None: nothing is chosen."""
    simple: bool
    """The deepest layers but the very last, instead of those with the smallest distance."""


class Pruning(NamedTuple):
    """A measured run, and the layers to drop."""

    folder: Path
    run: LoadedRun
    text: Text
    measured: Measured
    drops: list[list[Drop]]
    """All that can be dropped, by number of layers from 1 on."""
    chosen: Drop | None
    simple: bool

    @property
    def about(self) -> str:
        m, data = self.measured, self.text.data
        return (
            f"{self.folder} at step {self.run.step}, at the last token of {m.samples:,} sequences "
            f"of at most {data.sequence_length:,} tokens of {self.text.source.name}"
        )

    @property
    def table(self) -> Table:
        return drops_table(self.drops, self.chosen)

    def page(self, result: str = "") -> str:
        title = f"{self.run.config.name}: layers by angular distance"
        lines = [self.about, *([result] if result else [])]
        return pruning_page(title, ". ".join(lines), self.drops, self.chosen, self.table)

    def write_page(self, path: Path) -> None:
        """Raises UserError if another file is there."""
        write_page(path, "prune", self.page())


def read_prunable(folder: Path, choice: Choice) -> Config:
    """The config of a run. Raises UserError if it has an adapter, or the choice does not fit it."""
    config = read_config(folder)
    if config.adapt.active:
        raise UserError(
            f"{folder} is an adapter run, whose checkpoints hold no layers of its base. Make a "
            f"complete run of both first: paxlike adapt merge {folder} OUT"
        )
    check_layers(config.model, choice.layers, choice.simple)
    return config


def open_text(
    folder: Path, config: Config, store: str, sequence_length: int
) -> tuple[AnySource, DataConfig]:
    """The data of the run, or of the token store given. sequence_length: 0 is the run's.

    Raises UserError if there is none, or the tokenizer is not the run's.
    """
    data = config.data
    if not store:
        if not (folder / "data.json").exists():
            raise UserError(
                f"{folder} records no data, because it was converted, merged or pruned. Give a "
                "token store with validation text: --data.store STORE, prepared with paxlike data "
                f"prepare --tokenizer {folder}"
            )
        length = sequence_length or data.sequence_length
        return open_recorded(folder, data), dataclasses.replace(data, sequence_length=length)
    source = open_store(store)
    check_vocabulary(source, config.model)
    if different := tokenizer_difference(load_tokenizer(folder / "tokenizer"), source.tokenizer):
        raise UserError(
            f"the tokenizer of {source.name} is not the run's: {different}. Prepare the text with "
            f"the run's tokenizer: paxlike data prepare --tokenizer {folder}"
        )
    # A store that is packed whole has its own length, the others 0.
    length = sequence_length or source.manifest.sequence_length or data.sequence_length
    whole = source.manifest.packing == "whole"
    return source, DataConfig(
        store=store, packing="whole" if whole else "split", sequence_length=length
    )


def measure_run(
    folder: Path, choice: Choice, text: Text, mesh: MeshConfig, step: int | None
) -> Pruning:
    """Measures a run and chooses layers. Raises UserError as `measure` and `load_run` do."""
    run = load_run(folder, mesh, step)
    measured = measure(run, text, "measuring the run")
    model, chosen = run.config.model, None
    drops = possible_drops(model, measured.distances)
    if choice.layers is not None:
        of_size = drops[choice.layers - 1]
        start = simple_start(model, choice.layers)
        chosen = next(d for d in of_size if d.start == start) if choice.simple else best(of_size)
    return Pruning(folder, run, text, measured, drops, chosen, choice.simple)


def write_pruned(pruning: Pruning, out: Path, mesh: MeshConfig) -> Converted:
    """Writes a complete run without the chosen layers, with pruning.json and pruning.html in it,
    and measures its loss on the same text. It has no optimizer state.

    Raises UserError, and leaves nothing behind, if `out` exists or cannot be written.
    """
    drop, run, before = pruning.chosen, pruning.run, pruning.measured
    assert drop is not None
    model = pruned_model(run.config.model, drop)
    config = dataclasses.replace(run.config, model=model, init=InitConfig())
    params = pruned_params(run.config.model, jax.device_get(run.params), drop)
    with new_folder(out) as folder:
        (folder / "config.json").write_text(to_json(config))
        shutil.copytree(pruning.folder / "tokenizer", folder / "tokenizer")
        position = {"step": run.step}
        write_checkpoint(folder / "checkpoints", {"params": params}, run.step, position)
        after = measure(load_run(folder, mesh), pruning.text, "measuring the pruned run")
        loss = f"loss {before.loss:.4f} before, {after.loss:.4f} after"
        (folder / RECORD).write_text(json.dumps(_record(pruning, after.loss), indent=2) + "\n")
        (folder / PAGE).write_text(pruning.page(f"Without {drop.name}: {loss}"))
    dropped = f"{drop.name} of 0 to {run.config.model.layers - 1} dropped, {loss}"
    return Converted(out, parameter_count(model), dropped, [])


def _record(pruning: Pruning, loss_after: float) -> dict:
    """pruning.json. distances: row n - 1, column l is that of the n layers from l on."""
    drop, measured, text = pruning.chosen, pruning.measured, pruning.text
    assert drop is not None
    layers = pruning.run.config.model.layers
    return {
        "run": str(pruning.folder),
        "step": pruning.run.step,
        "layers": layers,
        "dropped": list(range(drop.start, drop.start + drop.layers)),
        "rule": "deepest but the last" if pruning.simple else "smallest distance",
        "distance": drop.distance,
        "data": {"location": text.source.location, "fingerprint": text.source.fingerprint},
        "sequence_length": text.data.sequence_length,
        "samples": measured.samples,
        "loss_before": measured.loss,
        "loss_after": loss_after,
        "distances": [
            [float(measured.distances[start, start + size]) for start in range(layers - size + 1)]
            for size in range(1, layers + 1)
        ],
    }
