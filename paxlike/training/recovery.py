"""Restores a run: from its newest readable checkpoint, or an earlier one after a loss spike."""

from collections.abc import Callable

from paxlike.config import Config, UserError
from paxlike.training.checkpoint import Checkpoints
from paxlike.training.guard import SkippedBatches, Spike
from paxlike.training.state import State


class Recovery:
    def __init__(
        self,
        config: Config,
        checkpoints: Checkpoints,
        skipped: SkippedBatches,
        like: State,
        make_state: Callable[[], State],
        frozen: Callable[[], dict],
        say: Callable[[str], None],
    ):
        """like: the state's shapes, dtypes and shardings. make_state: called if the run has no
        checkpoint. frozen: reads what checkpoints leave out. say: prints a line."""
        self._config, self._checkpoints, self._skipped = config, checkpoints, skipped
        self._like, self._make_state, self._say = like, make_state, say
        self._frozen = frozen

    def sequences_before(self, step: int) -> int:
        """Returns the position in the data of the next batch after `step` updates.

        Skipped batches count.
        """
        return self._config.train.sequences_before(self._skipped.batch(step))

    def restore(self, before: int | None = None) -> tuple[State, int]:
        """Returns the state and step of the newest readable checkpoint, or a new state and 0.

        before: the largest step allowed.
        """
        while (found := self._checkpoints.restore_newest(self._like, before)) is not None:
            state, position, notes = found
            step = position["step"]
            for note in notes:
                self._say(note)
            if position["sequences"] == self.sequences_before(step):
                return state._replace(frozen=self._frozen()), step
            # Saved after a spike, by a process that ended after it recorded which batches to skip
            # and before it deleted this checkpoint.
            del state, found
            self._checkpoints.delete_after(before := step - 1)
        return self._make_state(), 0

    def rewind(self, spike: Spike) -> tuple[State, int, dict]:
        """Skips the batches around a spike and restores a checkpoint from before it.

        Returns the state, its step and the fields of the rewind event. Raises UserError if the run
        has used all its rewinds (guard.rewinds).
        """
        guard, step = self._config.guard, spike.update + 1
        if len(self._skipped.rows) >= guard.rewinds:
            used = f" after {guard.rewinds} rewinds (guard.rewinds)" if guard.rewinds else ""
            raise UserError(
                f"at step {step}, {spike.reason}{used}. The checkpoints of steps "
                f"{self._checkpoints.steps()} are from before. Lower optim.learning_rate, set "
                "optim.clip, or raise guard.rewinds."
            )
        begin = max(spike.update - guard.back, 0)
        first = self._skipped.batch(begin)
        count = max(guard.skip, self._skipped.batch(spike.detected) + 1 - first)
        # In this order: if the process ends in between, the next one finds checkpoints that do not
        # match the skipped batches, and deletes them.
        self._skipped.add(first, count, f"step {step}: {spike.reason}")
        self._checkpoints.delete_after(begin)
        state, start = self.restore(begin)
        self._say(
            f"spike at step {step}: {spike.reason}. Rewound to step {start}; from step {begin + 1} "
            f"on, batches {first} to {first + count - 1} are skipped (rewind "
            f"{len(self._skipped.rows)} of {guard.rewinds})"
        )
        fields = {
            "spike": step,
            "reason": spike.reason,
            "first_batch": first,
            "batches": count,
        }
        return state, start, fields
