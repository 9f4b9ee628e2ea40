"""Runs side by side on the terminal; beneath them, the formula and the peak of every percentage."""

import datetime
from collections.abc import Callable

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from paxlike.accounting.units import gib, si

UNKNOWN = "–"


def duration(seconds: float) -> str:
    """`0.82 s`, `43.1 s`, `1:02:03`, `4 days, 1:02:03`."""
    if seconds < 60:
        return f"{seconds:.3g} s" if seconds >= 1 or seconds == 0 else f"{1000 * seconds:.3g} ms"
    return str(datetime.timedelta(seconds=round(seconds)))


def labels(runs: list[dict]) -> list[str]:
    """A name for each run that tells it from the others: its name, or its folder where two are called the same."""
    folders = [(run["folder"] or run["name"]).rstrip("/") for run in runs]
    short = [folder.rpartition("/")[2] for folder in folders]
    return short if len(set(short)) == len(short) else folders


def rows(runs: list[dict]) -> list[tuple[str, list[tuple[str, list[str]]]]]:
    """(section, [(what, one cell per run)]): what the terminal and the page both show. Rows that no run knows are left out."""
    sections = [
        ("Run", _RUN), ("Speed", _SPEED), ("Utilization", _utilization_rows(runs)), ("Wall time", _time_rows(runs)),
        ("FLOPs by part, per token", _part_rows(runs)), ("Memory per device", _MEMORY), ("Energy", _ENERGY),
    ]  # fmt: skip
    told = []
    for title, asked in sections:
        filled = [(what, [_cell(cell, run) for run in runs]) for what, cell in asked]
        if filled := [(what, cells) for what, cells in filled if set(cells) != {UNKNOWN}]:
            told.append((title, filled))
    return told


def _cell(cell: Callable[[dict], str], run: dict) -> str:
    try:
        return cell(run)
    except (TypeError, KeyError):  # a figure that this run does not have
        return UNKNOWN


def _at(point: dict) -> str:
    return f"{point['loss']:.4f} at step {point['step']:,}"


def _range(spread: dict, show: Callable[[float], str]) -> str:
    return f"{show(spread['median'])}  ({show(spread['p10'])} … {show(spread['p90'])})"


def _rate(value: float) -> str:
    return f"{value:,.4g}" if value < 1000 else f"{value:,.0f}"


_RUN = [
    ("status", lambda run: run["status"]),
    ("devices", lambda run: run["device"] or UNKNOWN),
    ("mesh", lambda run: " x ".join(f"{axis} {run['mesh'][axis]}" for axis in run["mesh"])),
    (
        "steps",
        lambda run: f"{run['steps']['done']:,}" + (f" of {run['steps']['planned']:,}" if run["steps"]["planned"] else ""),
    ),
    ("tokens", lambda run: f"{run['tokens'] + 0:,}"),
    ("training loss, last", lambda run: _at(run["loss"]["last"])),
    ("training loss, lowest", lambda run: _at(run["loss"]["lowest"])),
    ("validation loss, last", lambda run: _at(run["loss"]["evaluation"])),
    ("validation loss, lowest", lambda run: _at(run["loss"]["lowest_evaluation"])),
]  # fmt: skip
_SPEED = [
    ("step time, median (p10 … p90)", lambda run: _range(run["step_seconds"], duration)),
    (
        "tokens/s, median (p10 … p90)",
        lambda run: _range(run["tokens_per_second"], _rate) if run["tokens_per_second"]["p10"] is not None else UNKNOWN,
    ),
    ("tokens/s, given", lambda run: _rate(run["tokens_per_second"]["median"]) if run["folder"] is None else UNKNOWN),
    ("tokens/s over the wall time", lambda run: _rate(run["tokens_per_second"]["over_wall_time"])),
]
_MEMORY = [
    ("planned", lambda run: gib(run["memory"]["plan"]["total"])),
    ("laid out by the compiler for a step", lambda run: gib(run["memory"]["compiled"]["peak"])),
    ("at most in use on the device", lambda run: gib(run["memory"]["device"]["peak"])),
    ("the device's limit", lambda run: gib(run["memory"]["device"]["limit"])),
]
_ENERGY = [
    ("joules per token", lambda run: f"{run['energy']['joules_per_token']:.4g} J"),
    ("in all", lambda run: si(run["energy"]["joules"], "J")),
    ("read from", lambda run: run["energy"]["source"] or UNKNOWN),
]


def kind(share: dict) -> str:
    """A percentage's short name: `MFU palm`, `HFU`."""
    return f"MFU {share['convention']}" if share["name"] == "MFU" else share["name"]


def _utilization_rows(runs: list[dict]) -> list:
    kinds = list(dict.fromkeys(kind(share) for run in runs for share in run["utilization"]))
    return [
        (name, lambda run, name=name: next((f"{s['fraction']:.1%}" for s in run["utilization"] if kind(s) == name), UNKNOWN))
        for name in kinds
    ] + [("peak", lambda run: run["utilization"][0]["peak"] if run["utilization"] else UNKNOWN)]  # fmt: skip


def _time_rows(runs: list[dict]) -> list:
    told = [
        ("goodput: productive / wall", lambda run: f"{run['goodput']['fraction']:.1%}"),
        ("wall time", lambda run: duration(run["goodput"]["wall_seconds"])),
    ]
    causes = list(
        dict.fromkeys(c for run in runs if run["goodput"] for c, s in run["goodput"]["seconds"].items() if s > 0)
    )

    def cell(run, cause):
        seconds, wall = run["goodput"]["seconds"][cause], run["goodput"]["wall_seconds"]
        return "0" if not seconds else f"{duration(seconds)}  ({seconds / wall if wall else 0:.1%})"

    return told + [(f"  {cause}", lambda run, cause=cause: cell(run, cause)) for cause in causes]


def _part_rows(runs: list[dict]) -> list:
    parts = list(dict.fromkeys(part for run in runs for part, flops in (run["flops_by_part"] or {}).items() if flops))

    def cell(run, part):
        flops = run["flops_by_part"][part]
        return "0" if not flops else f"{si(flops, 'FLOP')}  ({flops / sum(run['flops_by_part'].values()):.1%})"

    return [(part, lambda run, part=part: cell(run, part)) for part in parts]


def describe(runs: list[dict]) -> Group:
    """A rich renderable of the summaries."""
    names = labels(runs)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_header=True)
    table.add_column("")
    for name in names:
        table.add_column(Text(name), justify="left", overflow="fold")
    for title, asked in rows(runs):
        table.add_row(Text(title, style="bold"))
        for what, cells in asked:
            table.add_row(Text(f"  {what}"), *(Text(cell) for cell in cells))
        table.add_section()
    return Group(table, *_beneath(runs, names))


def _beneath(runs: list[dict], names: list[str]) -> list[Text]:
    lines = []
    for run, name in zip(runs, names, strict=True):
        if run["utilization"]:
            lines.append(Text(f"How the percentages of {name} come about", style="bold"))
            lines += [Text(f"  {share['formula']}") for share in run["utilization"]]
            lines.append(Text(f"  peak: {run['utilization'][0]['peak']}\n"))
        lines += [Text(f"WARNING ({name}): {warning}", style="bold red") for warning in run["warnings"]]
        lines += [Text(f"note ({name}): {note}") for note in run["notes"]]
    return lines
