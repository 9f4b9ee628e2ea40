"""Run folders made of numbers, as training writes them, for tests of what reads them."""

import json
import math
import random
from pathlib import Path

CAUSES = ("step", "repeated steps", "compile", "checkpoint", "evaluation", "data stall", "restart", "other")
MIB = 2**20


def start(step: int = 0, **changes) -> dict:
    """A start event: 16 TPU v4 chips, 6e9 model FLOPs and 7.2e9 executed FLOPs per token."""

    def count(name, formula, total):
        return {"name": name, "formula": formula, "total": total}

    event = {
        "event": "start", "step": step, "device": "TPU v4", "devices": 16, "mesh": {"pod": 1, "data": 4, "model": 4},
        "peak": 275e12, "peak_source": "MFU is of 275 TFLOP/s dense bfloat16 per TPU v4",
        "chip": {"name": "v4", "title": "TPU v4", "source": "a data sheet", "dtype": "bfloat16"}, "chips": 16.0,
        "flops_per_token": {
            "model": {
                "palm": count("palm", "6N + 12LHQT", 6_000_000_000),
                "palm_no_embedding": count("palm_no_embedding", "6(N - E) + 12LHQT", 5_500_000_000),
                "causal": count("causal", "6N + 6LHQT", 5_700_000_000),
            },
            "executed": count("executed, splash attention, remat full", "6N + 12LHQT + …", 7_200_000_000),
            "hardware": count("palm + remat full", "6N + 12LHQT + 2N + 4LHQT", 8_000_000_000),
            "by_part": {
                "attention projections": 9e8, "attention products": 6e8, "feed-forward": 3.9e9, "logits": 6e8, "computed again": 1.2e9,
            },
        },
        "memory_plan": {
            "parameters": 700 * MIB, "optimizer state": 1400 * MIB, "gradients": 700 * MIB, "saved activations": 2500 * MIB,
            "at work": 900 * MIB,
        },
        "energy_source": None, "energy_devices": 16,
    }  # fmt: skip
    return {**event, **changes}


def step(number: int, loss: float = 3.0, seconds: float = 2.0, tokens: int = 1_000_000, **more) -> dict:
    rate = tokens / seconds
    used = rate / (16 * 275e12)
    values = {"loss": loss, "step_seconds": seconds, "tokens_per_second": rate, "mfu": used * 6e9, "hfu": used * 7.2e9}
    return {"step": number, **values, **more}


def booked(**seconds: float) -> dict:
    """`goodput` of a line: cause (with _ for a space) -> seconds."""
    return {**dict.fromkeys(CAUSES, 0.0), **{cause.replace("_", " "): value for cause, value in seconds.items()}}


def write(folder: Path, lines: list[dict], *, name: str = "made", steps: int = 100) -> Path:
    """A run folder with these lines; a line that is a str goes in as it is."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"name": name, "train": {"steps": steps}}))
    text = "".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text)
    return folder


def lifelike(folder: Path, steps: int, seed: int = 0, restart_at: int | None = None, rate: float = 1.0) -> Path:
    """A run that looks like one: noise, slow steps, evaluations, checkpoints, and a kill after `restart_at`."""
    draw = random.Random(seed)
    now, lines, spent = 1_790_000_000.0, [], booked(other=21.0)
    lines.append({**start(), "goodput": dict(spent), "time": now})

    def event(name, k, seconds, cause, **values):
        nonlocal now
        now += seconds
        spent[cause] += seconds
        lines.append(
            {"event": name, "step": k, "seconds": seconds, **values, "goodput": dict(spent), "time": round(now, 3)}
        )

    memory = {
        "arguments": 2200 * MIB,
        "outputs": 2150 * MIB,
        "temporaries": 4300 * MIB,
        "aliased": 2100 * MIB,
        "code": MIB,
    }
    event("compile", 0, 48.0, "compile", batch=[1, 512, 2048], memory=memory)
    k, killed = 1, False
    while k <= steps:
        seconds = (1.9 + 0.1 * draw.random() + (draw.random() < 0.01) * 3 * draw.random()) / rate
        loss = 2.1 + 8.5 * math.exp(-9 * k / steps) * rate**-0.3 + 1.2 * (k + 3) ** -0.35 + draw.gauss(0, 0.06)
        now += seconds
        spent["step"] += seconds
        more = {
            "goodput": dict(spent),
            "device_memory": {"in_use": 5000 * MIB, "peak": 6900 * MIB, "limit": 32768 * MIB},
        }
        lines.append({**step(k, loss, seconds, 640_000), "time": round(now, 3), **(more if k % 10 == 0 else {})})
        if k % max(1, steps // 8) == 0:
            event("checkpoint", k, 4.0, "checkpoint")
            event("evaluation", k, 21.0, "evaluation", loss=loss + 0.08)
        if restart_at and k == restart_at and not killed:
            killed = True
            back = k - k % max(1, steps // 8)
            now += 400.0
            lines.append({**start(back), "time": round(now, 3)})
            spent = None
            k = back
            spent = resumed(lines)
        k += 1
    lines.append({"event": "finish", "step": steps, "goodput": dict(spent), "time": round(now, 3)})
    return write(folder, lines, name="lifelike", steps=steps)


def resumed(lines: list[dict]) -> dict:
    """The bookings that a resumed attempt begins with."""
    from paxlike.accounting.booking import Booking

    booking = Booking()
    for line in lines:
        booking.add(line)
    return booking.seconds()
