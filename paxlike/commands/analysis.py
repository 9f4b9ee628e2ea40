"""Commands that analyze a config or a run: info, report, plan."""

import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import Annotated

from paxlike.commands.flags import check_own_model, flags_of, platform, take
from paxlike.config import Config, UserError, load


def info_command(arguments: list[str]) -> None:
    import tyro

    @dataclasses.dataclass(frozen=True)
    class InfoFlags:
        """Show the parameters, FLOPs per token, memory per device and sharding of CONFIG."""

        config: Annotated[Config, tyro.conf.arg(name="")]
        devices: int | None = None
        """Number of devices, if the config leaves a mesh axis open (-1)."""
        energy: bool = False
        """Estimate joules per forward pass by precision and process node."""
        flops: bool = False
        """Count the train step's FLOPs three ways: by formula, in the traced program and in the
        compiled program. Takes seconds. Exits with 1 if more than 2% is unexplained.
        """
        json: bool = False
        """Print JSON."""

    path, rest = take(arguments, "CONFIG", "info")
    flags = flags_of(
        InfoFlags, rest, "paxlike info CONFIG", InfoFlags(load(path) if path else Config())
    )
    check_own_model(flags.config, "info")
    from paxlike.accounting.info import as_dict, comparison_table, describe

    attention, counts = _flop_counts(flags.config) if flags.flops else ("", ())
    if flags.json:
        values = as_dict(flags.config, flags.devices, flags.energy)
        values["flops_per_token"]["countings"] = [count.as_dict() for count in counts]
        print(json.dumps(values, indent=2))
    else:
        import rich

        extra = [comparison_table(attention, counts)] if counts else []
        extra += _sharding(flags.config, flags.devices)
        rich.print(describe(flags.config, flags.devices, flags.energy, extra))
    if not all(count.agrees for count in counts):
        print("paxlike: the FLOP counts do not agree; see the table.", file=sys.stderr)
        sys.exit(1)


def _flop_counts(config: Config) -> tuple[str, tuple]:
    runtime = platform()
    runtime.start()
    from paxlike.planning.flop_counts import count_three_ways

    return count_three_ways(config)


def _sharding(config: Config, devices: int | None) -> list:
    """The sharding table, if the mesh is known."""
    from paxlike.accounting.parameters import stored_shapes
    from paxlike.parallel.sharding_table import sharding_table

    sizes = config.mesh.axes.values()
    if devices is None and -1 in sizes:
        return []
    mesh = config.mesh.resolve(devices or math.prod(sizes))
    return [sharding_table(stored_shapes(config.model), mesh)]


def report_command(arguments: list[str]) -> None:
    import tyro

    @dataclasses.dataclass(frozen=True)
    class ReportFlags:
        """Compare runs: print a table and write one HTML page with plots. Does not need JAX.

        For a run of another program: --config CONFIG --tokens-per-second 238300 --chip v4
        --chips 6144
        """

        runs: tyro.conf.Positional[tuple[Path, ...]] = ()
        """Run directories."""
        html: Path | None = None
        """File of the page. Default: RUN/report.html for one run, report.html for several."""
        json: bool = False
        """Print JSON, and write no page unless --html is given."""
        config: Path | None = None
        """A config instead of runs: report utilization at a given rate."""
        tokens_per_second: float | None = None
        """Tokens per second of all chips together."""
        chip: str | None = None
        """Name in the hardware table: v4, v5e, h100, ..."""
        chips: float | None = None
        dtype: str = "bfloat16"
        """Number format of the peak in the denominator."""

    flags = flags_of(ReportFlags, arguments, "paxlike report")
    from paxlike.accounting.report.summary import for_json

    histories, summaries = _summaries(flags)
    if flags.json:
        print(json.dumps(for_json(summaries), indent=2, allow_nan=False))
    else:
        import rich

        from paxlike.accounting.report.table import describe

        rich.print(describe(summaries))
    default = None if flags.json or flags.config else Path("report.html")
    if default and len(flags.runs) == 1:
        default = flags.runs[0] / default
    if path := flags.html or default:
        from paxlike.accounting.report.document import write_page
        from paxlike.accounting.report.page import page

        write_page(path, "report", page(summaries, histories))
        if not flags.json:
            print(f"page: {path}")


def _summaries(flags) -> tuple[list, list[dict]]:
    """(histories, summaries) of the runs, or of the config and rate. Raises UserError for flags
    that cannot be combined.
    """
    from paxlike.accounting.history import read_history
    from paxlike.accounting.report.summary import from_rate, summarize

    given = {
        f"--{name.replace('_', '-')}": getattr(flags, name)
        for name in ("tokens_per_second", "chip", "chips")
    }
    missing = [name for name, value in given.items() if value is None]
    if bool(flags.runs) == bool(flags.config):
        raise UserError(
            "`paxlike report` requires either run directories or --config CONFIG: paxlike report "
            "RUN [RUN ...]"
        )
    if flags.config and missing:
        raise UserError(
            f"--config also requires {', '.join(missing)}: the measured rate and its hardware."
        )
    if flags.runs and len(missing) < len(given):
        raise UserError(
            f"{', '.join(set(given) - set(missing))} require --config; a run directory records "
            "them."
        )
    histories = [read_history(run) for run in flags.runs]
    summaries = [summarize(history) for history in histories]
    if flags.config:
        config = load(flags.config)
        summaries = [
            from_rate(config, flags.tokens_per_second, flags.chip, flags.chips, flags.dtype)
        ]
    return histories, summaries


def plan_command(arguments: list[str]) -> None:
    import tyro

    @dataclasses.dataclass(frozen=True)
    class PlanFlags:
        """Compile CONFIG's train step ahead of time for a cluster you don't have: does it fit,
        which collectives does it run, how fast will it be?
        """

        config: Annotated[Config, tyro.conf.arg(name="")]
        topology: str = ""
        """v4:12x16x16 (TPU chips along each axis), h100:4x8 (hosts x GPUs per host) or cpu:8."""
        pods: int | None = None
        """Number of pods, joined by the data-center network. Default: mesh.pod."""
        sweep: bool = False
        """Compile several meshes, remat policies and batch sizes, and list them, best first."""
        tune: bool = False
        """Search the mesh, remat policy, accumulation and batch size with the fastest step."""
        minutes: float = 15.0
        """Time limit of --tune. Another run continues from the cache."""
        save: Path | None = None
        """Write the config that --tune found to this Python file."""
        json: bool = False
        """Print JSON."""
        html: Path | None = None
        """Also write an HTML page. Replaces only an earlier page of `paxlike plan`."""
        trace: Path | None = None
        """Also write the simulated step as a trace for ui.perfetto.dev. Replaces only an earlier
        trace of `paxlike plan`.
        """

    path, rest = take(arguments, "CONFIG", "plan")
    flags = flags_of(
        PlanFlags, rest, "paxlike plan CONFIG", PlanFlags(load(path) if path else Config())
    )
    if not flags.topology:
        raise UserError("`paxlike plan` requires --topology: v4:4x4x4, h100:4x8, cpu:8.")
    check_own_model(flags.config, "plan")
    platform()
    if flags.trace and (flags.sweep or flags.tune):
        raise UserError("--trace shows one step; use it without --sweep and --tune.")
    if flags.tune and (flags.sweep or flags.html):
        raise UserError("--tune prints a table; use it without --sweep and --html.")
    if flags.save and not flags.tune:
        raise UserError("--save writes the config that --tune finds; add --tune.")
    from paxlike.planning.command import Output, Search, run, run_sweep, run_tune

    output = Output(flags.json, flags.html, flags.trace)
    if flags.tune:
        search = Search(str(path), flags.minutes, flags.save)
        sys.exit(run_tune(flags.config, flags.topology, flags.pods, output, search))
    compile_and_print = run_sweep if flags.sweep else run
    sys.exit(compile_and_print(flags.config, flags.topology, flags.pods, output))
