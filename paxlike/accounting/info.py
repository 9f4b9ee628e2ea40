"""The tables of `paxlike info`: parameters, FLOPs, tokens, memory per device, energy. No JAX."""

import math
from collections.abc import Iterable

from rich import box
from rich.console import Group
from rich.table import Table

from paxlike.accounting.adapted_flops import by_part, executed, training_flops
from paxlike.accounting.adapted_parameters import trained_count
from paxlike.accounting.energy import PICOJOULES, PRECISIONS, forward_energy
from paxlike.accounting.flop_counts import FlopComparison, table_rows
from paxlike.accounting.flops import CONVENTIONS, Count, hardware_flops, model_flops
from paxlike.accounting.memory import memory_estimate
from paxlike.accounting.parameters import (
    active_parameter_count,
    packed_bytes,
    parameter_count,
    parameters_by_part,
    stored_parameter_count,
)
from paxlike.accounting.units import gib, si
from paxlike.config import Config


def as_dict(config: Config, devices: int | None = None, energy: bool = False) -> dict:
    """Returns the contents of `describe` as plain numbers for JSON.

    devices: number of JAX devices. None multiplies the sizes of the mesh, and omits memory if one
    of them is -1. FLOPs are per token, bytes per device, and energy in joules per forward pass of
    one sequence. If `model.attention` is auto, FLOPs assume reference attention, and memory a flash
    kernel, which saves no probabilities.
    """
    model, T, train = config.model, config.data.sequence_length, config.train
    kernel = "reference" if model.attention == "auto" else model.attention
    tokens = train.sequences_before(train.steps) * T
    partly_used = model.experts.active or model.routed
    result = {
        "name": config.name,
        "parameters": {
            "total": parameter_count(model),
            "by_part": parameters_by_part(model),
            "stored": stored_parameter_count(model),
            **({"active": active_parameter_count(model)} if partly_used else {}),
            **({"packed_bytes": packed_bytes(model)} if model.quant.active else {}),
            **({"trained": trained_count(model, config.adapt)} if config.adapt.active else {}),
        },
        "flops_per_token": {
            "sequence_length": T,
            "model": {
                convention: _count(model_flops(model, T, convention)) for convention in CONVENTIONS
            },
            "hardware": _count(hardware_flops(model, T)),
            "executed": _count(executed(config, kernel)),
            "by_part": by_part(config, kernel),
        },
        "tokens": {"per_step": train.batch_size * T, "steps": train.steps, "total": tokens},
        "training_flops": {c: training_flops(config, c).total * tokens for c in CONVENTIONS},
    }
    devices = devices or _mesh_devices(config)
    if devices:
        estimate = memory_estimate(
            config,
            devices,
            kernel="reference" if model.attention in ("reference", "xla") else "flash",
        )
        result["memory"] = {
            "devices": devices,
            "mesh": estimate.mesh,
            "bytes": {part.name: part.bytes for part in estimate.parts},
            "what": {part.name: part.description for part in estimate.parts},
            "total": estimate.total,
        }
    if energy:
        result["energy"] = {
            node: {
                precision: {
                    part.part: {"add": part.add, "multiply": part.multiply}
                    for part in forward_energy(model, T, precision, node)
                }
                for precision in PRECISIONS
            }
            for node in PICOJOULES
        }
    return result


def _count(count: Count) -> dict:
    return {
        "name": count.name,
        "total": count.total,
        "terms": [term._asdict() for term in count.terms],
    }


def _mesh_devices(config: Config) -> int | None:
    sizes = config.mesh.axes.values()
    return None if -1 in sizes else math.prod(sizes)


def describe(
    config: Config, devices: int | None = None, energy: bool = False, extra: Iterable = ()
):
    """Returns the tables of `as_dict` as a rich renderable, with `extra` renderables at the end."""
    result = as_dict(config, devices, energy)
    tables = [_parameters(result), _flops(result), _executed(result), _training(result)]
    if "memory" in result:
        tables.append(_memory(result["memory"]))
    else:
        tables.append(
            "Memory per device depends on the number of devices. Specify it with `--devices`.\n"
        )
    if energy:
        tables.append(_energy(result["energy"], config.data.sequence_length))
    return Group(*tables, *extra)


def _table(title: str, *columns: str):
    """Returns a rich table. A `>` before a column's name aligns it to the right."""
    named = any(columns)
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        show_header=named,
    )
    for column in columns:
        table.add_column(column.lstrip(">"), justify="right" if column.startswith(">") else "left")
    return table


def _parameters(result: dict):
    parameters = result["parameters"]
    table = _table(f"Parameters of {result['name']}", "part", ">parameters", ">share")
    for part, count in parameters["by_part"].items():
        table.add_row(part, f"{count:,}", f"{count / parameters['total']:.1%}")
    padding = parameters["stored"] - parameters["total"]
    table.add_section()
    table.add_row("total", f"{parameters['total']:,}", "")
    if "active" in parameters:
        share = f"{parameters['active'] / parameters['total']:.1%}"
        table.add_row("active: what one token uses", f"{parameters['active']:,}", share)
    if padding:
        table.add_row("additionally stored: rows that pad the vocabulary", f"{padding:,}", "")
    if "trained" in parameters:
        share = f"{parameters['trained'] / parameters['total']:.3%}"
        table.add_row("trained, with the adapter", f"{parameters['trained']:,}", share)
    if "packed_bytes" in parameters:
        table.add_row("packed by `paxlike pack`", gib(parameters["packed_bytes"]), "")
    return table


def _flops(result: dict):
    flops = result["flops_per_token"]
    table = _table(
        f"FLOPs per token, sequences of {flops['sequence_length']:,}",
        "convention",
        ">FLOP/token",
        ">vs. palm",
        "formula",
    )
    palm = flops["model"]["palm"]["total"]
    for count in (*flops["model"].values(), flops["hardware"], flops["executed"]):
        formula = " + ".join(term["formula"] for term in count["terms"]).replace("+ -", "- ")
        name = count["name"] + (" (HFU)" if count is flops["hardware"] else "")
        shown = "see below" if count is flops["executed"] else formula
        table.add_row(name, si(count["total"], "FLOP"), f"{count['total'] / palm:.4f}", shown)
    return table


def _executed(result: dict):
    count = result["flops_per_token"]["executed"]
    table = _table(f"FLOPs as {count['name']}", "term", ">FLOP/token", ">share", "formula")
    for term in count["terms"]:
        table.add_row(
            term["name"],
            si(term["flops"], "FLOP"),
            f"{term['flops'] / count['total']:.2%}",
            term["formula"],
        )
    table.add_section()
    table.add_row("total", si(count["total"], "FLOP"), "", "")
    parts = result["flops_per_token"]["by_part"]
    same = set(parts) <= {term["name"] for term in count["terms"]}
    for part, value in ({} if same else parts).items():
        table.add_row(f"of which {part}", si(value, "FLOP"), f"{value / count['total']:.2%}", "")
    return table


def comparison_table(attention: str, comparisons: Iterable[FlopComparison]):
    """Returns a table that compares the formula with the traced and the compiled program."""
    title = (
        "FLOPs by formula, in the traced forward pass, and in the compiled train step "
        f"({attention})"
    )
    table = _table(title, "term", ">FLOP/token", ">share", "formula")
    for comparison in comparisons:
        for row in table_rows(comparison):
            table.add_row(*row)
        table.add_section()
    return table


def _training(result: dict):
    tokens = result["tokens"]
    table = _table("Training", "", "")
    table.add_row("steps", f"{tokens['steps']:,}")
    table.add_row("tokens per step, after the batch ramp", f"{tokens['per_step']:,}")
    table.add_row("total tokens", f"{tokens['total']:,}")
    for convention, flops in result["training_flops"].items():
        table.add_row(f"model FLOPs, {convention}", f"{flops:.3e}")
    return table


def _memory(memory: dict):
    mesh = " x ".join(f"{axis} {size}" for axis, size in memory["mesh"].items())
    table = _table(
        f"Memory per device, estimated: {memory['devices']:,} devices, {mesh}",
        "part",
        ">memory",
        "",
    )
    for part, size in memory["bytes"].items():
        table.add_row(part, gib(size), memory["what"][part])
    table.add_section()
    table.add_row("total", gib(memory["total"]), "")
    return table


def _energy(energy: dict, tokens: int):
    title = (
        f"Energy of the arithmetic in one forward pass of {tokens:,} tokens, in joules "
        "(BitNet, arXiv 2310.11453)"
    )
    table = _table(title, "node", "precision", "part", ">additions", ">multiplications", ">total")
    for node, precisions in energy.items():
        for precision, parts in precisions.items():
            for part, joules in parts.items():
                add, multiply = joules["add"], joules["multiply"]
                table.add_row(
                    node, precision, part, f"{add:.4g}", f"{multiply:.4g}", f"{add + multiply:.4g}"
                )
        table.add_section()
    return table
