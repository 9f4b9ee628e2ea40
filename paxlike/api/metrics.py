"""The metrics of a run as columns."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from paxlike.accounting.history import SERIES, History, read_history


class Metrics(Mapping[str, np.ndarray]):
    """Columns by name, one value for each training step, NaN where a step has none.

    `step`, `loss` (nats per token), `step_seconds`, `tokens_per_second`, `mfu`, `hfu`,
    `learning_rate` and `gradient_norm`. A step that was repeated after a restart counts once.
    """

    def __init__(self, history: History):
        self.history = history
        self._columns: dict[str, np.ndarray] = {"step": history.steps}
        self._columns |= {name: history.series[name] for name in SERIES}

    @classmethod
    def read(cls, folder: Path) -> "Metrics":
        """Raises UserError if the folder is no run directory or has no metrics yet."""
        return cls(read_history(folder))

    @property
    def evaluations(self) -> list[tuple[int, float]]:
        """(step, validation loss), ascending."""
        return self.history.evaluations

    @property
    def goodput(self) -> dict[str, float]:
        """Cause -> seconds of wall time, over all attempts."""
        return self.history.goodput

    def __getitem__(self, name: str) -> np.ndarray:
        return self._columns[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)

    def __repr__(self) -> str:
        return f"Metrics({len(self.history.steps)} steps: {', '.join(self._columns)})"

    def to_pandas(self) -> Any:
        """A pandas DataFrame indexed by step. Raises ImportError if pandas is not installed."""
        import pandas

        columns = {name: values for name, values in self._columns.items() if name != "step"}
        return pandas.DataFrame(columns, index=pandas.Index(self["step"], name="step"))
