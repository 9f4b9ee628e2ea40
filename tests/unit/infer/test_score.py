"""Scores of given tokens equal the reference's log-probabilities, for any batch size and mesh."""

import functools

import jax
import numpy as np
import pytest
from helpers import Batch, device_batch, host_params, mesh_of, model_config, numerics_of, place
from interop_cases import expected_logits
from jax import set_mesh

from paxlike.config import ExpertsConfig, QuantConfig, UserError
from paxlike.infer.score import Scorer
from paxlike.training.step import losses_of

CONFIGS = {
    "tied": {},
    "untied": {"head": "untied", "block": "serial", "norm": "rms"},
    "experts": {"block": "serial_experts", "norm": "rms", "experts": ExpertsConfig(4, 2, 24)},
}
RANDOM = np.random.default_rng(0)
SEQUENCES = [RANDOM.integers(0, 90, n).tolist() for n in (2, 17, 9, 40, 3)]
STARTS = [1, 5, 9, 33, 1]


def expected(config, tokens, start):
    logits = expected_logits(config, tokens=np.array(tokens[:-1]))
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    targets = np.array(tokens[1:])
    return logprobs[np.arange(len(targets)), targets][start - 1 :], (logits.argmax(-1) == targets)[
        start - 1 :
    ]


@pytest.mark.parametrize(
    ("kind", "sizes", "batch"),
    [
        ("tied", (1, 1, 1), 2),
        ("untied", (1, 2, 4), 3),
        ("tied", (2, 2, 2), 16),
        ("experts", (1, 2, 1, 2), 3),
    ],
)
def test_scores_equal_the_reference(kind, sizes, batch):
    config = model_config(**CONFIGS[kind])
    with set_mesh(mesh_of(*sizes)):
        scorer = Scorer(
            config.model, numerics_of(config), place(config, host_params(config)), 48, batch
        )
        scores = scorer.score(SEQUENCES, STARTS)
    for tokens, start, score in zip(SEQUENCES, STARTS, scores, strict=True):
        logprobs, greedy = expected(config, tokens, start)
        assert score.logprobs.dtype == np.float32
        np.testing.assert_allclose(score.logprobs, logprobs, atol=2e-5)
        np.testing.assert_array_equal(score.greedy, greedy)


@pytest.mark.parametrize(
    ("tokens", "start", "message"),
    [
        ([1, 2, 90], 1, "tokens from 1 to 90, but the model's vocabulary is 0 to 89"),
        ([1, 2], 0, "has 2 tokens and start 0"),
        ([1, 2], 3, "has 2 tokens and start 3"),
        (list(range(10)), 1, "sequence 0 has 10 tokens; the maximum is 9"),
    ],
)
def test_sequences_that_cannot_be_scored(tokens, start, message):
    config = model_config()
    with set_mesh(mesh_of()):
        scorer = Scorer(config.model, numerics_of(config), place(config, host_params(config)), 8)
        with pytest.raises(UserError, match=message):
            scorer.score([tokens], [start])
        with pytest.raises(UserError, match="batch size is 0"):
            Scorer(config.model, numerics_of(config), scorer.params, 8, 0)


@pytest.mark.slow
def test_quantized_models_are_scored_as_in_generation():
    """Each token has its own activation scale, so neither padding nor other rows change a score."""
    config = model_config(quant=QuantConfig(weights="bitnet_b158", statistics="token"))
    ungrouped = model_config(quant=QuantConfig(weights="bitnet_b158"))
    params, tokens = host_params(config), np.array(SEQUENCES[3])
    with set_mesh(mesh_of()):
        placed = place(config, params)
        scores = [
            Scorer(c.model, numerics_of(c), placed, 48, rows).score([tokens, SEQUENCES[0]], [1, 1])[
                0
            ]
            for c, rows in ((config, 1), (ungrouped, 2))
        ]
        batch = Batch(tokens[None, :-1].astype(np.int32), tokens[None, 1:].astype(np.int32), None)
        # Custom gradients with symbolic zeros need `jit` around the `shard_map`.
        sums = jax.jit(functools.partial(losses_of, config, numerics_of(config)))
        losses = sums(placed, device_batch(batch))
    for score in scores:
        # A few activations are so close to a rounding boundary that the order of sums decides.
        assert -score.logprobs.sum() == pytest.approx(float(losses.cross_entropy), rel=1e-4)
        assert abs(score.greedy.sum() - float(losses.correct)) <= 1
