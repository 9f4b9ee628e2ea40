"""A plan on the terminal."""

from rich import box
from rich.console import Group
from rich.table import Table

from paxlike.accounting.units import gib, si
from paxlike.plan.quantized import line


def describe(told: dict) -> Group:
    """A rich renderable of `result.plan_of`."""
    return Group(f"{summary(told)}\n\n{verdict(told)}\n", *tables(told))


def tables(told: dict) -> list[Table | str]:
    """Its tables, those that there are."""
    parts: list[Table | str] = [_memory(told)]
    if told["buffers"]:
        parts.append(_buffers(told["buffers"]))
    if told.get("remedies"):
        parts.append(remedies(told["remedies"]))
    if "collectives" in told:
        parts += [_collectives(told["collectives"]), f"Between pods: {told['crossing_pod']['verdict']}\n"]
    if "quantization" in told:
        parts.append(line(told["quantization"]))
    if "flops" in told:
        parts.append(_flops(told["flops"]))
    if "predicted" in told:
        parts.append(_prediction(told))
    return parts


def _table(title: str, *columns: str) -> Table:
    """A column whose name begins with `>` holds numbers."""
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        show_header=any(columns),
    )
    for column in columns:
        table.add_column(column.lstrip(">"), justify="right" if column.startswith(">") else "left")
    return table


def mesh_text(mesh: dict[str, int]) -> str:
    return " x ".join(f"{axis} {size}" for axis, size in mesh.items())


def summary(told: dict) -> str:
    """One sentence: what was compiled for what."""
    cluster, batch, compiled = told["cluster"], told["batch"], told["compile"]
    pods = f"{cluster['pods']} x " if cluster["pods"] > 1 else ""
    origin = "read from the cache" if compiled.get("cached") else f"compiled in {compiled['seconds']:.0f} s"
    return (
        f"{told['config']} on {pods}{cluster['name']} ({cluster['chips']:,} x {cluster['chip'] or 'CPU'}), "
        f"mesh {mesh_text(told['mesh'])}, remat {told['remat']}, {batch['sequences']:,} x {batch['sequence_length']:,} tokens a step "
        f"({batch['tokens_per_chip']:,.0f} a chip); {origin}"
    )


def verdict(told: dict) -> str:
    memory = told["memory"]
    if told["fits"] is None:
        return f"needs {gib(memory['needed'])} on each device"
    share = f"{gib(memory['needed'])} of {gib(memory['usable'])} usable on each device"
    return f"FITS: {share}" if told["fits"] else f"DOES NOT FIT: {share}"


def _memory(told: dict) -> Table:
    table = _table("Memory on a device", "part", ">memory")
    for part, size in told["memory"]["parts"].items():
        if size:
            table.add_row(part, gib(size))
    if told["memory"]["parts"]:
        table.add_section()
        table.add_row("at its peak", gib(told["memory"]["needed"]))
    if told["refused"]:
        table.add_row(told["refused"], "")
    return table


def _buffers(buffers: list[list]) -> Table:
    table = _table("Largest arrays on a device", ">memory", "what", "shape")
    for size, name, shape in buffers:
        table.add_row(gib(size), name, shape if isinstance(shape, str) else " x ".join(map(str, shape)))
    return table


def remedies(rows: list[dict]) -> Table:
    """What was tried instead, each compiled for real."""
    table = _table("What would help, each compiled", "change", ">memory", "fits", ">step", ">MFU")
    for row in rows:
        if "error" in row:
            table.add_row(row["change"], "", row["error"], "", "")
            continue
        predicted = row.get("predicted")
        table.add_row(
            row["change"], gib(row["needed"]), {True: "yes", False: "no", None: ""}[row["fits"]],
            f"{predicted['seconds']['step']:.3g} s" if predicted else "", f"{predicted['mfu']:.1%}" if predicted else "",
        )  # fmt: skip
    return table


def _collectives(rows: list[dict], least: float = 1e-3) -> Table:
    table = _table(
        "Collectives of a step, on one device",
        "kind",
        "axis",
        "in a loop",
        "type",
        ">bytes",
        ">times",
        ">at best",
        "over",
        "the device",
    )
    total = sum(row["seconds"] for row in rows)
    shown = [row for row in rows if row["seconds"] >= least * total or not total]
    for row in shown:
        table.add_row(
            row["kind"], row["axis"], "yes" if row["in_layer_loop"] else "no", row["dtype"], gib(row["bytes"]), f"{row['times']:,}",
            si(row["seconds"], "s", 3), row["wires"], "waits" if row["waits"] else "works on",
        )  # fmt: skip
    rest = rows[len(shown) :]
    if rest:
        table.add_row(
            f"{len(rest)} kinds more, each below {least:.1%}", "", "", "", "", f"{sum(r['times'] for r in rest):,}",
            si(sum(r["seconds"] for r in rest), "s", 3), "", "",
        )  # fmt: skip
    table.add_section()
    table.add_row("together", "", "", "", "", f"{sum(r['times'] for r in rows):,}", si(total, "s", 3), "", "")
    return table


def _flops(flops: dict) -> Table:
    table = _table("FLOPs of the compiled program", "", ">")
    table.add_row("per device and step", si(flops["per_device"], "FLOP"))
    table.add_row("per token", si(flops["per_token"], "FLOP"))
    table.add_row("model FLOPs per token (palm: 6N + 12LHQT)", si(flops["palm_per_token"], "FLOP"))
    table.add_row("HFU / MFU", f"{flops['hardware_over_model']:.4f}")
    for call in flops["uncounted"]:
        table.add_row("not counted", call)
    return table


def _prediction(told: dict) -> Table:
    predicted = told["predicted"]
    seconds = predicted["seconds"]
    table = _table("Prediction", "", ">", "")
    why = {
        "matrix": "matrix products alone",
        "memory": "reading and writing memory alone",
        "device": "instruction by instruction, the longer of the two",
        "links": "collectives, one after another",
        "hidden": "of it, beside work that the program has scheduled there",
        "step": "device + links - hidden",
    }
    for name, value in seconds.items():
        table.add_row(name, si(value, "s", 4) if value else "0 s", why[name])
    table.add_section()
    table.add_row("tokens/s", f"{predicted['tokens_per_second']:,.0f}", "")
    table.add_row("MFU", f"{predicted['mfu']:.1%}", "")
    table.add_row("HFU", f"{predicted['hfu']:.1%}", "as compiled")
    table.add_row("days", f"{predicted['days']:,.1f}", f"for {predicted['budget_tokens']:,} tokens at this batch size")
    table.add_row("chip-hours", f"{predicted['chip_hours']:,.0f}", "")
    return table


def sweep_table(rows: list[dict]) -> Table:
    """The candidates of a sweep, best first."""
    table = _table(
        "Best first", ">model", "remat", ">batch", "fits", ">memory", ">step", ">tokens/s", ">MFU", ">HFU", ">days", ""
    )
    for row in rows:
        cells = [""] * 5
        if "mfu" in row:
            shares = (f"{row['mfu']:.1%}", f"{row['hfu']:.1%}")
            cells = [f"{row['step']:.3g} s", f"{row['tokens_per_second']:,.0f}", *shares, f"{row['days']:,.1f}"]
        fits = {True: "yes", False: "no", None: ""}[row["fits"]]
        needed = gib(row["needed"]) if row["needed"] else ""
        table.add_row(
            str(row["model"]), row["remat"], f"{row['batch_size']:,}", fits, needed, *cells, row["error"][:60]
        )
    return table
