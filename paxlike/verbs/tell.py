"""Verbs that tell something of a config or a run: info, report, plan."""

import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import Annotated

from paxlike.config import Config, UserError, load
from paxlike.verbs.flags import flags_of, platform, take


def info_verb(arguments: list[str]) -> None:
    import tyro

    @dataclasses.dataclass(frozen=True)
    class InfoFlags:
        """What CONFIG is: parameters, FLOPs per token, memory per device and sharding. Nothing is run."""

        config: Annotated[Config, tyro.conf.arg(name="")]
        devices: int | None = None
        """Devices of the mesh, where the config leaves one of its axes open (-1)."""
        energy: bool = False
        """Joules of a forward pass by precision and process node."""
        flops: bool = False
        """Count the train step's FLOPs three ways, by formula, from the traced and from the compiled program (seconds; the rest needs
        no JAX). Exit code 1 where more than 2 % is left unexplained."""
        json: bool = False
        """Numbers for machines."""

    path, rest = take(arguments, "CONFIG", "info")
    flags = flags_of(InfoFlags, rest, "paxlike info CONFIG", InfoFlags(load(path) if path else Config()))
    from paxlike.accounting.info import as_dict, countings_table, describe

    attention, countings = _countings(flags.config) if flags.flops else ("", ())
    if flags.json:
        told = as_dict(flags.config, flags.devices, flags.energy)
        told["flops_per_token"]["countings"] = [counting.as_dict() for counting in countings]
        print(json.dumps(told, indent=2))
    else:
        import rich

        extra = [countings_table(attention, countings)] if countings else []
        extra += _sharding(flags.config, flags.devices)
        rich.print(describe(flags.config, flags.devices, flags.energy, extra))
    if not all(counting.agrees for counting in countings):
        print("paxlike: the countings of FLOPs do not agree; see the table.", file=sys.stderr)
        sys.exit(1)


def _countings(config: Config) -> tuple[str, tuple]:
    runtime = platform()
    runtime.start()
    from paxlike.plan.countings import count_three_ways

    return count_three_ways(config)


def _sharding(config: Config, devices: int | None) -> list:
    """The sharding table, where the mesh is known."""
    from paxlike.accounting.parameters import stored_shapes
    from paxlike.parallel.rules import MESH_AXES
    from paxlike.parallel.table import sharding_table

    sizes = (config.mesh.pod, config.mesh.data, config.mesh.model)
    if devices is None and -1 in sizes:
        return []
    mesh = dict(zip(MESH_AXES, config.mesh.resolve(devices or math.prod(sizes)), strict=True))
    return [sharding_table(stored_shapes(config.model), mesh)]


def report_verb(arguments: list[str]) -> None:
    import tyro

    @dataclasses.dataclass(frozen=True)
    class ReportFlags:
        """What one or more runs did, side by side: a table, and one HTML page with plots. JAX is not needed.

        Or, of a run made elsewhere: --config CONFIG --tokens-per-second 238300 --chip v4 --chips 6144
        """

        runs: tyro.conf.Positional[tuple[Path, ...]] = ()
        """Run folders."""
        html: Path | None = None
        """The page's file. Of one run it is RUN/report.html, of several report.html."""
        json: bool = False
        """Numbers for machines, and no page unless --html names one."""
        config: Path | None = None
        """A config in place of runs: percentages of a rate that is given."""
        tokens_per_second: float | None = None
        """Of all chips together."""
        chip: str | None = None
        """A name of the hardware table: v4, v5e, h100, …"""
        chips: float | None = None
        dtype: str = "bfloat16"
        """The number format whose peak is divided by."""

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
    """(histories, summaries) of the flags' runs, or of their config and rate. Raises UserError for flags that do not go together."""
    from paxlike.accounting.history import read_history
    from paxlike.accounting.report.summary import from_rate, summarize

    given = {f"--{name.replace('_', '-')}": getattr(flags, name) for name in ("tokens_per_second", "chip", "chips")}
    missing = [name for name, value in given.items() if value is None]
    if bool(flags.runs) == bool(flags.config):
        raise UserError("`paxlike report` needs either run folders or --config CONFIG: paxlike report RUN [RUN …]")
    if flags.config and missing:
        raise UserError(f"--config also needs {', '.join(missing)}: what was measured, and on what.")
    if flags.runs and len(missing) < len(given):
        raise UserError(f"{', '.join(set(given) - set(missing))} go with --config; a run folder says them itself.")
    histories = [read_history(run) for run in flags.runs]
    summaries = [summarize(history) for history in histories]
    if flags.config:
        config = load(flags.config)
        summaries = [from_rate(config, flags.tokens_per_second, flags.chip, flags.chips, flags.dtype)]
    return histories, summaries


def plan_verb(arguments: list[str]) -> None:
    import tyro

    @dataclasses.dataclass(frozen=True)
    class PlanFlags:
        """Compile CONFIG's train step for a cluster that is not here: does it fit, what does it send, how fast will it be."""

        config: Annotated[Config, tyro.conf.arg(name="")]
        topology: str = ""
        """v4:12x16x16 (TPU chips along each axis), h100:4x8 (hosts x GPUs of a host) or cpu:8."""
        pods: int | None = None
        """How many of them, joined by the data-center network. Without it, as many as mesh.pod."""
        sweep: bool = False
        """Compile it for several meshes, remat policies and batch sizes, and list them best first."""
        json: bool = False
        """Numbers for machines."""
        html: Path | None = None
        """Also write a page, in one file, over an older one of `plan` if there is one."""

    path, rest = take(arguments, "CONFIG", "plan")
    flags = flags_of(PlanFlags, rest, "paxlike plan CONFIG", PlanFlags(load(path) if path else Config()))
    if not flags.topology:
        raise UserError("`paxlike plan` needs a --topology: v4:4x4x4, h100:4x8, cpu:8.")
    platform()
    from paxlike.plan.command import run

    sys.exit(run(flags.config, flags.topology, flags.pods, flags.sweep, flags.json, flags.html))
