"""The serving engine: a thread that owns the model, moves texts from a queue into batch slots, and
passes each slot's tokens to its text.

It never waits for a client: output goes to a queue that the client's task reads. If a client
disconnects, its slot is freed at the next token.
"""

import collections
import logging
import threading
from collections.abc import Callable
from typing import NamedTuple

import jax

from paxlike.infer.score import Scorer
from paxlike.infer.slots import ALTERNATIVES, Settings, Slots
from paxlike.interop.completion_text import Text
from paxlike.training.loaded_run import LoadedRun


class Job(NamedTuple):
    """A text to be generated."""

    prompt: list[int]
    settings: Settings
    adapter: int
    """Its number (`nn/rows.py`); 0: the base."""
    text: Text
    gone: threading.Event
    """Set by the client's task when the client has disconnected."""
    failed: Callable[[], None]
    """Called if the engine fails."""


class Engine:
    """Generates up to `batch_slots` texts concurrently and queues up to `max_queued` more.

    `close` ends the thread.
    """

    def __init__(self, trained: LoadedRun, batch_slots: int, max_queued: int):
        self.trained, self.max_queued = trained, max_queued
        self.max_length = trained.config.data.sequence_length
        self._queue: collections.deque[Job] = collections.deque()
        self._changed = threading.Condition()
        self._closed = False
        self._busy: dict[int, Job] = {}
        with jax.set_mesh(trained.mesh):
            model, numerics = trained.config.model, trained.numerics
            self._slots = Slots(model, numerics, trained.params, batch_slots, self.max_length)
            self._scorer = Scorer(
                model, numerics, self._slots.params, self.max_length, 1, ALTERNATIVES
            )
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def submit(self, jobs: list[Job]) -> bool:
        """Queues all of the jobs, or none (False) if the queue would be too long."""
        with self._changed:
            if self._closed or len(self._queue) + len(jobs) > self.max_queued:
                return False
            self._queue.extend(jobs)
            self._changed.notify()
            return True

    @property
    def alive(self) -> bool:
        return not self._closed and self._thread.is_alive()

    @property
    def load(self) -> tuple[int, int]:
        """(texts in batch slots, queued texts)."""
        return len(self._busy), len(self._queue)

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        try:
            with jax.set_mesh(self.trained.mesh):
                while self._wait():
                    self._sweep()
                    if new := self._take():
                        self._score([self._busy[row] for row in new])
                        self._give(self._slots.admit(*self._prompts(new)), new)
                    elif self._busy:
                        self._give(self._slots.step(), list(self._busy))
        except Exception:
            logging.getLogger("paxlike.serve").exception("the engine stopped")
        finally:
            with self._changed:
                self._closed = True
                left = [*self._busy.values(), *self._queue]
                self._queue.clear()
            for job in left:
                job.failed()

    def _wait(self) -> bool:
        """Waits for work; False if the engine is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._queue or self._busy)
            return not self._closed

    def _sweep(self) -> None:
        """Frees the slots of disconnected clients."""
        for row in [row for row, job in self._busy.items() if job.gone.is_set()]:
            self._end(row)

    def _take(self) -> list[int]:
        """Moves queued jobs into free slots; returns these slots."""
        free = [row for row in range(self._slots.rows) if row not in self._busy]
        new: list[int] = []
        with self._changed:
            while self._queue and len(new) < len(free):
                job = self._queue.popleft()
                if not job.gone.is_set():
                    new.append(free[len(new)])
                    self._busy[new[-1]] = job
        return new

    def _score(self, jobs: list[Job]) -> None:
        """Log-probabilities of the prompts, for texts that requested them."""
        for job in jobs:
            if job.text.asks_prompt_logprobs:
                (score,) = self._scorer.score(
                    [job.prompt], [1], job.adapter, prompts=[len(job.prompt)]
                )
                job.text.prompt_logprobs(
                    score.logprobs.tolist(), score.best.tolist(), score.best_logprobs.tolist()
                )

    def _prompts(self, rows: list[int]) -> tuple[dict, dict, dict]:
        jobs = {row: self._busy[row] for row in rows}
        return (
            {row: job.prompt for row, job in jobs.items()},
            {row: job.settings for row, job in jobs.items()},
            {row: job.adapter for row, job in jobs.items()},
        )

    def _give(self, drawn, rows: list[int]) -> None:
        for row in rows:
            values = (array[row].tolist() for array in drawn)
            if self._busy[row].text.add(*values):
                self._end(row)

    def _end(self, row: int) -> None:
        del self._busy[row]
        self._slots.free(row)
