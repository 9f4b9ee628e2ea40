"""A checkpoint read an array or a layer at a time, by those who must not hold it whole."""

from pathlib import Path

import numpy as np
import tensorstore

from paxlike.config import UserError
from paxlike.train.checkpoint import chosen_step
from paxlike.train.seal import damage


class Stored:
    """The newest checkpoint in `folder`, or the one of `step`. Raises UserError where there is none, or it is damaged."""

    def __init__(self, folder: Path, step: int | None = None):
        self.step = chosen_step(folder, step)
        if found := damage(folder, self.step):
            raise UserError(f"checkpoint {self.step} in {folder} is damaged: {found}. Try --step with another one.")
        self._base = f"file://{(folder / str(self.step) / 'state').absolute()}/"

    def param(self, name: str, layer: int | None = None) -> np.ndarray:
        """A parameter by its checkpoint name, such as `blocks/wq_DNH`; of one layer, where `layer` is given."""
        return self._read(f"params/{name}", layer)

    def moment(self, name: str, moment: str, layer: int | None = None) -> np.ndarray:
        """The optimizer's moment (`momentum`, `second`) of a parameter."""
        return self._read(f"optimizer/moments/{name}/{moment}", layer)

    def has_optimizer(self) -> bool:
        """Whether the optimizer's state is there: it is not in a run that was converted from elsewhere."""
        spec = {"driver": "zarr", "kvstore": {"driver": "ocdbt", "base": self._base, "path": "optimizer.step/"}}
        try:
            tensorstore.open(spec, open=True, read=True).result()
        except ValueError:
            return False
        return True

    def _read(self, name: str, layer: int | None) -> np.ndarray:
        path = f"{name.replace('/', '.')}/"
        spec = {"driver": "zarr", "kvstore": {"driver": "ocdbt", "base": self._base, "path": path}}
        try:
            array = tensorstore.open(spec, open=True, read=True).result()
            return (array if layer is None else array[layer]).read().result()
        except ValueError as error:
            reason = str(error).strip().splitlines()[0][:200]
            raise UserError(f"checkpoint {self.step}: {name} cannot be read ({reason}).") from error
