"""A run directory, opened to be looked at and used: `paxlike.open_run`."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from paxlike.api.metrics import Metrics
from paxlike.config import Config, MeshConfig, UserError
from paxlike.data.bad_lines import BadLineError
from paxlike.data.chat.messages import read_turns
from paxlike.data.chat.named_templates import NAMED_TEMPLATES
from paxlike.data.chat.rendering import TemplateError
from paxlike.data.chat.template import found_template
from paxlike.data.location import located
from paxlike.data.tokenizer import Tokenizer, document_start
from paxlike.infer.generate import (
    Generator,
    Sampling,
    check_new_tokens,
    check_seed,
    for_inference,
    new_tokens_that_fit,
)
from paxlike.infer.logits import logits
from paxlike.infer.score import Scorer
from paxlike.infer.stream import TextStream, prompt_tokens
from paxlike.interop.init_sources import open_source
from paxlike.training.loaded_run import LoadedRun, evaluate_run, load_run
from paxlike.training.packed import open_packed


class TextScore(NamedTuple):
    """The log-probabilities of a text's tokens, each given all before it."""

    tokens: np.ndarray
    """int32"""
    logprobs: np.ndarray
    """float32, natural logarithms. The first token follows what begins a document."""

    @property
    def total(self) -> float:
        """The logarithm of the text's probability."""
        return float(self.logprobs.sum(dtype=np.float64))

    @property
    def perplexity(self) -> float:
        return float(np.exp(-self.total / max(1, len(self.tokens))))


class Run:
    """A run directory or a packed model. The checkpoint is read when something first needs it."""

    def __init__(self, path: Path, step: int | None, mesh: MeshConfig | None):
        self.path = path
        self._step, self._mesh = step, mesh

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @functools.cached_property
    def _loaded(self) -> LoadedRun:
        if self.path.is_file():
            return open_packed(self.path)
        return load_run(self.path, self._mesh, self._step, open_source)

    @property
    def config(self) -> Config:
        return self._loaded.config

    @property
    def step(self) -> int:
        """Updates made before the checkpoint was saved."""
        return self._loaded.step

    @property
    def tokenizer(self) -> Tokenizer:
        return self._loaded.tokenizer

    @property
    def params(self) -> dict:
        """Nested dict of sharded `jax.Array`s by name, such as `params["blocks"]["wq_DNH"]`."""
        return self._loaded.params

    @property
    def mesh(self) -> jax.sharding.Mesh:
        return self._loaded.mesh

    @property
    def metrics(self) -> Metrics:
        """The metrics so far; read again each time, so that a running job can be watched."""
        if self.path.is_file():
            raise UserError(
                f"{self.path} is a packed model: it has no metrics; open its run instead."
            )
        return Metrics.read(self.path)

    @functools.cached_property
    def _inference_params(self) -> dict:
        loaded = self._loaded
        with jax.set_mesh(loaded.mesh):
            return for_inference(loaded.config.model, loaded.numerics, loaded.params)

    def logits(self, tokens: Sequence[int] | Sequence[Sequence[int]] | np.ndarray) -> np.ndarray:
        """float32 logits of the next token at every position.

        tokens: [T] or [B, T]. Returns [T, vocab_size] or [B, T, vocab_size]. Raises UserError for
        tokens outside of the vocabulary.
        """
        loaded, array = self._loaded, np.asarray(tokens)
        batch = array[None] if array.ndim == 1 else array
        with jax.set_mesh(loaded.mesh):
            params = self._inference_params
            found = logits(loaded.config.model, loaded.numerics, params, batch)
        return found[0] if array.ndim == 1 else found

    def score(self, texts: Sequence[str], batch_size: int = 16) -> list[TextScore]:
        """The log-probability of every token of each text. Raises UserError for an empty text."""
        loaded = self._loaded
        tokens = [self.tokenizer.encode(text) for text in texts]
        for number, found in enumerate(tokens):
            if not len(found):
                raise UserError(f"text {number} is empty; give at least one character.")
        start = document_start(self.tokenizer)
        sequences = [[*start, *found] for found in tokens]
        longest = max(map(len, sequences), default=1)
        with jax.set_mesh(loaded.mesh):
            model, numerics = loaded.config.model, loaded.numerics
            scorer = Scorer(model, numerics, self._inference_params, longest, batch_size)
            scores = scorer.score(sequences, [len(start)] * len(sequences))
        pairs = zip(tokens, scores, strict=True)
        return [TextScore(np.asarray(found, np.int32), score.logprobs) for found, score in pairs]

    def generate(
        self,
        prompts: Sequence[str],
        max_new_tokens: int | None = None,
        temperature: float = 0.8,
        top_k: int = 40,
        top_p: float = 1.0,
        seed: int = 0,
        on_text: Callable[[int, str], None] | None = None,
    ) -> list[str]:
        """The continuation of each prompt, without the prompt.

        max_new_tokens: None means 200, or as many as fit the model's context after the longest
        prompt. temperature 0: always the most likely token. top_k 0: all tokens. The same seed
        gives the same texts. `on_text(number of the prompt, text)` is called with each new piece of
        text. An empty prompt begins a document. Raises UserError for settings out of range, and if
        a prompt and its new tokens exceed the model's context.
        """
        if isinstance(prompts, str):
            raise UserError("prompts is one string; give a list of them.")
        sampling = Sampling(temperature, top_k, top_p)
        tokens = [prompt_tokens(self.tokenizer, prompt) for prompt in prompts]
        return self._continued(tokens, max_new_tokens, sampling, seed, on_text)

    def chat(
        self,
        messages: Sequence[dict[str, str]],
        max_new_tokens: int | None = None,
        temperature: float = 0.8,
        top_k: int = 40,
        top_p: float = 1.0,
        seed: int = 0,
        on_text: Callable[[str], None] | None = None,
        template: str = "",
    ) -> str:
        """The assistant's answer to messages, each {"role", "content"}; the last is the user's.

        template: a name or a Jinja file instead of the run's own chat template. The rest is as in
        `generate`; the new tokens that fit after the prompt are not limited by default. Raises
        UserError if there is no template or it cannot render the messages.
        """
        folder = None if self.path.is_file() else self.path / "tokenizer"
        found = found_template(self.tokenizer, template, folder)
        if found is None:
            raise UserError(
                f"{self.path} has no chat template, because it was not trained on conversations. "
                f"Choose one with template: {', '.join(NAMED_TEMPLATES)}, or a Jinja file."
            )
        try:
            prompt = found.prompt(read_turns(list(messages)))
        except (BadLineError, TemplateError) as error:
            raise UserError(f"the messages cannot be answered: {error}.") from None
        context = self._loaded.config.data.sequence_length
        limit = max(1, context - len(prompt)) if max_new_tokens is None else max_new_tokens
        (text,) = self._continued(
            [prompt],
            limit,
            Sampling(temperature, top_k, top_p),
            seed,
            on_text and (lambda _, new: on_text(new)),
            found.stops,
            context,
        )
        return text

    def _continued(
        self,
        tokens: Sequence[Sequence[int]],
        max_new_tokens: int | None,
        sampling: Sampling,
        seed: int,
        on_text: Callable[[int, str], None] | None,
        stops: Sequence[int] = (),
        length: int = 0,
    ) -> list[str]:
        """The texts after prompts, up to a token of `stops`. length: of the cache; 0: as needed."""
        check_seed(seed)
        if max_new_tokens is not None:
            check_new_tokens(max_new_tokens)
        loaded, texts = self._loaded, [""] * len(tokens)
        longest = max(map(len, tokens), default=1)
        limit = new_tokens_that_fit(loaded.config.data.sequence_length, longest, max_new_tokens)
        streams = [TextStream(self.tokenizer, prompt) for prompt in tokens]

        def append(row: int, text: str) -> None:
            texts[row] += text
            if on_text and text:
                on_text(row, text)

        def add(row: int, token: int) -> bool:
            if token not in stops:
                append(row, streams[row].add(token))
            return token in stops

        with jax.set_mesh(loaded.mesh):
            model, numerics, eod = loaded.config.model, loaded.numerics, self.tokenizer.eod
            params, cache = self._inference_params, length or longest + limit
            Generator(model, numerics, params, eod, cache).generate(
                tokens, limit, sampling, seed, add
            )
        for row, stream in enumerate(streams):
            append(row, stream.rest())
        return texts

    def evaluate(self, batches: int = 0, store: str | Path = "") -> dict[str, float]:
        """`loss` (nats per token), `accuracy` and `tokens` of the run's validation split.

        batches: how many of its batches; 0: all of them. store: where the run's token store is, if
        it was moved.
        """
        return evaluate_run(self._loaded, self.path, batches, str(store))


def open_run(path: str | Path, step: int | None = None, mesh: MeshConfig | None = None) -> Run:
    """Opens a run directory (on disk or in a bucket) or a packed model.

    step: a checkpoint other than the newest. mesh: without it, the one with the largest `model`
    axis that fits this machine's devices. Raises UserError if there is no such run.
    """
    folder = located(str(path))
    if not folder.exists():
        raise UserError(f"there is no run {folder}; name a run directory or a packed model.")
    return Run(folder, step, mesh)
