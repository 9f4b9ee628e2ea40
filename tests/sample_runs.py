"""Writes run directories with synthetic metrics, in the format of training, to test reports."""

import json
import math
import random
from pathlib import Path

CAUSES = (
    "step",
    "repeated steps",
    "compile",
    "checkpoint",
    "evaluation",
    "data stall",
    "restart",
    "other",
)
MIB = 2**20


def start(step: int = 0, **changes) -> dict:
    """Returns a start event: 16 TPU v4 chips, 6e9 model and 7.2e9 executed FLOPs per token."""

    def count(name, formula, total):
        return {"name": name, "formula": formula, "total": total}

    event = {
        "event": "start",
        "step": step,
        "device": "TPU v4",
        "devices": 16,
        "mesh": {"pod": 1, "data": 4, "model": 4},
        "peak": 275e12,
        "peak_source": "MFU relative to 275 TFLOP/s dense bfloat16 per TPU v4",
        "chip": {"name": "v4", "title": "TPU v4", "source": "a data sheet", "dtype": "bfloat16"},
        "chips": 16.0,
        "flops_per_token": {
            "model": {
                "palm": count("palm", "6N + 12LHQT", 6_000_000_000),
                "palm_no_embedding": count("palm_no_embedding", "6(N - E) + 12LHQT", 5_500_000_000),
                "causal": count("causal", "6N + 6LHQT", 5_700_000_000),
            },
            "executed": count(
                "executed, splash attention, remat full", "6N + 12LHQT + …", 7_200_000_000
            ),
            "hardware": count("palm + remat full", "6N + 12LHQT + 2N + 4LHQT", 8_000_000_000),
            "by_part": {
                "attention projections": 9e8,
                "attention products": 6e8,
                "feed-forward": 3.9e9,
                "logits": 6e8,
                "computed again": 1.2e9,
            },
        },
        "memory_plan": {
            "parameters": 700 * MIB,
            "optimizer state": 1400 * MIB,
            "gradients": 700 * MIB,
            "saved activations": 2500 * MIB,
            "at work": 900 * MIB,
        },
        "energy_source": None,
        "energy_devices": 16,
    }
    return {**event, **changes}


def step(
    number: int, loss: float = 3.0, seconds: float = 2.0, tokens: int = 1_000_000, **more
) -> dict:
    """Returns the line of a step, with the device and FLOPs of `start`."""
    rate = tokens / seconds
    used = rate / (16 * 275e12)
    values = {
        "loss": loss,
        "step_seconds": seconds,
        "tokens_per_second": rate,
        "mfu": used * 6e9,
        "hfu": used * 7.2e9,
    }
    return {"step": number, **values, **more}


def recorded(**seconds: float) -> dict:
    """Returns the `goodput` of a line: cause (with _ for a space) -> seconds, 0 by default."""
    return {
        **dict.fromkeys(CAUSES, 0.0),
        **{cause.replace("_", " "): value for cause, value in seconds.items()},
    }


def write(folder: Path, lines: list[dict | str], *, name: str = "made", steps: int = 100) -> Path:
    """Writes a run directory with these lines. A str is written unchanged."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"name": name, "train": {"steps": steps}}))
    text = "".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text)
    return folder


def realistic_run(
    folder: Path, steps: int, seed: int = 0, restart_at: int | None = None, rate: float = 1.0
) -> Path:
    """Writes a run with noise, slow steps, evaluations and checkpoints.

    restart_at: the step after which the first attempt is killed. rate: relative speed.
    """
    draw, run, every = random.Random(seed), _Lines(), max(1, steps // 8)
    run.event("compile", 0, 48.0, batch=[1, 512, 2048], memory=COMPILED_MEMORY)
    k, killed = 1, False
    while k <= steps:
        seconds = (1.9 + 0.1 * draw.random() + (draw.random() < 0.01) * 3 * draw.random()) / rate
        loss = (
            2.1
            + 8.5 * math.exp(-9 * k / steps) * rate**-0.3
            + 1.2 * (k + 3) ** -0.35
            + draw.gauss(0, 0.06)
        )
        run.step(k, loss, seconds)
        if k % every == 0:
            run.event("checkpoint", k, 4.0)
            run.event("evaluation", k, 21.0, loss=loss + 0.08)
        if k == restart_at and not killed:
            killed = True
            k -= k % every
            run.restart(k, 400.0)
        k += 1
    run.finish(steps)
    return write(folder, run.lines, name="realistic", steps=steps)


COMPILED_MEMORY = {
    "arguments": 2200 * MIB,
    "outputs": 2150 * MIB,
    "temporaries": 4300 * MIB,
    "aliased": 2100 * MIB,
    "code": MIB,
}


class _Lines:
    """The lines of a run, with a simulated clock."""

    def __init__(self):
        self._now, self._goodput = 1_790_000_000.0, recorded(other=21.0)
        self.lines = [{**start(), "goodput": dict(self._goodput), "time": self._now}]

    def event(self, name: str, k: int, seconds: float, **values) -> None:
        """Adds an event that takes `seconds`; its name is also the cause."""
        self._pass(name, seconds)
        event = {"event": name, "step": k, "seconds": seconds, **values}
        self.lines.append({**event, "goodput": dict(self._goodput), "time": round(self._now, 3)})

    def step(self, k: int, loss: float, seconds: float) -> None:
        self._pass("step", seconds)
        line = {**step(k, loss, seconds, 640_000), "time": round(self._now, 3)}
        if k % 10 == 0:
            line["goodput"] = dict(self._goodput)
            line["device_memory"] = {
                "in_use": 5000 * MIB,
                "peak": 6900 * MIB,
                "limit": 32768 * MIB,
            }
        self.lines.append(line)

    def restart(self, k: int, seconds: float) -> None:
        """Adds the start of an attempt that resumes from step k, `seconds` after the last line."""
        self._now += seconds
        self.lines.append({**start(k), "time": round(self._now, 3)})
        self._goodput = _goodput(self.lines)

    def finish(self, k: int) -> None:
        line = {"event": "finish", "step": k, "goodput": dict(self._goodput)}
        self.lines.append({**line, "time": round(self._now, 3)})

    def _pass(self, cause: str, seconds: float) -> None:
        self._now += seconds
        self._goodput[cause] += seconds


def _goodput(lines: list[dict]) -> dict:
    """Returns the goodput that a resumed attempt starts with."""
    from paxlike.accounting.goodput import RecordedGoodput

    goodput = RecordedGoodput()
    for line in lines:
        goodput.add(line)
    return goodput.seconds()
