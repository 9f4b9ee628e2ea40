"""seqio's own Evaluator on a model: what it is given is the model's own probabilities, its metrics
are those of what the model says.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import host_params, mesh_of, numerics_of, place
from interop_cases import case, expected_logits, make_run

from paxlike.config import ConfigError, UserError
from paxlike.data.seqio_source import load_module
from paxlike.data.tokenizer import BytesTokenizer
from paxlike.interop.seqio_evaluator import SeqioModel, evaluate_mixture
from paxlike.training.loaded_run import LoadedRun

pytestmark = pytest.mark.optional("seqio")
CONFIG = case()
MODULE = Path(__file__).parents[2] / "seqio_tasks.py"
COUNT = 6


@pytest.fixture(scope="module")
def trained():
    mesh = mesh_of(1, 2, 4)
    with jax.set_mesh(mesh):
        params = place(CONFIG, host_params(CONFIG))
    return LoadedRun(CONFIG, numerics_of(CONFIG), params, 7, BytesTokenizer(), mesh)


@pytest.fixture(scope="module")
def model(trained):
    return SeqioModel(trained, batch_size=4)


def evaluator(mixture="made_questions", split="train", **settings):
    import seqio

    load_module(MODULE)
    return seqio.Evaluator(
        mixture, seqio.DecoderFeatureConverter(pack=False), split,
        num_examples=COUNT, async_compute_metrics=False, **settings,
    )  # fmt: skip


def made(mixture="made_questions", split="train") -> list[tuple[list[int], list[int]]]:
    """(inputs, targets) of the first examples, straight from the task."""
    import seqio

    load_module(MODULE)
    task = seqio.get_mixture_or_task(mixture)
    dataset = task.get_dataset(None, split, shuffle=False).take(COUNT).as_numpy_iterator()
    return [
        (example.get("inputs", np.zeros(0, int)).tolist(), example["targets"].tolist())
        for example in dataset
    ]


def expected_score(before: list[int], targets: list[int]) -> float:
    logits = expected_logits(CONFIG, tokens=np.array(before + targets[:-1]))[len(before) - 1 :]
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return float(logprobs[np.arange(len(targets)), targets].sum())


def test_scores_are_those_of_the_targets(model):
    found = dict(model.score(evaluator().cached_model_datasets["made_questions"]))
    assert sorted(found) == list(range(COUNT))
    for number, (inputs, targets) in enumerate(made()):
        assert found[number] == pytest.approx(expected_score(inputs, targets), abs=1e-3)


def test_without_inputs_a_text_follows_the_end_of_the_one_before(model):
    """As in training on texts one after the other."""
    texts = evaluator_of_texts()
    found = dict(model.score(texts))
    for number, (_, targets) in enumerate(made("short_texts")):
        assert found[number] == pytest.approx(expected_score([1], targets), abs=1e-3)


def evaluator_of_texts():
    import seqio
    import tensorflow

    load_module(MODULE)
    if "short_texts" not in seqio.TaskRegistry.names():
        task = seqio.TaskRegistry.get("made_texts")

        def short(dataset):
            return dataset.map(
                lambda e: {"targets": tensorflow.strings.substr(e["targets"], 0, 30)}
            )

        seqio.TaskRegistry.add(
            "short_texts",
            task.source,
            task.output_features,
            [short, *task.preprocessors],
            metric_fns=[lambda targets, scores: {"mean": np.mean(scores)}],
        )
    return evaluator("short_texts").cached_model_datasets["short_texts"]


def test_predictions_are_the_most_likely_tokens(model):
    dataset = evaluator().cached_model_datasets["made_questions"]
    length = next(dataset.as_numpy_iterator())[1]["decoder_target_tokens"].shape[0]
    found = model.predict(dataset)
    assert len({len(tokens) for _, tokens in found}) == 1, "seqio stacks them"
    predicted = dict(found)
    assert sorted(predicted) == list(range(COUNT))
    for number, (inputs, _) in enumerate(made()):
        tokens = list(inputs)
        while len(tokens) < length:
            tokens.append(int(expected_logits(CONFIG, tokens=np.array(tokens))[-1].argmax()))
            if tokens[-1] == 1:
                break
        new = tokens[len(inputs) :]
        assert predicted[number][: len(new)] == new
        assert set(predicted[number][len(new) :]) <= {1}, "what follows is the end"


def test_the_tasks_own_metrics(model):
    import seqio

    vocabulary = seqio.ByteVocabulary()
    made_evaluator = evaluator()
    metrics, outputs = made_evaluator.evaluate(
        compute_metrics=True, predict_fn=model.predict, score_fn=model.score, step=7
    )
    found = metrics.result()["made_questions"]
    dataset = made_evaluator.cached_model_datasets["made_questions"]
    scores = [score for _, score in sorted(model.score(dataset))]
    assert found["mean_score"] == pytest.approx(np.mean(scores)) == pytest.approx(
        np.mean([expected_score(*example) for example in made()]), abs=1e-3
    )  # fmt: skip
    texts = [vocabulary.decode(tokens) for _, tokens in sorted(model.predict(dataset))]
    targets = [vocabulary.decode(tokens) for _, tokens in made()]
    assert found["equal"] == np.mean([a == b for a, b in zip(texts, targets, strict=True)])
    assert outputs["made_questions"]


def test_a_model_that_says_the_targets_is_all_right():
    """The metrics see what the model says: one that repeats the targets is always equal."""
    longest = max(len(targets) for _, targets in made())

    class Oracle(SeqioModel):
        def __init__(self):
            self.batch_size, self.max_length = 4, 64
            self.trained = LoadedRun(CONFIG, None, {}, 0, BytesTokenizer(), None)

        def _generated(self, prompts, room):
            answers = {tuple(inputs): targets for inputs, targets in made()}
            return [answers[tuple(prompt.tolist())] for prompt in prompts]

    oracle = Oracle()
    dataset_evaluator = evaluator()
    metrics, _ = dataset_evaluator.evaluate(
        compute_metrics=True,
        predict_fn=oracle.predict,
        score_fn=lambda ds: [(n, 0.0) for n in range(COUNT)],
    )
    assert metrics.result()["made_questions"]["equal"] == 1.0
    assert all(
        len(tokens) == longest + 1
        for _, tokens in oracle.predict(dataset_evaluator.cached_model_datasets["made_questions"])
    )


def test_what_does_not_fit_is_named(model, trained):
    import seqio
    import tensorflow

    tokens = tensorflow.data.Dataset.from_tensor_slices({"targets": tensorflow.fill([1, 70], 5)})
    converted = seqio.DecoderFeatureConverter(pack=False)(tokens, {"targets": 70})
    with pytest.raises(
        UserError, match="example 0 has 71 tokens, but the model's sequences have 64"
    ):
        model.score(converted.enumerate())
    with pytest.raises(UserError, match="has no task with metric_fns and a split 'validation'"):
        evaluate_mixture(trained, "made_questions", str(MODULE))
    with pytest.raises(UserError, match="no task with metric_fns"):
        evaluate_mixture(trained, "made_texts", str(MODULE))
    smaller = trained._replace(config=case(vocab_size=200))
    with pytest.raises(ConfigError, match="vocab_size 200 is smaller than the 259 ids"):
        evaluate_mixture(smaller, "made_questions", str(MODULE), "train")


def test_a_packed_dataset_is_refused(model):
    import seqio
    import tensorflow

    examples = tensorflow.data.Dataset.from_tensor_slices(
        {"targets": tensorflow.ones([3, 9], tensorflow.int32)}
    )
    packed = seqio.DecoderFeatureConverter(pack=True)(examples, {"targets": 32})
    with pytest.raises(
        UserError, match=r"feature_converter=seqio.DecoderFeatureConverter\(pack=False\)"
    ):
        model.score(packed.enumerate())


@pytest.mark.slow
def test_the_command(tmp_path):
    run = make_run(tmp_path / "run", CONFIG)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "paxlike",
            "eval",
            str(run),
            "--seqio-mixture",
            "made_questions",
            "--module",
            str(MODULE),
            "--split",
            "train",
            "--limit",
            str(COUNT),
            "--json",
        ],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["made_questions"]
    assert found["mean_score"] == pytest.approx(
        np.mean([expected_score(*example) for example in made()]), abs=1e-3
    )
