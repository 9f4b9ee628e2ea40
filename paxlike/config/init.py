"""Where a run's first parameters come from."""

import dataclasses
from typing import Literal

from paxlike.config.validation import require, typed


@dataclasses.dataclass(frozen=True)
class InitConfig:
    """First parameters from a trained model, with a new optimizer at step 0. Used only while the
    run has no checkpoint.
    """

    source: str = ""
    """A Hugging Face directory, a run directory or a T5X checkpoint. Empty: random parameters."""
    config: bool = False
    """Take the model from the source's config. `--model` flags override it."""
    kv_heads: Literal["mean", "first", "random"] = "mean"
    """With fewer key/value heads than the source: each is the mean (arXiv 2305.13245) or the first
    of a group of the source's, or new."""
    new: tuple[str, ...] = ()
    """Parameters to initialize as in a new run, by checkpoint name, such as head_DV."""

    def __post_init__(self):
        typed(self, "init")
        require(
            isinstance(self.new, tuple) and all(isinstance(name, str) for name in self.new),
            f"init.new is {self.new!r}; it must be a tuple of parameter names.",
        )
        changed = [
            field.name
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.default
        ]
        require(
            bool(self.source) or not changed,
            f"init.{', init.'.join(changed)} is set, but init.source is empty; give the source "
            "(--init.from PATH).",
        )
