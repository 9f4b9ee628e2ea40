"""`paxlike.train`: trains a model from Python, or resumes an existing run."""

from pathlib import Path

import jax

from paxlike.api.run import Run, open_run
from paxlike.config import Config, Hosts, UserError, load
from paxlike.data.location import located
from paxlike.interop.init_sources import open_initial
from paxlike.parallel import job, runtime
from paxlike.training.loop import Result
from paxlike.training.loop import train as run_loop
from paxlike.training.run_directory import next_run_directory


def train(
    config: Config | str | Path,
    run_dir: str | Path | None = None,
    *,
    fake_devices: int | None = None,
    hosts: Hosts | None = None,
    deterministic: bool = False,
) -> Run:
    """Trains a model, or resumes an existing run. The call returns when the run is finished.

    config: a Config, or the path or name of a config file. run_dir: without it a new one is made,
    runs/NAME-1, runs/NAME-2, ... fake_devices: run on this many CPU devices; settable only before
    JAX is first used. Raises UserError for a config, data or run directory that does not work, and
    KeyboardInterrupt when SIGINT stopped the run (after saving a checkpoint).
    """
    if not runtime.started():
        runtime.start(fake_devices, hosts, deterministic)
    elif fake_devices not in (None, jax.device_count()):
        raise UserError(
            f"fake_devices is {fake_devices}, but JAX already uses {jax.device_count()} devices in "
            "this process; set it before the first use of JAX."
        )
    folder, result = train_here(config, run_dir)
    if result.stopped_by:
        raise KeyboardInterrupt(
            f"stopped by {result.stopped_by} at step {result.step}; the same call resumes {folder}."
        )
    return open_run(folder)


def train_here(
    config: Config | str | Path,
    run_dir: str | Path | None,
    given: frozenset[str] = frozenset(),
) -> tuple[Path, Result]:
    """(run directory, how the run ended), on the platform that `runtime.start` has set up.

    given: fields of the model that `init.config` does not take from the source.
    """
    config = config if isinstance(config, Config) else load(config)
    chosen = job.first(
        "run directory", lambda: str(run_dir or next_run_directory(Path("runs"), config.name)), 60
    )
    folder = located(chosen)
    resolved, source = job.each(
        "the source of the first parameters", lambda: open_initial(config, folder, given), 7200
    )
    return folder, run_loop(resolved, folder, source)
