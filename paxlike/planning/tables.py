"""A plan as terminal tables."""

from rich.console import Group
from rich.table import Table

from paxlike.accounting.units import gib, si
from paxlike.planning.communication_tables import communication_tables, new_table
from paxlike.planning.expert_transports import transports_table
from paxlike.planning.quantized import line


def describe(result: dict) -> Group:
    """A rich renderable of `result.plan_of`."""
    return Group(f"{summary(result)}\n\n{verdict(result)}\n", *tables(result))


def tables(result: dict) -> list[Table | str]:
    """The tables for which the plan has data."""
    parts: list[Table | str] = [_memory(result)]
    if result["buffers"]:
        parts.append(_buffers(result["buffers"]))
    if result.get("remedies"):
        parts.append(remedies(result["remedies"]))
    if "collectives" in result:
        parts += [
            *communication_tables(result),
            f"Between pods: {result['crossing_pod']['verdict']}\n",
        ]
    if "transports" in result:
        parts.append(transports_table(result["transports"]))
    if "quantization" in result:
        parts.append(line(result["quantization"]))
    if "flops" in result:
        parts.append(_flops(result["flops"]))
    if "predicted" in result:
        parts.append(_prediction(result))
    return parts


def mesh_text(mesh: dict[str, int]) -> str:
    return " x ".join(f"{axis} {size}" for axis, size in mesh.items())


def summary(result: dict) -> str:
    """One sentence: the config, cluster and batch."""
    cluster, batch, compiled = result["cluster"], result["batch"], result["compile"]
    pods = f"{cluster['pods']} x " if cluster["pods"] > 1 else ""
    origin = (
        "read from the cache"
        if compiled.get("cached")
        else f"compiled in {compiled['seconds']:.0f} s"
    )
    return (
        f"{result['config']} on {pods}{cluster['name']} ({cluster['chips']:,} x "
        f"{cluster['chip'] or 'CPU'}), "
        f"mesh {mesh_text(result['mesh'])}, remat {result['remat']}, {batch['sequences']:,} x "
        f"{batch['sequence_length']:,} tokens per step "
        f"({batch['tokens_per_chip']:,.0f} per chip); {origin}"
    )


def verdict(result: dict) -> str:
    memory = result["memory"]
    if result["fits"] is None:
        return f"needs {gib(memory['needed'])} on each device"
    share = f"{gib(memory['needed'])} of {gib(memory['usable'])} usable on each device"
    return f"FITS: {share}" if result["fits"] else f"DOES NOT FIT: {share}"


def _memory(result: dict) -> Table:
    table = new_table("Memory on a device", "part", ">memory")
    for part, size in result["memory"]["parts"].items():
        if size:
            table.add_row(part, gib(size))
    if result["memory"]["parts"]:
        table.add_section()
        table.add_row("at its peak", gib(result["memory"]["needed"]))
    if result["refused"]:
        table.add_row(result["refused"], "")
    return table


def _buffers(buffers: list[list]) -> Table:
    table = new_table("Largest arrays on a device", ">memory", "what", "shape")
    for size, name, shape in buffers:
        table.add_row(
            gib(size), name, shape if isinstance(shape, str) else " x ".join(map(str, shape))
        )
    return table


def remedies(rows: list[dict]) -> Table:
    """The changes that were tried, each compiled."""
    table = new_table(
        "Changes that reduce memory, each compiled", "change", ">memory", "fits", ">step", ">MFU"
    )
    for row in rows:
        if "error" in row:
            table.add_row(row["change"], "", row["error"], "", "")
            continue
        predicted = row.get("predicted")
        table.add_row(
            row["change"],
            gib(row["needed"]),
            {True: "yes", False: "no", None: ""}[row["fits"]],
            f"{predicted['seconds']['step']:.3g} s" if predicted else "",
            f"{predicted['mfu']:.1%}" if predicted else "",
        )
    return table


def _flops(flops: dict) -> Table:
    table = new_table("FLOPs of the compiled program", "", ">")
    table.add_row("per device and step", si(flops["per_device"], "FLOP"))
    table.add_row("per token", si(flops["per_token"], "FLOP"))
    label = f"model FLOPs per token ({flops['convention']})"
    table.add_row(label, si(flops["palm_per_token"], "FLOP"))
    table.add_row("HFU / MFU", f"{flops['hardware_over_model']:.4f}")
    for call in flops["uncounted"]:
        table.add_row("not counted", call)
    return table


def _prediction(result: dict) -> Table:
    predicted = result["predicted"]
    seconds = predicted["seconds"]
    table = new_table("Prediction", "", ">", "")
    why = {
        "matrix": "matrix products alone",
        "memory": "memory traffic alone",
        "device": "per instruction, the longer of the two",
        "links": "collectives, one after another",
        "hidden": "part of the links time that overlaps work",
        "exposed": "part of the links time that the device waits for",
        "step": "device + exposed",
    }
    for name, value in seconds.items():
        table.add_row(name, si(value, "s", 4) if value else "0 s", why[name])
    table.add_section()
    table.add_row("tokens/s", f"{predicted['tokens_per_second']:,.0f}", "")
    table.add_row("MFU", f"{predicted['mfu']:.1%}", "")
    table.add_row("HFU", f"{predicted['hfu']:.1%}", "as compiled")
    table.add_row(
        "days",
        f"{predicted['days']:,.1f}",
        f"for {predicted['budget_tokens']:,} tokens at this batch size",
    )
    table.add_row("chip-hours", f"{predicted['chip_hours']:,.0f}", "")
    return table


def sweep_table(rows: list[dict]) -> Table:
    """The candidates of a sweep, best first."""
    table = new_table(
        "Best first",
        ">model",
        "remat",
        ">batch",
        "fits",
        ">memory",
        ">step",
        ">tokens/s",
        ">MFU",
        ">HFU",
        ">days",
        "",
    )
    for row in rows:
        cells = [""] * 5
        if "mfu" in row:
            shares = (f"{row['mfu']:.1%}", f"{row['hfu']:.1%}")
            cells = [
                f"{row['step']:.3g} s",
                f"{row['tokens_per_second']:,.0f}",
                *shares,
                f"{row['days']:,.1f}",
            ]
        fits = {True: "yes", False: "no", None: ""}[row["fits"]]
        needed = gib(row["needed"]) if row["needed"] else ""
        table.add_row(
            str(row["model"]),
            row["remat"],
            f"{row['batch_size']:,}",
            fits,
            needed,
            *cells,
            row["error"][:60],
        )
    return table
