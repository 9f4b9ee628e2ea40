"""The functions that seqio.Evaluator needs from a trained model, to compute a Task's own metrics.

converter = seqio.DecoderFeatureConverter(pack=False)
evaluator = seqio.Evaluator("my_task", feature_converter=converter)
model = SeqioModel(load_run(Path("runs/mine")))
metrics, _ = evaluator.evaluate(
    compute_metrics=True, predict_fn=model.predict, score_fn=model.score
)
"""

import inspect
from typing import Any, NamedTuple

import jax
import numpy as np

from paxlike.config import UserError
from paxlike.data.seqio_mixture import named
from paxlike.data.seqio_source import libraries
from paxlike.data.source import check_vocabulary
from paxlike.infer.generate import Generator
from paxlike.infer.score import Scorer
from paxlike.training.loaded_run import LoadedRun


class Example(NamedTuple):
    """One example from seqio's converters for decoders (LM, PrefixLM, Decoder)."""

    number: int
    tokens: np.ndarray
    """Inputs and targets, without padding."""
    inputs: int
    """Number of tokens that the model gets before it predicts."""
    weights: np.ndarray
    """Weight of each token in the score."""
    length: int
    """Maximum number of tokens of inputs and targets together."""


class SeqioModel:
    """A trained model for `seqio.Evaluator`, in batches of `batch_size` examples."""

    def __init__(self, trained: LoadedRun, batch_size: int = 16):
        self.trained, self.batch_size = trained, batch_size
        self.max_length = trained.config.data.sequence_length
        model, eod = trained.config.model, trained.tokenizer.eod
        with jax.set_mesh(trained.mesh):
            self.scorer = Scorer(
                model, trained.numerics, trained.params, self.max_length, batch_size
            )
            # A batch generates as many tokens as its shortest prompt allows. Longer prompts stop
            # earlier, when their sequences are full.
            self.generator = Generator(
                model, trained.numerics, self.scorer.params, eod, 2 * self.max_length
            )

    def predict(
        self, dataset: Any, model_feature_shapes: Any = None
    ) -> list[tuple[int, list[int]]]:
        """`predict_fn`: (number, most likely tokens after the inputs) of each example.

        All rows are padded to the longest with the end-of-sequence id, where seqio stops decoding.
        Raises UserError if inputs leave no room in the model's sequences.
        """
        examples = sorted(_examples(dataset), key=lambda example: example.inputs)
        eod = self.trained.tokenizer.eod
        found: list[tuple[int, list[int]]] = []
        for first in range(0, len(examples), self.batch_size):
            batch = examples[first : first + self.batch_size]
            prompts = [self._prompt(example) for example in batch]
            room = [
                min(e.length - e.inputs, self.max_length - len(p))
                for e, p in zip(batch, prompts, strict=True)
            ]
            tokens = self._generated(prompts, room)
            found += [(example.number, row) for example, row in zip(batch, tokens, strict=True)]
        longest = max((len(row) for _, row in found), default=0) + 1
        return [(number, row + [eod] * (longest - len(row))) for number, row in found]

    def score(self, dataset: Any, model_feature_shapes: Any = None) -> list[tuple[int, float]]:
        """`score_fn`: (number, sum of the targets' log-probabilities in nats) of each example.

        Raises UserError naming an example that is longer than the model's sequences.
        """
        examples = _examples(dataset)
        before = [self._prompt(example) for example in examples]
        sequences = [
            np.append(b, e.tokens[e.inputs :]) for b, e in zip(before, examples, strict=True)
        ]
        for example, sequence in zip(examples, sequences, strict=True):
            if len(sequence) > self.max_length + 1:
                raise self._too_long(example, len(sequence))
        with jax.set_mesh(self.trained.mesh):
            scores = self.scorer.score(sequences, [len(tokens) for tokens in before])
        return [
            (
                example.number,
                float((score.logprobs * example.weights[example.inputs :]).sum(dtype="float64")),
            )
            for example, score in zip(examples, scores, strict=True)
        ]

    def _prompt(self, example: Example) -> np.ndarray:
        """The inputs, or the end-of-document token, which precedes every document, if empty."""
        prompt = example.tokens[: example.inputs]
        if len(prompt) >= self.max_length:
            raise self._too_long(example, len(prompt) + 1)
        return prompt if len(prompt) else np.array([self.trained.tokenizer.eod])

    def _generated(self, prompts: list[np.ndarray], room: list[int]) -> list[list[int]]:
        tokens: list[list[int]] = [[] for _ in prompts]

        def ends(row: int, token: int) -> bool:
            tokens[row].append(token)
            return len(tokens[row]) >= room[row]

        with jax.set_mesh(self.trained.mesh):
            self.generator.generate(prompts, max(room), on_token=ends)
        return tokens

    def _too_long(self, example: Example, length: int) -> UserError:
        return UserError(
            f"example {example.number} has {length} tokens, but the model's sequences have "
            f"{self.max_length}; give seqio.Evaluator a smaller sequence_length."
        )


def _examples(dataset: Any) -> list[Example]:
    """The examples of an enumerated `dataset`. Raises UserError if it is packed or was not made by
    a converter for decoders.
    """
    examples = []
    for number, features in dataset.as_numpy_iterator():
        missing = [
            name
            for name in ("decoder_target_tokens", "decoder_loss_weights")
            if name not in features
        ]
        if missing or "decoder_segment_ids" in features:
            raise UserError(
                f"the Evaluator's dataset has {sorted(features)}; give it "
                "feature_converter=seqio.DecoderFeatureConverter(pack=False)."
            )
        tokens, weights = features["decoder_target_tokens"], features["decoder_loss_weights"]
        used = np.flatnonzero(weights)
        end = used[-1] + 1 if len(used) else 0
        # The converter marks one more position than the inputs have: the one that predicts the
        # first target.
        inputs = (
            int(features["decoder_causal_attention"].sum()) - 1
            if "decoder_causal_attention" in features
            else 0
        )
        end = max(end, inputs)
        examples.append(Example(int(number), tokens[:end], inputs, weights[:end], len(tokens)))
    return examples


def evaluate_mixture(
    trained: LoadedRun,
    mixture: str,
    module: str,
    split: str = "validation",
    limit: int | None = None,
    batch_size: int = 16,
) -> dict[str, dict[str, float]]:
    """Task -> metric -> value, for the tasks of a Task or Mixture that have metrics and the split.

    Raises UserError if there are none, the vocabulary is not the model's, or a metric is not
    supported for decoders.
    """
    opened = named(mixture, module, None)
    check_vocabulary(opened, trained.config.model)
    theirs = opened.tokenizer
    if not _same(theirs, trained.tokenizer):
        raise UserError(
            f"{opened.name} has another vocabulary ({theirs.kind}, {theirs.vocab_size} ids) than "
            f"the run ({trained.tokenizer.kind}, {trained.tokenizer.vocab_size} ids)."
        )
    seqio, _ = libraries()
    tasks = [task for task in seqio.get_subtasks(opened.provider) if split in task.splits]
    if not any(task.metric_fns or task.metric_objs for task in tasks):
        raise UserError(
            f"{opened.name} has no task with metric_fns and a split {split!r}; its splits are "
            f"{sorted(opened.provider.splits)}."
        )
    lengths = dict.fromkeys(opened.provider.output_features, trained.config.data.sequence_length)
    try:
        evaluator = seqio.Evaluator(
            mixture,
            seqio.DecoderFeatureConverter(pack=False),
            split,
            num_examples=limit,
            sequence_length=lengths if any(map(_asks_length, tasks)) else None,
            async_compute_metrics=False,
        )
        model = SeqioModel(trained, batch_size)
        metrics, _ = evaluator.evaluate(
            compute_metrics=True, step=trained.step, predict_fn=model.predict, score_fn=model.score
        )
        return {
            task: {name: _plain(value) for name, value in found.items()}
            for task, found in metrics.result().items()
        }
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        raise UserError(
            f"{opened.name} cannot be evaluated ({type(error).__name__}: {error})."
        ) from error


def _same(one: Any, other: Any) -> bool:
    return one.kind == other.kind and getattr(one, "model", None) == getattr(other, "model", None)


def _asks_length(task: Any) -> bool:
    """Whether a preprocessor requires `sequence_length`."""
    signatures = [
        inspect.signature(step).parameters.get("sequence_length") for step in task.preprocessors
    ]
    return any(
        parameter is not None and parameter.default is inspect.Parameter.empty
        for parameter in signatures
    )


def _plain(value: Any) -> float:
    return float(getattr(value, "value", value))
