"""What the command line does with a plan: prints it, writes it, and says with its exit code whether it fits."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import jax
from rich.console import Console

from paxlike.accounting.memory import memory_estimate
from paxlike.accounting.report.document import check_page, write_page
from paxlike.accounting.units import gib
from paxlike.config import Config, UserError
from paxlike.parallel import runtime
from paxlike.parallel.compilers import silent
from paxlike.plan.html import plan_page, sweep_page
from paxlike.plan.page import describe, sweep_table
from paxlike.plan.quantized import against_unquantized
from paxlike.plan.sweep import check
from paxlike.plan.sweep import sweep as sweep_plans
from paxlike.plan.topology import Cluster, MissingCompiler
from paxlike.plan.verb import plan, prepare, with_remedies


def run(config: Config, topology: str, pods: int | None, sweep: bool, as_json: bool, html: Path | None) -> int:
    """Exit code: 0 it fits (or there is no limit to compare with), 1 it does not. Raises UserError."""
    if html:
        check_page(html, "plan")  # before minutes of compiling
    config, made = prepare(config, topology, pods)
    runtime.start(made.device_count if made.platform == "cpu" else 1)
    with silent():
        jax.devices()
    say = _say if sys.stderr.isatty() or sweep else lambda text: None
    try:
        if sweep:
            told = _sweep(config, made, say)
        else:
            told = with_remedies(plan(config, made, say), config, made, say)
            told = against_unquantized(told, config, made, say)
    except MissingCompiler as error:
        raise UserError(f"{error}\n\n{_estimate(config, made)}") from error
    if html:
        shown = sweep_page(config.name, _title(made), made.usable, told["sweep"]) if sweep else plan_page(told)
        write_page(html, "plan", shown)
    if as_json:
        print(json.dumps(told, indent=2))
    else:
        shown = sweep_table(told["sweep"]) if sweep else describe(told)
        Console(width=None if sys.stdout.isatty() else 140, highlight=False, markup=False).print(shown)
    return 1 if told["fits"] is False else 0


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
    """What arithmetic alone says, for a cluster whose compiler is not here."""
    estimate = memory_estimate(config, made.device_count)
    lines = [
        f"Estimated by arithmetic, nothing compiled: {gib(estimate.total)} of {gib(made.usable or 0)} usable on each device."
    ]
    lines += [f"  {gib(part.bytes):>12}  {part.name}: {part.what}" for part in estimate.parts]
    return "\n".join(lines)
