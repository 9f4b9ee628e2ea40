"""`paxlike plan` and `paxlike.plan`: compiles plans, and prints or writes them."""

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from rich.console import Console, RenderableType

from paxlike.accounting.memory import memory_estimate
from paxlike.accounting.report.document import check_page, write_page
from paxlike.accounting.units import gib
from paxlike.config import Config, UserError, load
from paxlike.parallel import runtime
from paxlike.parallel.compilers import silent
from paxlike.planning.expert_transports import with_transports
from paxlike.planning.html import plan_page, sweep_page
from paxlike.planning.make_plan import plan, plan_and_step, prepare, with_remedies
from paxlike.planning.quantized import against_unquantized
from paxlike.planning.sweep import check
from paxlike.planning.sweep import sweep as sweep_plans
from paxlike.planning.tables import describe, sweep_table
from paxlike.planning.topology import Cluster, MissingCompiler
from paxlike.planning.trace import is_trace, write_trace
from paxlike.planning.tune import changed_config, tune
from paxlike.planning.tuned import describe_tuned, differing, write_tuned_config


@dataclasses.dataclass(frozen=True)
class Output:
    """What `paxlike plan` writes besides its tables."""

    json: bool = False
    html: Path | None = None
    trace: Path | None = None


def run(config: Config, topology: str, pods: int | None, output: Output) -> int:
    """Returns the exit code: 0 if the step fits (or no limit is known), 1 if not. Raises
    UserError.
    """
    _check(output)
    config, made = _start(config, topology, pods)
    say = _say if sys.stderr.isatty() else lambda text: None
    try:
        result, facts, step = plan_and_step(config, made, say)
        result = against_unquantized(with_remedies(result, config, made, say), config, made, say)
        result = with_transports(result, config, made, say)
    except MissingCompiler as error:
        raise UserError(f"{error}\n\n{_estimate(config, made)}") from error
    if output.html:
        write_page(output.html, "plan", plan_page(result, facts, step))
    if output.trace:
        write_trace(output.trace, f"{config.name} on {_title(made)}", facts, step)
    _print(result, describe, output.json)
    return 1 if result["fits"] is False else 0


def run_sweep(config: Config, topology: str, pods: int | None, output: Output) -> int:
    """Like `run`, for several variants of the config. Returns the exit code of the best."""
    _check(output)
    config, made = _start(config, topology, pods)
    try:
        result = _sweep(config, made, _say)
    except MissingCompiler as error:
        raise UserError(f"{error}\n\n{_estimate(config, made)}") from error
    if output.html:
        page = sweep_page(config.name, _title(made), made.usable, result["sweep"])
        write_page(output.html, "plan", page)
    _print(result, lambda result: sweep_table(result["sweep"]), output.json)
    return 1 if result["fits"] is False else 0


@dataclasses.dataclass(frozen=True)
class Search:
    """What `paxlike plan --tune` needs besides the config."""

    config_path: str
    minutes: float
    save: Path | None


def run_tune(
    config: Config, topology: str, pods: int | None, output: Output, search: Search
) -> int:
    """Searches the fastest step. Returns 0 if a candidate fits, else 1. Raises UserError."""
    if search.save and search.save.exists():
        raise UserError(f"{search.save} exists and is not overwritten. Choose another file.")
    config, made = _start(config, topology, pods)
    try:
        result = tune(config, made, search.minutes, _say)
    except MissingCompiler as error:
        raise UserError(f"{error}\n\n{_estimate(config, made)}") from error
    best = changed_config(config, tuple(result["rows"][0]["changes"]))
    changes = differing(load(search.config_path), best)
    _print(result, lambda result: describe_tuned(result, search.config_path, changes), output.json)
    if search.save:
        write_tuned_config(search.save, result, search.config_path, changes)
    return 0 if result["rows"][0]["fits"] else 1


def _check(output: Output) -> None:
    """Raises UserError if a file cannot be written: before minutes of compiling."""
    if output.html:
        check_page(output.html, "plan")
    if output.trace and output.trace.exists() and not is_trace(output.trace):
        raise UserError(
            f"{output.trace} exists and is not a trace that `paxlike plan` wrote; it is not "
            "overwritten. Choose another file."
        )


def _print(result: dict, table: Callable[[dict], RenderableType], as_json: bool) -> None:
    if as_json:
        print(json.dumps(result, indent=2))
    else:
        width = None if sys.stdout.isatty() else 140
        Console(width=width, highlight=False, markup=False).print(table(result))


def compile_plan(config: Config, topology: str, pods: int | None) -> dict[str, Any]:
    """The plan of a config (see `paxlike.plan`). Raises UserError."""
    config, made = _start(config, topology, pods)
    quiet: Callable[[str], None] = lambda text: None  # noqa: E731
    result = with_remedies(plan(config, made, quiet), config, made, quiet)
    return against_unquantized(result, config, made, quiet)


def _start(config: Config, topology: str, pods: int | None) -> tuple[Config, Cluster]:
    config, made = prepare(config, topology, pods)
    if not runtime.started():
        runtime.start(made.device_count if made.platform == "cpu" else 1)
    elif made.platform == "cpu" and jax.device_count() < made.device_count:
        raise UserError(
            f"{topology} needs {made.device_count} CPU devices, but JAX already uses "
            f"{jax.device_count()} in this process; call paxlike.plan first, or pass fake_devices "
            "to paxlike.train."
        )
    with silent():
        jax.devices()
    return config, made


def _sweep(config: Config, made: Cluster, say: Callable[[str], None]) -> dict:
    check(config)
    rows = sweep_plans(config, made, say)
    return {
        "config": config.name,
        "cluster": _title(made),
        "usable": made.usable,
        "fits": rows[0]["fits"],
        "sweep": rows,
    }


def _title(made: Cluster) -> str:
    return f"{made.pods} x {made.name}" if made.pods > 1 else made.name


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _estimate(config: Config, made: Cluster) -> str:
    """The estimate by arithmetic, for a cluster whose compiler is not installed."""
    estimate = memory_estimate(config, made.device_count)
    lines = [
        f"Estimated by arithmetic, nothing compiled: {gib(estimate.total)} of "
        f"{gib(made.usable or 0)} usable on each device."
    ]
    lines += [
        f"  {gib(part.bytes):>12}  {part.name}: {part.description}" for part in estimate.parts
    ]
    return "\n".join(lines)
