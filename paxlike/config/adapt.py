"""Config section of adapters: which parameters are trained, and in which form."""

import dataclasses
from typing import Literal

from paxlike.config.validation import positive, require, typed

FIELDS: dict[str, tuple[str, ...]] = {
    "none": (),
    "lora": ("rank", "alpha", "rank_stabilized", "dropout", "targets"),
    "singular": ("targets",),
}
"""Kind -> the fields that it reads, besides `train` and `layers`."""


@dataclasses.dataclass(frozen=True)
class AdaptConfig:
    """Adapts a frozen base (see docs/adapting.md). By default all parameters are trained."""

    kind: Literal["none", "lora", "singular"] = "none"
    """lora: a low-rank update of the target weights (arXiv 2106.09685). singular: shifts of their
    singular values (SVDiff, arXiv 2303.11305)."""
    rank: int = 8
    """lora: rank of the update."""
    alpha: float = 16.0
    """lora: the update is multiplied by alpha / rank."""
    rank_stabilized: bool = False
    """lora: multiply by alpha / sqrt(rank) instead (rsLoRA, arXiv 2312.03732)."""
    dropout: float = 0.0
    """lora: probability that an entry of the adapter's input is dropped in training."""
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
        positive(self, "adapt", "rank", "alpha")
        require(0 <= self.dropout < 1, f"adapt.dropout is {self.dropout}; it must be in [0, 1).")
        self._check_fields()
        for field, kind in (("targets", str), ("train", str), ("layers", int)):
            value = getattr(self, field)
            require(
                isinstance(value, tuple) and all(type(entry) is kind for entry in value),
                f"adapt.{field} is {value!r}; it must be a tuple of {kind.__name__}.",
            )
        require(bool(self.targets), "adapt.targets is empty; name the weights to adapt, or all.")

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
    def scale(self) -> float:
        """The factor of LoRA's update."""
        return self.alpha / (self.rank**0.5 if self.rank_stabilized else self.rank)
