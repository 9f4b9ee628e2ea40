"""Renders runs side by side on the terminal, followed by the formula of every percentage."""

import datetime
from collections.abc import Callable

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from paxlike.accounting.router_series import ROUTER_SERIES
from paxlike.accounting.units import gib, si

UNKNOWN = "–"


def duration(seconds: float) -> str:
    """Formats seconds: `820 ms`, `43.1 s`, `1:02:03`, `4 days, 1:02:03`."""
    if seconds < 60:
        return f"{seconds:.3g} s" if seconds >= 1 or seconds == 0 else f"{1000 * seconds:.3g} ms"
    return str(datetime.timedelta(seconds=round(seconds)))


def labels(runs: list[dict]) -> list[str]:
    """Returns a label for each run: its directory name, or its path if directory names repeat."""
    folders = [(run["folder"] or run["name"]).rstrip("/") for run in runs]
    short = [folder.rpartition("/")[2] for folder in folders]
    return short if len(set(short)) == len(short) else folders


def rows(runs: list[dict]) -> list[tuple[str, list[tuple[str, list[str]]]]]:
    """Returns (section, [(label, one cell per run)]) for the terminal and the page.

    Omits rows that are unknown for every run.
    """
    sections = [
        ("Run", _RUN),
        ("Mixture, at the last evaluation", _mixture_rows(runs)),
        ("Routers, at the last step", _router_rows()),
        ("Speed", _SPEED),
        ("Utilization", _utilization_rows(runs)),
        ("Wall time", _time_rows(runs)),
        ("FLOPs by part, per token", _part_rows(runs)),
        ("Memory per device", _MEMORY),
        ("Energy", _ENERGY),
    ]
    shown = []
    for title, section in sections:
        filled = [(label, [_cell(cell, run) for run in runs]) for label, cell in section]
        if known := [(label, cells) for label, cells in filled if set(cells) != {UNKNOWN}]:
            shown.append((title, known))
    return shown


def _cell(cell: Callable[[dict], str], run: dict) -> str:
    try:
        return cell(run)
    except (TypeError, KeyError):  # The run lacks this figure.
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
        lambda run: (
            f"{run['steps']['done']:,}"
            + (f" of {run['steps']['planned']:,}" if run["steps"]["planned"] else "")
        ),
    ),
    ("tokens", lambda run: f"{run['tokens']:,}"),
    ("training loss, last", lambda run: _at(run["loss"]["last"])),
    ("training loss, lowest", lambda run: _at(run["loss"]["lowest"])),
    ("validation loss, last", lambda run: _at(run["loss"]["evaluation"])),
    ("validation loss, lowest", lambda run: _at(run["loss"]["lowest_evaluation"])),
]


def _mixture_rows(runs: list[dict]) -> list[tuple[str, Callable[[dict], str]]]:
    """Validation loss and epochs read of each store of a mixture."""
    names = dict.fromkeys(name for run in runs for name in run["mixture"] or ())

    def cell(name: str) -> Callable[[dict], str]:
        return lambda run: (
            f"loss {run['mixture'][name]['loss']:.4f}, "
            f"{run['mixture'][name]['epochs']:.2f} epochs read"
        )

    return [(name, cell(name)) for name in names]


def _router_rows() -> list[tuple[str, Callable[[dict], str]]]:
    def cell(metric: str) -> Callable[[dict], str]:
        shown = ".2%" if ROUTER_SERIES[metric].is_fraction else ".3g"
        return lambda run: f"{run['routers'][metric]:{shown}}"

    return [(series.title, cell(metric)) for metric, series in ROUTER_SERIES.items()]


_SPEED = [
    ("step time, median (p10 … p90)", lambda run: _range(run["step_seconds"], duration)),
    (
        "tokens/s, median (p10 … p90)",
        lambda run: (
            _range(run["tokens_per_second"], _rate)
            if run["tokens_per_second"]["p10"] is not None
            else UNKNOWN
        ),
    ),
    (
        "tokens/s, given",
        lambda run: _rate(run["tokens_per_second"]["median"]) if run["folder"] is None else UNKNOWN,
    ),
    ("tokens/s over the wall time", lambda run: _rate(run["tokens_per_second"]["over_wall_time"])),
]
_MEMORY = [
    ("planned", lambda run: gib(run["memory"]["plan"]["total"])),
    ("compiled step", lambda run: gib(run["memory"]["compiled"]["peak"])),
    ("peak in use on the device", lambda run: gib(run["memory"]["device"]["peak"])),
    ("device limit", lambda run: gib(run["memory"]["device"]["limit"])),
]
_ENERGY = [
    ("joules per token", lambda run: f"{run['energy']['joules_per_token']:.4g} J"),
    ("total", lambda run: si(run["energy"]["joules"], "J")),
    ("source", lambda run: run["energy"]["source"] or UNKNOWN),
]


def kind(share: dict) -> str:
    """Returns the short name of a percentage: `MFU palm`, `HFU`."""
    return f"MFU {share['convention']}" if share["name"] == "MFU" else share["name"]


def _utilization_rows(runs: list[dict]) -> list:
    kinds = list(dict.fromkeys(kind(share) for run in runs for share in run["utilization"]))

    def cell(run, name):
        fractions = (share["fraction"] for share in run["utilization"] if kind(share) == name)
        return next((f"{fraction:.1%}" for fraction in fractions), UNKNOWN)

    def peak(run):
        return run["utilization"][0]["peak"] if run["utilization"] else UNKNOWN

    return [*((name, lambda run, name=name: cell(run, name)) for name in kinds), ("peak", peak)]


def _time_rows(runs: list[dict]) -> list:
    totals = [
        ("goodput: productive / wall", lambda run: f"{run['goodput']['fraction']:.1%}"),
        ("wall time", lambda run: duration(run["goodput"]["wall_seconds"])),
    ]
    measured = [run["goodput"]["seconds"] for run in runs if run["goodput"]]
    causes = list(dict.fromkeys(c for seconds in measured for c, s in seconds.items() if s > 0))

    def cell(run, cause):
        seconds, wall = run["goodput"]["seconds"][cause], run["goodput"]["wall_seconds"]
        return "0" if not seconds else f"{duration(seconds)}  ({seconds / wall if wall else 0:.1%})"

    return totals + [(f"  {cause}", lambda run, cause=cause: cell(run, cause)) for cause in causes]


def _part_rows(runs: list[dict]) -> list:
    counts = [run["flops_by_part"] or {} for run in runs]
    parts = list(dict.fromkeys(part for count in counts for part, n in count.items() if n))

    def cell(run, part):
        flops, total = run["flops_by_part"][part], sum(run["flops_by_part"].values())
        return f"{si(flops, 'FLOP')}  ({flops / total:.1%})" if flops else "0"

    return [(part, lambda run, part=part: cell(run, part)) for part in parts]


def describe(runs: list[dict]) -> Group:
    """Returns the summaries as a rich renderable."""
    names = labels(runs)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_header=True)
    table.add_column("")
    for name in names:
        table.add_column(Text(name), justify="left", overflow="fold")
    for title, section in rows(runs):
        table.add_row(Text(title, style="bold"))
        for label, cells in section:
            table.add_row(Text(f"  {label}"), *(Text(cell) for cell in cells))
        table.add_section()
    return Group(table, *_footnotes(runs, names))


def _footnotes(runs: list[dict], names: list[str]) -> list[Text]:
    lines = []
    for run, name in zip(runs, names, strict=True):
        if run["utilization"]:
            lines.append(Text(f"Formulas of the percentages of {name}", style="bold"))
            lines += [Text(f"  {share['formula']}") for share in run["utilization"]]
            lines.append(Text(f"  peak: {run['utilization'][0]['peak']}\n"))
        lines += [
            Text(f"WARNING ({name}): {warning}", style="bold red") for warning in run["warnings"]
        ]
        lines += [Text(f"note ({name}): {note}") for note in run["notes"]]
    return lines
