"""What `paxlike info CONFIG` says, without JAX: parameters, FLOPs, tokens, memory per device, energy."""

import math
from collections.abc import Iterable

from rich import box
from rich.console import Group
from rich.table import Table

from paxlike.accounting.countings import Counting, rows
from paxlike.accounting.energy import PICOJOULES, PRECISIONS, forward_energy
from paxlike.accounting.flops import (
    CONVENTIONS,
    Count,
    executed_flops,
    flops_by_part,
    hardware_flops,
    model_flops,
)
from paxlike.accounting.memory import memory_estimate
from paxlike.accounting.parameters import packed_bytes, parameter_count, parameters_by_part, stored_parameter_count
from paxlike.accounting.units import gib, si
from paxlike.config import Config


def as_dict(config: Config, devices: int | None = None, energy: bool = False) -> dict:
    """Everything `describe` shows, as plain numbers for JSON.

    devices: JAX devices of the mesh; None takes the mesh's own sizes, and leaves memory out where one of them is -1.
    FLOPs are per token, bytes per device, energy in joules of one sequence's forward pass. Where `model.attention` is auto,
    FLOPs are those of the reference attention and memory is that of a flash kernel, which keeps no probabilities.
    """
    model, T, train = config.model, config.data.sequence_length, config.train
    kernel = "reference" if model.attention == "auto" else model.attention
    tokens = train.sequences_before(train.steps) * T
    told = {
        "name": config.name,
        "parameters": {
            "total": parameter_count(model),
            "by_part": parameters_by_part(model),
            "stored": stored_parameter_count(model),
            **({"packed_bytes": packed_bytes(model)} if model.quant.active else {}),
        },
        "flops_per_token": {
            "sequence_length": T,
            "model": {convention: _count(model_flops(model, T, convention)) for convention in CONVENTIONS},
            "hardware": _count(hardware_flops(model, T)),
            "executed": _count(executed_flops(model, T, kernel)),
            "by_part": flops_by_part(model, T, kernel),
        },
        "tokens": {"per_step": train.batch_size * T, "steps": train.steps, "total": tokens},
        "training_flops": {c: model_flops(model, T, c).total * tokens for c in CONVENTIONS},
    }
    devices = devices or _mesh_devices(config)
    if devices:
        estimate = memory_estimate(
            config, devices, kernel="reference" if model.attention in ("reference", "xla") else "flash"
        )
        told["memory"] = {
            "devices": devices,
            "mesh": dict(zip(("pod", "data", "model"), estimate.mesh, strict=True)),
            "bytes": {part.name: part.bytes for part in estimate.parts},
            "what": {part.name: part.what for part in estimate.parts},
            "total": estimate.total,
        }
    if energy:
        told["energy"] = {
            node: {
                precision: {
                    part.part: {"add": part.add, "multiply": part.multiply}
                    for part in forward_energy(model, T, precision, node)
                }
                for precision in PRECISIONS
            }
            for node in PICOJOULES
        }
    return told


def _count(count: Count) -> dict:
    return {"name": count.name, "total": count.total, "terms": [term._asdict() for term in count.terms]}


def _mesh_devices(config: Config) -> int | None:
    sizes = (config.mesh.pod, config.mesh.data, config.mesh.model)
    return None if -1 in sizes else math.prod(sizes)


def describe(config: Config, devices: int | None = None, energy: bool = False, extra: Iterable = ()):
    """A rich renderable with all of `as_dict` as tables, and `extra` renderables after them."""
    told = as_dict(config, devices, energy)
    tables = [_parameters(told), _flops(told), _executed(told), _training(told)]
    if "memory" in told:
        tables.append(_memory(told["memory"]))
    else:
        tables.append("Memory per device: the mesh takes the devices that are there; name their number to see it.\n")
    if energy:
        tables.append(_energy(told["energy"], config.data.sequence_length))
    return Group(*tables, *extra)


def _table(title: str, *columns: str):
    """A rich table. A column whose name begins with `>` holds numbers."""
    named = any(columns)
    table = Table(
        title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False, show_header=named
    )
    for column in columns:
        table.add_column(column.lstrip(">"), justify="right" if column.startswith(">") else "left")
    return table


def _parameters(told: dict):
    parameters = told["parameters"]
    table = _table(f"Parameters of {told['name']}", "part", ">parameters", ">share")
    for part, count in parameters["by_part"].items():
        table.add_row(part, f"{count:,}", f"{count / parameters['total']:.1%}")
    padding = parameters["stored"] - parameters["total"]
    table.add_section()
    table.add_row("total", f"{parameters['total']:,}", "")
    if padding:
        table.add_row("stored beyond them: rows that pad the vocabulary", f"{padding:,}", "")
    if "packed_bytes" in parameters:
        table.add_row("packed, as `paxlike pack` writes them", gib(parameters["packed_bytes"]), "")
    return table


def _flops(told: dict):
    flops = told["flops_per_token"]
    table = _table(
        f"FLOPs per token, sequences of {flops['sequence_length']:,}",
        "counted as",
        ">FLOP/token",
        ">over palm",
        "formula",
    )
    palm = flops["model"]["palm"]["total"]
    for count in (*flops["model"].values(), flops["hardware"], flops["executed"]):
        formula = " + ".join(term["formula"] for term in count["terms"]).replace("+ -", "- ")
        name = count["name"] + (" (HFU)" if count is flops["hardware"] else "")
        shown = "see below" if count is flops["executed"] else formula
        table.add_row(name, si(count["total"], "FLOP"), f"{count['total'] / palm:.4f}", shown)
    return table


def _executed(told: dict):
    count = told["flops_per_token"]["executed"]
    table = _table(f"What runs: {count['name']}", "term", ">FLOP/token", ">share", "formula")
    for term in count["terms"]:
        table.add_row(term["name"], si(term["flops"], "FLOP"), f"{term['flops'] / count['total']:.2%}", term["formula"])
    table.add_section()
    table.add_row("total", si(count["total"], "FLOP"), "", "")
    for part, value in told["flops_per_token"]["by_part"].items():
        table.add_row(f"of it {part}", si(value, "FLOP"), f"{value / count['total']:.2%}", "")
    return table


def countings_table(attention: str, countings: Iterable[Counting]):
    """The formula against a traced and a compiled program, term by term."""
    title = f"Three countings: the formula, the traced forward pass, the compiled train step ({attention})"
    table = _table(title, "term", ">FLOP/token", ">share", "formula")
    for counting in countings:
        for row in rows(counting):
            table.add_row(*row)
        table.add_section()
    return table


def _training(told: dict):
    tokens = told["tokens"]
    table = _table("Training", "", "")
    table.add_row("steps", f"{tokens['steps']:,}")
    table.add_row("tokens a step, after the batch ramp", f"{tokens['per_step']:,}")
    table.add_row("tokens in all", f"{tokens['total']:,}")
    for convention, flops in told["training_flops"].items():
        table.add_row(f"model FLOPs, {convention}", f"{flops:.3e}")
    return table


def _memory(memory: dict):
    mesh = " x ".join(f"{axis} {size}" for axis, size in memory["mesh"].items())
    table = _table(f"Memory per device, estimated: {memory['devices']:,} devices, {mesh}", "part", ">memory", "")
    for part, size in memory["bytes"].items():
        table.add_row(part, gib(size), memory["what"][part])
    table.add_section()
    table.add_row("total", gib(memory["total"]), "")
    return table


def _energy(energy: dict, tokens: int):
    title = f"Energy of the arithmetic of one forward pass of {tokens:,} tokens (BitNet, arXiv 2310.11453), joules"
    table = _table(title, "node", "precision", "part", ">additions", ">multiplications", ">together")
    for node, precisions in energy.items():
        for precision, parts in precisions.items():
            for part, joules in parts.items():
                add, multiply = joules["add"], joules["multiply"]
                table.add_row(node, precision, part, f"{add:.4g}", f"{multiply:.4g}", f"{add + multiply:.4g}")
        table.add_section()
    return table
