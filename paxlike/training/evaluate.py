"""Evaluation: always over the same first batches of the validation split."""

from collections.abc import Callable, Iterable, Mapping

import jax

from paxlike.adapt.parts import Parts
from paxlike.training.step import DeviceBatch


def evaluate(
    eval_step: Callable, params: dict | Parts, batches: Iterable[DeviceBatch]
) -> dict[str, float]:
    """Returns `loss` (cross-entropy, nats per token), `accuracy` and `tokens` over the batches.

    With routed blocks also `loss_by_predictor` and `accuracy_by_predictor`: where the predictor
    decides which tokens they take.
    """
    results = [eval_step(params, batch) for batch in batches]
    sums: dict[str, float] = {"loss": 0.0, "accuracy": 0.0}
    tokens = 0
    for losses, count in jax.device_get(results):
        found = {"loss": losses.cross_entropy, "accuracy": losses.correct}
        if losses.statistics:
            found["loss_by_predictor"] = losses.statistics["cross_entropy"]
            found["accuracy_by_predictor"] = losses.statistics["correct"]
        for name, value in found.items():
            sums[name] = sums.get(name, 0.0) + float(value)
        tokens += int(count)
    return {**{name: total / max(tokens, 1) for name, total in sums.items()}, "tokens": tokens}


def evaluate_parts(
    eval_step: Callable,
    params: dict | Parts,
    batches: Mapping[str, Iterable[DeviceBatch]],
    weights: Mapping[str, float],
) -> dict[str, float]:
    """`evaluate` of the parts of a source: their weighted mean, and `loss NAME` of each part of a
    mixture. weights: their sum is 1.
    """
    parts = {name: evaluate(eval_step, params, found) for name, found in batches.items()}
    if len(parts) == 1 and "" in parts:
        return parts[""]
    mean = {
        name: sum(weights[part] * found[name] for part, found in parts.items())
        for name in next(iter(parts.values()))
        if name != "tokens"
    }
    losses = {f"loss {part}": found["loss"] for part, found in parts.items()}
    return {**mean, "tokens": sum(found["tokens"] for found in parts.values()), **losses}
