"""A user's module that registers seqio tasks, for the tests: made of what is written here, so that
nothing is downloaded.
"""

import functools

import numpy as np
import seqio
import tensorflow as tf

VOCABULARY = seqio.ByteVocabulary()
WORDS = ["alpha", "beta", "gamma", "delta", "épsilon"]


def texts(count: int, seed: int, least: int = 5, most: int = 60) -> list[str]:
    random = np.random.default_rng(seed)
    return [
        f"{n}: " + " ".join(WORDS[i] for i in random.integers(0, 5, random.integers(least, most)))
        for n in range(count)
    ]


def made_texts(split, shuffle_files, seed=None):
    return tf.data.Dataset.from_tensor_slices(
        {"targets": texts(*{"train": (80, 1), "validation": (20, 2)}[split])}
    )


def made_questions(split, shuffle_files, seed=None, words=3):
    questions = texts(60, 3, 1, words)
    return tf.data.Dataset.from_tensor_slices(
        {"inputs": questions, "targets": [text.upper() for text in questions]}
    )


FEATURE = seqio.Feature(VOCABULARY, add_eos=True)
TOKENIZED = [seqio.preprocessors.tokenize, seqio.preprocessors.append_eos]


def equal(targets, predictions):
    return {
        "equal": float(
            np.mean(
                [
                    target == prediction
                    for target, prediction in zip(targets, predictions, strict=True)
                ]
            )
        )
    }


def mean_score(targets, scores):
    return {"mean_score": float(np.mean(scores))}


seqio.TaskRegistry.add(
    "made_texts",
    source=seqio.FunctionDataSource(made_texts, splits=("train", "validation")),
    preprocessors=TOKENIZED,
    output_features={"targets": FEATURE},
)
seqio.TaskRegistry.add(
    "made_questions",
    source=seqio.FunctionDataSource(made_questions, splits=("train",)),
    preprocessors=TOKENIZED,
    output_features={"inputs": FEATURE, "targets": FEATURE},
    metric_fns=[equal, mean_score],
)
for name, words in (("few", 2), ("many", 9)):
    seqio.TaskRegistry.add(
        f"{name}_words",
        source=seqio.FunctionDataSource(
            functools.partial(made_questions, words=words), splits=("train",)
        ),
        preprocessors=TOKENIZED,
        output_features={"inputs": FEATURE, "targets": FEATURE},
    )
seqio.MixtureRegistry.add("made_mixture", [("few_words", 3.0), ("many_words", 1.0)])
