"""Evaluation: always over the same first batches of the validation split."""

from collections.abc import Callable, Iterable, Mapping

import jax

from paxlike.adapt.parts import Parts
from paxlike.training.step import DeviceBatch


def evaluate(
    eval_step: Callable, params: dict | Parts, batches: Iterable[DeviceBatch]
) -> dict[str, float]:
    """Returns `loss` (cross-entropy, nats per token), `accuracy` and `tokens` over the batches."""
    results = [eval_step(params, batch) for batch in batches]
    cross_entropy, correct, tokens = 0.0, 0.0, 0
    for losses, count in jax.device_get(results):
        cross_entropy += float(losses.cross_entropy)
        correct += float(losses.correct)
        tokens += int(count)
    return {
        "loss": cross_entropy / max(tokens, 1),
        "accuracy": correct / max(tokens, 1),
        "tokens": tokens,
    }


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
        for name in ("loss", "accuracy")
    }
    losses = {f"loss {part}": found["loss"] for part, found in parts.items()}
    return {**mean, "tokens": sum(found["tokens"] for found in parts.values()), **losses}
