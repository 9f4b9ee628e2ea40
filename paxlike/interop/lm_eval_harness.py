"""Evaluates a trained run with EleutherAI's lm-evaluation-harness: tasks, few-shot prompts,
metrics.

The only file that imports lm_eval. Nothing is downloaded unless HF_HUB_OFFLINE is 0: tasks are YAML
files in a directory that the user names, with JSONL data files next to them.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import jax

# The harness's libraries read this when they are imported.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", os.environ["HF_HUB_OFFLINE"])

import lm_eval.evaluator  # noqa: E402
from lm_eval.api.model import TemplateLM  # noqa: E402
from lm_eval.evaluator import simple_evaluate  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window, make_table  # noqa: E402

from paxlike.config import UserError  # noqa: E402
from paxlike.data.tokenizer import document_start  # noqa: E402
from paxlike.infer.generate import Generator, Sampling  # noqa: E402
from paxlike.infer.score import Scorer  # noqa: E402
from paxlike.infer.stream import TextStream, prompt_tokens  # noqa: E402
from paxlike.training.loaded_run import LoadedRun  # noqa: E402

# The harness records a git commit; outside of a repository, git's errors would reach the user.
lm_eval.evaluator.get_git_commit_hash = lambda: None

DEFAULT_NEW_TOKENS = 256
NEW_TOKENS = ("max_gen_toks", "max_new_tokens", "max_tokens")
"""The harness's names for the maximum number of new tokens of a task."""


class Harness(TemplateLM):
    """A trained model for the harness. Texts follow the end-of-document token, as in training.

    Sequences longer than the training sequences are truncated from the left.
    """

    def __init__(self, trained: LoadedRun, batch_size: int):
        super().__init__()
        self.trained, self.batch_size, self._warned = trained, batch_size, False
        self.max_length = trained.config.data.sequence_length
        model = trained.config.model
        with jax.set_mesh(trained.mesh):
            self.scorer = Scorer(
                model, trained.numerics, trained.params, self.max_length, batch_size
            )
            self.generator = Generator(
                model, trained.numerics, self.scorer.params, trained.tokenizer.eod, self.max_length
            )

    @property
    def eot_token_id(self) -> int:
        return self.trained.tokenizer.eod

    @property
    def tokenizer_name(self) -> str:
        return f"paxlike-{self.trained.tokenizer.kind}-{self.trained.tokenizer.vocab_size}"

    @property
    def prefix_token_id(self) -> int:
        """The token that a text without context follows."""
        return document_start(self.trained.tokenizer)[-1]

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_) -> list[int]:
        tokenizer = self.trained.tokenizer
        return [*tokenizer.prefix, *tokenizer.encode(string).tolist()]

    def _loglikelihood_tokens(self, requests, **_) -> list[tuple[float, bool]]:
        return self._scores([(context, continuation) for _, context, continuation in requests])

    def _scores(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        sequences, starts = [], []
        for context, continuation in pairs:
            tokens = (context + continuation)[-(self.max_length + 1) :]
            if len(continuation) >= len(tokens) and continuation:
                raise UserError(
                    f"a continuation has {len(continuation)} tokens, but the model's sequences "
                    "have "
                    f"{self.max_length}; it cannot be scored."
                )
            sequences.append(tokens)
            starts.append(len(tokens) - len(continuation))
        with jax.set_mesh(self.trained.mesh):
            scores = self.scorer.score(sequences, starts)
        return [
            (float(score.logprobs.sum(dtype="float64")), bool(score.greedy.all()))
            for score in scores
        ]

    def loglikelihood_rolling(self, requests, disable_tqdm: bool = False) -> list[float]:
        windows: list[tuple] = []
        owners: list[int] = []
        for number, request in enumerate(requests):
            tokens = self.trained.tokenizer.encode(request.args[0]).tolist()
            cut = get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length, 1)
            windows += [make_disjoint_window(window) for window in cut]
            owners += [number] * (len(windows) - len(owners))
        totals = [0.0] * len(requests)
        for owner, (logprob, _) in zip(owners, self._scores(windows), strict=True):
            totals[owner] += logprob
        return totals

    def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
        texts: list[str] = [""] * len(requests)
        groups: dict[tuple, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(_settings(request.args[1]), []).append(number)
        for settings, numbers in groups.items():
            for first in range(0, len(numbers), self.batch_size):
                batch = numbers[first : first + self.batch_size]
                found = self._generate([requests[number].args[0] for number in batch], *settings)
                for number, text in zip(batch, found, strict=True):
                    texts[number] = text
        return texts

    def _generate(
        self, contexts: list[str], until: tuple[str, ...], new_tokens: int, temperature: float
    ) -> list[str]:
        tokenizer = self.trained.tokenizer
        given = [prompt_tokens(tokenizer, context) for context in contexts]
        prompts, limits = zip(*(self._fit(prompt, new_tokens) for prompt in given), strict=True)
        streams = [TextStream(tokenizer, prompt) for prompt in prompts]
        texts = [""] * len(prompts)

        def ends(row: int, token: int) -> bool:
            texts[row] += streams[row].add(token)
            return any(stop in texts[row] for stop in until)

        with jax.set_mesh(self.trained.mesh):
            self.generator.generate(prompts, limits, Sampling(temperature), on_token=ends)
        return [
            _before(text + stream.rest(), until)
            for text, stream in zip(texts, streams, strict=True)
        ]

    def _fit(self, prompt: list[int], new_tokens: int) -> tuple[list[int], int]:
        """The prompt's end and the number of new tokens that fit the model's context together.

        At least a quarter of the context, or as many as requested, is left for new tokens.
        """
        room = self.max_length - min(new_tokens, max(1, self.max_length // 4))
        kept = prompt[-room:]
        limit = min(new_tokens, self.max_length - len(kept))
        if (len(kept), limit) != (len(prompt), new_tokens) and not self._warned:
            self._warned = True
            print(
                f"note: the model's context is {self.max_length} tokens. A prompt of {len(prompt)} "
                f"tokens that requests {new_tokens} new tokens keeps its last {len(kept)} and gets "
                f"at most {limit} new ones; more may follow.",
                file=sys.stderr,
                flush=True,
            )
        return kept, limit


def _settings(given: dict) -> tuple[tuple[str, ...], int, float]:
    """(stops, new tokens, temperature) of a task's generation_kwargs."""
    until = given.get("until") or []
    until = (until,) if isinstance(until, str) else tuple(until)
    new_tokens = next(
        (int(given[name]) for name in NEW_TOKENS if given.get(name) is not None), DEFAULT_NEW_TOKENS
    )
    if new_tokens < 1:
        raise UserError(f"a task requests {new_tokens} new tokens; it must be 1 or more.")
    temperature = float(given.get("temperature", 0.0)) if given.get("do_sample") else 0.0
    return tuple(stop for stop in until if stop), new_tokens, temperature


def _before(text: str, until: tuple[str, ...]) -> str:
    for stop in until:
        text = text.split(stop)[0]
    return text


def evaluate_tasks(
    trained: LoadedRun,
    tasks: list[str],
    folder: Path,
    shots: int | None,
    limit: int | None,
    batch_size: int,
) -> tuple[dict, str]:
    """(task -> metric -> value, the harness's table) for tasks with YAML files in `folder`.

    shots: examples before each question (GPT-3, arXiv 2005.14165, section 2); None: the task's own
    number. limit: questions per task; None: all. Raises UserError if a task is not in the directory
    or its files cannot be used.
    """
    if not folder.is_dir():
        raise UserError(
            f"there is no directory {folder}; set --task-folder to the directory of the tasks' "
            "YAML "
            "files."
        )
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    if unknown := [task for task in tasks if task not in manager.all_tasks]:
        raise UserError(
            f"the tasks {unknown} are not in {folder}; available are {sorted(manager.all_tasks)}."
        )
    harness = Harness(trained, batch_size)
    before = Path.cwd()
    os.chdir(folder)  # a task's data_files are relative to it
    try:
        found = simple_evaluate(
            harness,
            tasks=tasks,
            num_fewshot=shots,
            limit=limit,
            task_manager=manager,
            bootstrap_iters=0,
            log_samples=False,
        )
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"a task of {folder} cannot be evaluated ({type(error).__name__}: {error})."
        ) from error
    finally:
        os.chdir(before)
    if fixed := [
        task for task, used in found["n-shot"].items() if shots is not None and used != shots
    ]:
        raise UserError(f"the tasks {fixed} set num_fewshot: 0 themselves; omit --shots for them.")
    numbers = {
        task: {name: value for name, value in metrics.items() if isinstance(value, float | int)}
        for task, metrics in found["results"].items()
    }
    return numbers, make_table(found)
