"""Evaluation: always over the same first batches of the validation split."""

from collections.abc import Callable, Iterable

import jax

from paxlike.training.step import DeviceBatch


def evaluate(eval_step: Callable, params: dict, batches: Iterable[DeviceBatch]) -> dict[str, float]:
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
