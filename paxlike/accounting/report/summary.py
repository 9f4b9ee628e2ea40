"""Computes the figures of a report, from a run's history or from a rate measured elsewhere.

`summarize` and `from_rate` return dicts with the same keys; unknown values are None. FLOPs are per
token, memory is in bytes per device, times are in seconds. Speeds cover only the steps that ran in
the same setting as the last attempt (devices, mesh, peak and FLOPs), because rates on different
meshes are not comparable. MFU and HFU are computed from the median rate.
"""

import math

import numpy as np

from paxlike.accounting.flops import Count, Term, hardware_flops
from paxlike.accounting.hardware import Chip, chip_named
from paxlike.accounting.history import History, number
from paxlike.accounting.router_series import ROUTER_SERIES, over_layers
from paxlike.accounting.throughput import (
    STEPS_FOR_WARNINGS,
    Utilization,
    fraction_productive,
    reported_counts,
    utilization,
)
from paxlike.config import Config, UserError

SETTING = ("device", "devices", "mesh", "peak", "chips", "flops_per_token")
"""Fields of the start event that must agree for the speeds of two attempts to be comparable."""


def summarize(history: History) -> dict:
    """Returns all figures of a run."""
    start = next((a.start for a in reversed(history.attempts) if a.start), {})
    comparable = same_setting(history)
    seconds = _spread(history.series["step_seconds"][comparable])
    rate = _spread(history.series["tokens_per_second"][comparable])
    tokens = run_tokens(history)
    wall = sum(history.goodput.values())
    shares, notes = _shares(start, rate["median"] if rate else None)
    if history.steps.size and not comparable.all():
        notes.append(
            f"speeds cover the {int(comparable.sum()):,} steps on the last attempt's mesh and "
            f"peak; {int((~comparable).sum()):,} steps ran in another setting and are excluded."
        )
    given = start.get("flops_per_token")
    flops = given if isinstance(given, dict) else {}
    return {
        "name": history.name,
        "folder": str(history.folder),
        "status": _status(history),
        "device": start and f"{start.get('devices')} x {start.get('device')}" or None,
        "mesh": start.get("mesh"),
        "steps": {
            "done": int(history.steps[-1]) if history.steps.size else 0,
            "planned": history.planned_steps,
        },
        "tokens": tokens,
        "loss": _losses(history),
        "mixture": history.mixture or None,
        "routers": _routers(history),
        "step_seconds": seconds,
        "tokens_per_second": rate
        and {**rate, "over_wall_time": tokens / wall if tokens and wall else None},
        "utilization": [share_as_dict(share) for share in shares],
        "goodput": {
            "fraction": fraction_productive(history.goodput),
            "wall_seconds": wall,
            "seconds": history.goodput,
        },
        "flops_by_part": _numbers(flops.get("by_part")),
        "memory": _memory(history, start),
        "energy": _energy(history, tokens, notes),
        "attempts": [
            {
                "first_step": a.first_step,
                "last_step": a.last_step,
                "end": a.end,
                "mesh": a.start.get("mesh"),
            }
            for a in history.attempts
        ],
        "notes": [*history.notes, *notes],
        "warnings": _warnings(shares) if comparable.sum() >= STEPS_FOR_WARNINGS else [],
    }


def from_rate(
    config: Config, tokens_per_second: float, chip_name: str, chips: float, dtype: str = "bfloat16"
) -> dict:
    """Returns the figures of a run measured elsewhere: MFU by each convention, and HFU.

    HFU uses PaLM's formula. Raises UserError for an unknown chip or dtype, or a number that is not
    positive and finite.
    """
    chip, T = chip_named(chip_name), config.data.sequence_length
    hardware = hardware_flops(config.model, T)
    shares = _all_shares(
        reported_counts(config.model, T), {"HFU": hardware}, (tokens_per_second, chips, chip, dtype)
    )
    if not all(math.isfinite(value) for value in (tokens_per_second, chips)):
        raise UserError(
            f"--tokens-per-second {tokens_per_second} and --chips {chips} must be finite numbers."
        )
    return {
        "name": config.name,
        "folder": None,
        "status": "computed from a given rate",
        "device": f"{chips:,g} x {chip.title}",
        "mesh": None,
        "steps": None,
        "tokens": None,
        "loss": None,
        "mixture": None,
        "routers": None,
        "step_seconds": None,
        "tokens_per_second": {
            "median": tokens_per_second,
            "p10": None,
            "p90": None,
            "over_wall_time": None,
        },
        "utilization": [share_as_dict(share) for share in shares],
        "goodput": None,
        "flops_by_part": None,
        "memory": None,
        "energy": None,
        "attempts": [],
        "notes": [
            f"sequences of {T:,} tokens; HFU includes the recomputation of model.remat "
            f"{config.model.remat}, by PaLM's formula."
        ],
        "warnings": _warnings(shares),
    }


def for_json(summaries: list[dict]) -> dict:
    """Returns {"format": 1, "runs": summaries}, with None for NaN and infinities."""

    def plain(value: object) -> object:
        if isinstance(value, dict):
            return {str(key): plain(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [plain(inner) for inner in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return {"format": 1, "runs": plain(summaries)}


# ---- speed ---------------------------------------------------------------------------------------


def same_setting(history: History) -> np.ndarray:
    """Returns a bool for each step: whether it ran in the same SETTING as the last step."""
    if not history.steps.size:
        return np.zeros(0, bool)
    settings = [tuple(str(a.start.get(name)) for name in SETTING) for a in history.attempts]
    # A CPU's peak is measured at each start and always differs a little, so it is not compared.
    cpus = [a.start.get("device") == "cpu" for a in history.attempts]
    peak = SETTING.index("peak")
    settings = [
        s[:peak] + s[peak + 1 :] if cpu else s for s, cpu in zip(settings, cpus, strict=True)
    ]
    same = np.array([setting == settings[history.attempt_of[-1]] for setting in settings])
    return same[history.attempt_of]


def run_tokens(history: History) -> int:
    """Returns the tokens of all steps. Repeated steps count once."""
    product = history.series["tokens_per_second"] * history.series["step_seconds"]
    return round(float(np.nansum(product)))


def _spread(values: np.ndarray) -> dict[str, float] | None:
    found = values[np.isfinite(values) & (values > 0)]
    if not found.size:
        return None
    p10, median, p90 = np.percentile(found, [10, 50, 90])
    return {"median": float(median), "p10": float(p10), "p90": float(p90)}


def _shares(start: dict, rate: float | None) -> tuple[list[Utilization], list[str]]:
    """Returns (MFU by each convention and HFU by both counts, notes), from a start event."""
    if rate is None:
        return [], ["no MFU: no step has a duration and a rate."]
    peak, chips = number(start.get("peak")), number(start.get("chips"))
    try:
        if not (peak and chips):
            return [], [f"no MFU: {start.get('peak_source') or 'the start event has no peak'}"]
        chip = start["chip"]
        row = Chip(
            str(chip["name"]),
            str(chip["title"]),
            {str(chip["dtype"]): peak},
            0,
            0.0,
            str(chip["source"]),
        )
        flops = start["flops_per_token"]
        counts = {str(name): _count(count) for name, count in flops["model"].items()}
        hardware = {
            "HFU": _count(flops["executed"]),
            "HFU (PaLM formula)": _count(flops["hardware"]),
        }
        return _all_shares(counts, hardware, (rate, chips, row, str(chip["dtype"]))), []
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        return [], [f"no MFU: the start event cannot be used ({type(error).__name__}: {error})."]


def _all_shares(
    counts: dict[str, Count], hardware: dict[str, Count], of: tuple
) -> list[Utilization]:
    shares = [utilization("MFU", count, *of) for count in counts.values()]
    return shares + [utilization(name, count, *of) for name, count in hardware.items()]


def _warnings(shares: list[Utilization]) -> list[str]:
    """Returns the warning of the larger of MFU (palm) and HFU, as training prints it, if any."""
    checked = [
        next(share for share in shares if share.name == name) for name in ("MFU", "HFU") if shares
    ]
    largest = max(checked, key=lambda share: share.fraction, default=None)
    return [largest.warning] if largest and largest.warning else []


def _count(given: dict) -> Count:
    total = number(given["total"])
    if total is None or total <= 0:
        raise ValueError(f"{given['total']!r} FLOPs per token")
    name = str(given["name"])
    return Count(name, (Term(name, str(given["formula"]), round(total)),))


def share_as_dict(share: Utilization) -> dict:
    return {
        "name": share.name,
        "convention": share.flops.name,
        "fraction": share.fraction,
        "formula": share.formula,
        "flops_per_token": share.flops.total,
        "tokens_per_second": share.tokens_per_second,
        "chips": share.chips,
        "peak_flops_per_second": share.chip.peak(share.dtype),
        "peak": share.peak,
    }


# ---- other figures -------------------------------------------------------------------------------


def _status(history: History) -> str:
    last = history.attempts[-1]
    if history.running:
        return "in progress"
    return {
        "finish": "finished",
        "stop": f"stopped by {last.signal}",
        "fail": "not finished",
        None: "not finished",
    }[last.end]


def _losses(history: History) -> dict:
    loss, evaluations = history.series["loss"], history.evaluations
    known = np.flatnonzero(np.isfinite(loss))
    best = known[np.argmin(loss[known])] if known.size else None
    lowest = min(evaluations, key=lambda pair: pair[1], default=None)
    point = lambda step, value: {"step": int(step), "loss": float(value)}  # noqa: E731
    return {
        "last": point(history.steps[known[-1]], loss[known[-1]]) if known.size else None,
        "lowest": point(history.steps[best], loss[best]) if known.size else None,
        "evaluation": point(*evaluations[-1]) if evaluations else None,
        "lowest_evaluation": point(*lowest) if lowest else None,
    }


def _routers(history: History) -> dict[str, float] | None:
    """Each metric of the routers at the last step that has it."""
    found = {}
    for metric in ROUTER_SERIES:
        values = over_layers(history.routers, metric)
        if values is not None and np.isfinite(values).any():
            found[metric] = float(values[np.isfinite(values)][-1])
    return found or None


def _memory(history: History, start: dict) -> dict | None:
    """Returns memory as planned, as compiled and as reported by the device, in bytes per device."""
    plan = _numbers(start.get("memory_plan"))
    compiled = _numbers(next((a.compiled for a in reversed(history.attempts) if a.compiled), None))
    device = _numbers(
        next((a.device_memory for a in reversed(history.attempts) if a.device_memory), None)
    )
    if compiled:
        sizes = [compiled.get(name, 0) for name in ("arguments", "outputs", "temporaries")]
        compiled = {**compiled, "peak": sum(sizes) - compiled.get("aliased", 0)}
    if not (plan or compiled or device):
        return None
    return {
        "plan": plan and {"parts": plan, "total": sum(plan.values())},
        "compiled": compiled,
        "device": device,
    }


def _numbers(given: object) -> dict[str, int] | None:
    """Returns a non-empty dict of finite numbers, rounded to integers, or None for other values."""
    if not isinstance(given, dict) or any(number(value) is None for value in given.values()):
        return None
    return {str(name): round(value) for name, value in given.items()} or None


def _energy(history: History, tokens: int, notes: list[str]) -> dict | None:
    """Returns the joules of all attempts, in total and per token.

    The joules of repeated steps are included; their tokens count once. Assumes that devices without
    a reading use as much energy as the measured ones.
    """
    joules, source = 0.0, None
    for attempt in history.attempts:
        if attempt.joules is None:
            continue
        devices, measured = (
            number(attempt.start.get(name)) or 1 for name in ("devices", "energy_devices")
        )
        source = attempt.start.get("energy_source")
        joules += attempt.joules * devices / measured
        if devices > measured:
            notes.append(
                f"energy was measured on {measured:g} devices and is scaled to all {devices:g}."
            )
    if not joules:
        return None
    if any(attempt.joules is None for attempt in history.attempts):
        notes.append(
            "some attempts have no energy reading, so joules per token are underestimated."
        )
    return {
        "joules": joules,
        "joules_per_token": joules / tokens if tokens else None,
        "source": source and str(source),
    }
