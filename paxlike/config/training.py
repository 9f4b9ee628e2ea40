"""What is learned from, how, and for how long: data, optimizer, batches."""

import dataclasses
from typing import Literal

from paxlike.config.check import divisors, positive, require, typed


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What is read. Batch k is a function of (store, seed, k) alone."""

    store: str = ""
    """Folder written by `paxlike data prepare` or `paxlike data materialise`. Empty: the machine's own Python standard library, prepared
    once with the settings below and cached."""
    sequence_length: int = 256
    packing: Literal["split", "whole"] = "split"
    """split: documents are concatenated and cut (PaLM). whole: packed whole, attention stays inside a document."""
    tokenizer: Literal["bytes", "sentencepiece"] = "sentencepiece"
    """For the default corpus only: a prepared store carries its own tokenizer."""
    tokenizer_vocab: int = 4096
    """Pieces of the SentencePiece model of the default corpus."""
    seed: int = 0
    """Seed of the order in which sequences are read."""
    seqio_mixture: str = ""
    """A registered Task or Mixture of seqio, read directly in place of a store (extra `seqio`)."""
    module: str = ""
    """The Python file that registers it."""

    def __post_init__(self):
        typed(self, "data")
        positive(self, "data", "sequence_length", "tokenizer_vocab")
        require(0 <= self.seed < 2**32, f"data.seed is {self.seed}; it must be in 0 … 2**32 - 1.")
        require(
            not (self.store and self.seqio_mixture),
            f"data.store is {self.store!r} and data.seqio_mixture {self.seqio_mixture!r}; only one can be read.",
        )
        require(
            bool(self.module) == bool(self.seqio_mixture),
            f"data.module is {self.module!r} and data.seqio_mixture {self.seqio_mixture!r}; the module is the file that registers "
            "the Task or Mixture: give both.",
        )


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """The optimizer and its schedule (see `optim/`)."""

    name: Literal["palm", "adamw", "adafactor", "lion"] = "palm"
    """palm: Adafactor without factorization (parameter scaling, beta2 = 1 - step^-0.8, decay lr^2)."""
    learning_rate: float = 1e-2
    """Peak learning rate. For palm and adafactor it is multiplied by the RMS of each parameter."""
    schedule: Literal["palm", "constant", "linear", "cosine", "two_stage"] = "palm"
    """palm: constant for `warmup_steps`, then learning_rate * sqrt(warmup_steps / step). The others warm up linearly
    over `warmup_steps`, then stay, or decay to `final_fraction` of the peak at `train.steps`. two_stage: linear, from
    `second_learning_rate` as its peak in the second half, without weight decay there (see `optim/schedules.py`)."""
    second_learning_rate: float = 0.0
    """For two_stage."""
    warmup_steps: int = 10_000
    final_fraction: float = 0.1
    beta1: float = 0.9
    """For palm, adamw and lion."""
    beta2: float = 0.99
    """For adamw and lion. palm and adafactor use 1 - step^-0.8."""
    epsilon: float = 1e-8
    """Added to the root of the second moment by adamw."""
    weight_decay: float = 0.0
    """For adamw and lion, multiplied by the learning rate; not on norm scales. palm uses lr^2, adafactor none."""
    clip: float = 1.0
    """Global norm that gradients are clipped to. 0: not clipped."""

    def __post_init__(self):
        typed(self, "optim")
        positive(self, "optim", "learning_rate", "epsilon")
        require(self.warmup_steps >= 0, f"optim.warmup_steps is {self.warmup_steps}; it must be 0 or more.")
        require(
            self.schedule != "palm" or self.warmup_steps > 0,
            "optim.warmup_steps is 0; the palm schedule is constant for warmup_steps and then falls: give at least 1.",
        )
        require(
            (self.schedule == "two_stage") == (self.second_learning_rate > 0),
            f"optim.second_learning_rate is {self.second_learning_rate} and optim.schedule {self.schedule}; two_stage needs one "
            "above 0, and no other schedule has one.",
        )
        for field in ("beta1", "beta2"):
            value = getattr(self, field)
            require(0 <= value < 1, f"optim.{field} is {value}; it must be in [0, 1).")
        require(
            self.weight_decay == 0 or self.name in ("adamw", "lion"),
            f"optim.weight_decay is {self.weight_decay}, which optim.name {self.name} does not use (palm decays by lr^2): "
            "set it to 0, or choose adamw or lion.",
        )
        for field in ("weight_decay", "clip", "final_fraction"):
            value = getattr(self, field)
            require(value >= 0, f"optim.{field} is {value}; it must be 0 or more.")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How long, in what portions."""

    steps: int = 300
    batch_size: int = 16
    """Sequences a step, over all devices, from the end of the ramp on."""
    batch_ramp: tuple[tuple[int, int], ...] = ()
    """((sequences, until step), ...): smaller batches at the start. PaLM 540B: ((512, 50000), (1024, 115000))."""
    accumulate: int = 1
    """Gradient-accumulation steps: the batch is computed in this many parts, with the same result."""
    z_loss: float = 1e-4
    """Weight of log^2 Z beside the cross-entropy (PaLM, section 5)."""
    seed: int = 0
    """Seed of the initial parameters."""

    def __post_init__(self):
        typed(self, "train")
        positive(self, "train", "steps", "batch_size", "accumulate")
        require(self.z_loss >= 0, f"train.z_loss is {self.z_loss}; it must be 0 or more.")
        require(0 <= self.seed < 2**32, f"train.seed is {self.seed}; it must be in 0 … 2**32 - 1.")
        require(
            isinstance(self.batch_ramp, tuple)
            and all(isinstance(row, tuple) and [type(n) for n in row] == [int, int] for row in self.batch_ramp),
            f"train.batch_ramp {self.batch_ramp!r} must be ((sequences, until step), ...), of whole numbers.",
        )
        ends = [until for _, until in self.batch_ramp]
        require(
            ends == sorted(set(ends)) and all(until > 0 for until in ends),
            f"train.batch_ramp {self.batch_ramp} must be ((sequences, until step), ...) with rising steps above 0.",
        )
        for size in {self.batch_size, *(size for size, _ in self.batch_ramp)}:
            require(
                size > 0 and size % self.accumulate == 0,
                f"a batch of {size} sequences cannot be cut into train.accumulate {self.accumulate} equal parts; "
                f"choose accumulate among {divisors(size)}.",
            )

    def batch_size_at(self, step: int) -> int:
        """Sequences in batch `step` (counted from 0)."""
        for size, until in self.batch_ramp:
            if step < until:
                return size
        return self.batch_size

    def sequences_before(self, step: int) -> int:
        """Sequences read by all batches before `step`: where batch `step` starts in the data order."""
        total, start = 0, 0
        for size, until in self.batch_ramp:
            total += size * (min(step, until) - start)
            start = min(step, until)
        return total + self.batch_size * (step - start)
