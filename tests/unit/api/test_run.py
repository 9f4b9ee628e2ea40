"""`paxlike.open_run`, against a model's logits in float64 and the run's own metrics file."""

import importlib.util
import json
import math
import sys

import jax
import numpy as np
import pytest
from reference import logits as reference_logits

import paxlike
from paxlike.accounting.throughput import PRODUCTIVE
from paxlike.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    EvalConfig,
    LogConfig,
    MeshConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
)
from paxlike.data.prepare import PrepareConfig, prepare
from paxlike.training.loop import train

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of six steps on a 2 x 4 mesh."""
    root = tmp_path_factory.mktemp("api")
    for number in range(8):
        (root / f"{number}.txt").write_text(f"text {number} says alpha beta gamma. " * 30)
    store = root / "store"
    texts = (str(root / "*.txt"),)
    prepare(PrepareConfig(texts, str(store), tokenizer="bytes", validation_fraction=0.2))
    config = Config(
        name="api",
        model=ModelConfig(
            layers=2, d_model=32, heads=4, kv_heads=1, head_dim=8, d_ff=64, vocab_size=320,
            vocab_multiple=64,
        ),
        data=DataConfig(store=str(store), sequence_length=32),
        optim=OptimConfig(name="adamw", learning_rate=1e-2, schedule="constant", warmup_steps=2),
        train=TrainConfig(steps=6, batch_size=8),
        mesh=MeshConfig(data=2, model=4),
        checkpoint=CheckpointConfig(every=3),
        eval=EvalConfig(every=3, batches=1),
        log=LogConfig(every=1, tensorboard=False),
    )  # fmt: skip
    train(config, root / "run")
    return root / "run"


@pytest.fixture(scope="module")
def run(folder):
    return paxlike.open_run(folder)


def expected_logits(run, tokens: list[int]) -> np.ndarray:
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), jax.device_get(run.params))
    return reference_logits(params, run.config.model, np.array([tokens]))[0]


def test_logits_are_those_of_the_model_in_float64(run):
    tokens = run.tokenizer.encode("text 3 says alpha").tolist()
    found = run.logits(tokens)
    assert found.shape == (len(tokens), 320) and found.dtype == np.float32
    np.testing.assert_allclose(found, expected_logits(run, tokens), atol=2e-5)
    batch = run.logits([tokens, tokens[::-1], tokens])
    np.testing.assert_allclose(batch[1], expected_logits(run, tokens[::-1]), atol=2e-5)
    np.testing.assert_array_equal(batch[0], batch[2])


def test_another_mesh_gives_the_same_logits(folder, run):
    tokens = [5, 80, 100, 7, 30]
    other = paxlike.open_run(folder, mesh=MeshConfig(data=8, model=1))
    assert dict(other.mesh.shape) == {"pod": 1, "data": 8, "model": 1}
    np.testing.assert_allclose(other.logits(tokens), run.logits(tokens), atol=2e-5)


def test_scores_are_log_probabilities_after_the_end_of_document_token(run):
    texts = ["alpha beta", "x"]
    for text, score in zip(texts, run.score(texts), strict=True):
        tokens = run.tokenizer.encode(text).tolist()
        logits = expected_logits(run, [run.tokenizer.eod, *tokens])[:-1]
        logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        expected = logs[np.arange(len(tokens)), tokens]
        np.testing.assert_array_equal(score.tokens, tokens)
        np.testing.assert_allclose(score.logprobs, expected, atol=3e-5)
        assert score.total == pytest.approx(expected.sum(), abs=1e-4)
        assert score.perplexity == pytest.approx(math.exp(-expected.mean()), rel=1e-4)


def test_greedy_generation_appends_the_most_likely_token(run):
    prompt = "text 3 says"
    (text,) = run.generate([prompt], max_new_tokens=6, temperature=0)
    tokens = run.tokenizer.encode(prompt).tolist()
    for _ in range(6):
        following = int(run.logits(tokens)[-1].argmax())
        if following == run.tokenizer.eod:
            break
        tokens.append(following)
    assert prompt + text == run.tokenizer.decode(tokens)
    first, second = (run.generate([prompt], max_new_tokens=6, seed=s)[0] for s in (1, 1))
    assert first == second


def test_metrics_are_the_columns_of_the_metrics_file(folder, run):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["loss"] for line in lines if "loss" in line and "mfu" in line}
    metrics = run.metrics
    np.testing.assert_array_equal(metrics["step"], sorted(losses))
    np.testing.assert_array_equal(metrics["loss"], [losses[step] for step in sorted(losses)])
    assert {"loss", "mfu", "hfu", "tokens_per_second"} <= set(metrics) and len(metrics["mfu"]) == 6
    assert [step for step, _ in metrics.evaluations] == [3, 6]
    assert metrics.goodput[PRODUCTIVE] > 0


def test_metrics_become_a_data_frame(run, monkeypatch):
    if importlib.util.find_spec("pandas"):
        frame = run.metrics.to_pandas()
        assert list(frame.index) == [1, 2, 3, 4, 5, 6]
        np.testing.assert_array_equal(frame["loss"], run.metrics["loss"])
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError):
        run.metrics.to_pandas()


def test_an_earlier_checkpoint(folder, run):
    earlier = paxlike.open_run(folder, step=3)
    assert (earlier.step, run.step) == (3, 6)
    assert not np.array_equal(earlier.logits([1, 2]), run.logits([1, 2]))


def test_mistakes_are_user_errors(folder, run, tmp_path):
    for call, message in (
        (lambda: paxlike.open_run(tmp_path / "none"), "none"),
        (lambda: paxlike.open_run(folder, step=4).params, "4"),
        (lambda: run.logits([1, 320]), "vocabulary is 0 to 319"),
        (lambda: run.logits([0.5]), "integer"),
        (lambda: run.score(["a", ""]), "text 1 is empty"),
        (lambda: run.generate("one string"), "list"),
    ):
        with pytest.raises(paxlike.UserError, match=message):
            call()
