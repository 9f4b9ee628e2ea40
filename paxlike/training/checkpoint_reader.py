"""Reads a checkpoint one array or one layer at a time, without loading all of it."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorstore

from paxlike.config import UserError
from paxlike.training.checkpoint import checkpoint_step
from paxlike.training.checksums import find_corruption


class StoredParam:
    """An array of a checkpoint, read in parts."""

    def __init__(self, stored: tensorstore.TensorStore):
        self._stored = stored
        self.shape: tuple[int, ...] = tuple(stored.shape)

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        return self._stored[index].read().result()


class CheckpointReader:
    def __init__(self, folder: Path, step: int | None = None, trained_only: bool = False):
        """Opens the newest checkpoint in `folder`, or the one at `step`.

        trained_only: whether the trained part of an adapter run is enough. Raises UserError if
        there is no such checkpoint or it is corrupted.
        """
        if (folder.parent / "base.json").exists() and not trained_only:
            raise UserError(
                f"the checkpoints of {folder.parent} hold an adapter and not its base. Make a "
                f"complete run of both first: paxlike adapt merge {folder.parent} OUT"
            )
        self.step = checkpoint_step(folder, step)
        if corruption := find_corruption(folder, self.step):
            raise UserError(
                f"checkpoint {self.step} in {folder} is corrupted: {corruption}. Choose another "
                "checkpoint with --step."
            )
        self._base = f"file://{(folder / str(self.step) / 'state').absolute()}/"

    def param(self, name: str, layer: int | None = None) -> np.ndarray:
        """Returns a parameter by its checkpoint name (such as `blocks/wq_DNH`), or one layer."""
        return self._read(f"params/{name}", layer)

    def part(self, name: str, layer: int | None = None) -> StoredParam:
        """What `param` returns, read in parts."""
        return StoredParam(self._open(f"params/{name}", layer))

    def moment(self, name: str, moment: str, layer: int | None = None) -> np.ndarray:
        """Returns an optimizer moment (`momentum` or `second`) of a parameter."""
        return self._read(f"optimizer/moments/{name}/{moment}", layer)

    def has_optimizer(self) -> bool:
        """Returns whether the checkpoint has an optimizer state. Some converted runs have none."""
        spec = {
            "driver": "zarr",
            "kvstore": {"driver": "ocdbt", "base": self._base, "path": "optimizer.step/"},
        }
        try:
            tensorstore.open(spec, open=True, read=True).result()
        except ValueError:
            return False
        return True

    def _read(self, name: str, layer: int | None) -> np.ndarray:
        stored = self._open(name, layer)
        with self._explained(name):
            return stored.read().result()

    def _open(self, name: str, layer: int | None) -> tensorstore.TensorStore:
        path = f"{name.replace('/', '.')}/"
        spec = {"driver": "zarr", "kvstore": {"driver": "ocdbt", "base": self._base, "path": path}}
        with self._explained(name):
            array = tensorstore.open(spec, open=True, read=True).result()
            return array if layer is None else array[layer]

    @contextlib.contextmanager
    def _explained(self, name: str) -> Iterator[None]:
        try:
            yield
        except ValueError as error:
            reason = str(error).strip().splitlines()[0][:200]
            raise UserError(f"checkpoint {self.step}: {name} cannot be read ({reason}).") from error
