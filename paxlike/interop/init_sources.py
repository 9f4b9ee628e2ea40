"""Opens what a run starts from (`--init.from`), by what is there."""

import dataclasses
from pathlib import Path

from paxlike.config import Config, ModelConfig, UserError
from paxlike.data.location import in_bucket, located
from paxlike.interop.hf_source import HfSource, read_config
from paxlike.interop.t5x_source import T5xSource
from paxlike.training.init_plan import STORAGE
from paxlike.training.init_source import RunSource, Source
from paxlike.training.run_directory import newest_step
from paxlike.training.run_directory import read_config as read_run_config


def open_initial(
    config: Config, folder: Path, given: frozenset[str]
) -> tuple[Config, Source | None]:
    """(the run's config, the source of its first parameters).

    A run in `folder` that has a checkpoint keeps its own `init` section and, with `init.config`,
    its model; the source is not opened and may be gone, unless the run adapts it. given: fields of
    the model that `init.config` does not take from the source. Raises UserError.
    """
    init = config.init
    if init.source and located(init.source).resolve() == folder.resolve():
        raise UserError(
            f"--init.from {init.source} is the run directory itself. Give another --run-dir to "
            "start a new run from it, or leave out --init.from to resume it."
        )
    if newest_step(folder) is not None:
        known = read_run_config(folder)
        config = _resumed(config, known, folder, given)
        # Checkpoints of an adapter run do not have its base.
        needed = known.adapt.active and known.init.source
        return config, open_source(known.init.source, config) if needed else None
    if not init.source:
        return config, None
    source = open_source(init.source, config)
    if init.config:
        config = dataclasses.replace(config, model=_shaped(config.model, source.model, given))
    return config, source


def _resumed(config: Config, known: Config, folder: Path, given: frozenset[str]) -> Config:
    """The config, with the `init` section of the run and what follows from it.

    Raises UserError if the config names another source than the run began with.
    """
    source = config.init.source
    if source and source != known.init.source:
        began = f"from {known.init.source}" if known.init.source else "with random parameters"
        raise UserError(
            f"--init.from {source}: the run {folder} has a checkpoint and began {began}, so no "
            "parameters would be read. Leave out --init.from to resume the run, or give another "
            "--run-dir."
        )
    model = _shaped(config.model, known.model, given) if known.init.config else config.model
    return dataclasses.replace(config, model=model, init=known.init)


def _shaped(ours: ModelConfig, theirs: ModelConfig, given: frozenset[str]) -> ModelConfig:
    """The source's model, with the fields of ours that were given or only describe storage."""
    kept = {field: getattr(ours, field) for field in (*STORAGE, *given)}
    return dataclasses.replace(theirs, **kept)


def open_source(path: str, config: Config) -> Source:
    """Opens a Hugging Face directory, a run directory or a T5X checkpoint. Raises UserError."""
    folder = located(path)
    if in_bucket(folder):
        raise UserError(f"--init.from {path} is in a bucket; copy it to a disk first.")
    if not folder.exists():
        raise UserError(
            f"--init.from {path}: there is no {folder}. Give a Hugging Face directory, a run "
            "directory or a T5X checkpoint."
        )
    if (folder / "checkpoints").is_dir():
        return RunSource(folder)
    if folder.is_file() or (folder / "checkpoint").is_file():
        if config.init.config:
            raise UserError(
                f"--init.from {path} is a T5X checkpoint, which has no config to take the model "
                "from. Leave out --init.config, and set the model in CONFIG."
            )
        return T5xSource(folder, config.model)
    if steps := sorted(str(one) for one in folder.glob("checkpoint_*")):
        raise UserError(f"--init.from {path} has T5X checkpoints; give one: {', '.join(steps)}.")
    if "model_type" in read_config(folder):
        return HfSource(folder)
    raise UserError(
        f"--init.from {path}: {folder} is neither a Hugging Face directory (its config.json has no "
        "model_type) nor a run directory with checkpoints."
    )
