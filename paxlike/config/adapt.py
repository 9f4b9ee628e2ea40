"""Config section of adapters: which parameters are trained, and in which form."""

import dataclasses
import re
from typing import Literal

from paxlike.config.validation import positive, require, typed

FIELDS: dict[str, tuple[str, ...]] = {
    "none": (),
    "lora": ("rank", "alpha", "rank_stabilized", "dropout", "targets"),
    "prefix": ("prefix_length", "prefix_hidden", "prefix_prompt"),
    "singular": ("targets",),
    "reft": ("rank", "form", "positions", "tied"),
}
"""Kind -> the fields that it reads, besides `train` and `layers`."""


@dataclasses.dataclass(frozen=True)
class AdaptConfig:
    """Adapts a frozen base (see docs/adapting.md). By default all parameters are trained."""

    kind: Literal["none", "lora", "prefix", "singular", "reft"] = "none"
    """lora: a low-rank update of the target weights (arXiv 2106.09685). prefix: trained keys and
    values in front of every document (prefix-tuning, arXiv 2101.00190). singular: shifts of the
    targets' singular values (SVDiff, arXiv 2303.11305). reft: updates of the residual stream at
    positions of the prompt (arXiv 2404.03592)."""
    rank: int = 8
    """lora: rank of the update. reft: dimensions of the stream that an intervention changes."""
    alpha: float = 16.0
    """lora: the update is multiplied by alpha / rank."""
    rank_stabilized: bool = False
    """lora: multiply by alpha / sqrt(rank) instead (rsLoRA, arXiv 2312.03732)."""
    dropout: float = 0.0
    """lora: probability that an entry of the adapter's input is dropped in training."""
    prefix_length: int = 16
    """prefix: its number of positions."""
    prefix_hidden: int = 512
    """prefix: hidden units of the network that computes it while it is trained. 0: keys and values
    are parameters."""
    prefix_prompt: str = ""
    """prefix: a text of `prefix_length` tokens, whose keys and values it starts from."""
    form: Literal["loreft", "direft"] = "loreft"
    """reft: loreft has a projection with orthonormal rows, direft two independent matrices."""
    positions: str = "f7+l7"
    """reft: the first 7 and the last 7 tokens of the prompt; or one of the two, such as f1."""
    tied: bool = True
    """reft: the first and the last positions share the weights of a layer."""
    targets: tuple[str, ...] = ("all",)
    """The adapted weights: names such as `wq`, branches (`attention`, `feed-forward`), or
    `all`."""
    train: tuple[str, ...] = ()
    """Weights of the base to train whole, besides the adapter or with kind none; the others are
    frozen: names such as `wq`, branches, `norms`, `biases`, `embeddings`. Empty with kind none:
    all."""
    layers: tuple[int, ...] = ()
    """Layers to adapt or train, counted from 0. Empty: all of them. The embedding, the head and the
    last norm belong to no layer."""

    def __post_init__(self):
        typed(self, "adapt")
        positive(self, "adapt", "rank", "alpha", "prefix_length")
        require(0 <= self.dropout < 1, f"adapt.dropout is {self.dropout}; it must be in [0, 1).")
        self._check_fields()
        require(
            self.prefix_hidden >= 0,
            f"adapt.prefix_hidden is {self.prefix_hidden}; it must be 0 or more.",
        )
        require(
            not self.prefix_prompt or not self.prefix_hidden,
            f"adapt.prefix_prompt is set, but adapt.prefix_hidden is {self.prefix_hidden}; a "
            "prefix starts from a text only without the network: set adapt.prefix_hidden to 0.",
        )
        for field, kind in (("targets", str), ("train", str), ("layers", int)):
            value = getattr(self, field)
            require(
                isinstance(value, tuple) and all(type(entry) is kind for entry in value),
                f"adapt.{field} is {value!r}; it must be a tuple of {kind.__name__}.",
            )
        require(bool(self.targets), "adapt.targets is empty; name the weights to adapt, or all.")
        require(
            any(self.prompt_positions),
            f"adapt.positions is {self.positions!r}; write the numbers of the first and of the "
            "last tokens of the prompt, such as f7+l7, f1 or l3.",
        )

    def _check_fields(self) -> None:
        """Fields that the kind does not read must have their defaults."""
        read = ("kind", "train", "layers", *FIELDS[self.kind])
        for field in dataclasses.fields(self):
            if field.name not in read and getattr(self, field.name) != field.default:
                kinds = [kind for kind, names in FIELDS.items() if field.name in names]
                require(
                    False,
                    f"adapt.{field.name} is set, but adapt.kind is {self.kind}, which does not "
                    f"read it; choose {' or '.join(kinds)}.",
                )
        require(
            self.kind != "none" or not self.layers or bool(self.train),
            f"adapt.layers is {self.layers}, but adapt.kind is none and adapt.train is empty; set "
            "one of them.",
        )

    @property
    def active(self) -> bool:
        """Whether a part of the base is frozen."""
        return self.kind != "none" or bool(self.train)

    @property
    def prompt_positions(self) -> tuple[int, int]:
        """The numbers of the first and of the last tokens of a prompt that ReFT changes; (0, 0) if
        `positions` cannot be read."""
        found = re.fullmatch(r"(?:f([1-9]\d*))?(?:(?:^|\+)l([1-9]\d*))?", self.positions)
        first, last = found.groups() if found else (None, None)
        return int(first or 0), int(last or 0)

    @property
    def scale(self) -> float:
        """The factor of LoRA's update."""
        return self.alpha / (self.rank**0.5 if self.rank_stabilized else self.rank)
