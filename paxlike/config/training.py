"""Config sections of training: data, optimizer, batches."""

import dataclasses
from typing import Literal

from paxlike.config.validation import is_finite, positive, require, suggest_divisors, typed


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Training data. Batch k is a function of (store, seed, k) only."""

    store: str = ""
    """A token store written by `paxlike data prepare` or `paxlike data materialize`. Empty: the
    source of the Python standard library, prepared once with the settings below and cached."""
    sequence_length: int = 256
    """Tokens per sequence."""
    packing: Literal["split", "whole"] = "split"
    """split: documents are concatenated and cut (PaLM). whole: documents are packed whole, and
    attention does not cross documents."""
    tokenizer: Literal["bytes", "sentencepiece"] = "sentencepiece"
    """Tokenizer of the default corpus. A store has its own tokenizer."""
    tokenizer_vocab: int = 4096
    """Vocabulary size of the SentencePiece model of the default corpus."""
    seed: int = 0
    """Seed of the order of the sequences."""
    seqio_mixture: str = ""
    """A registered seqio Task or Mixture, read directly instead of a store (extra `seqio`)."""
    module: str = ""
    """The Python file that registers the Task or Mixture."""
    mixture: tuple[tuple[str, float], ...] = ()
    """Token stores and their weights, read together instead of `store`, such as
    (("data/web", 0.7), ("data/code", 0.3)). All have the same tokenizer."""
    mixture_changes: tuple[tuple[int, str, float], ...] = ()
    """(step, store, weight): from that step on, the store of the mixture has that weight."""

    def __post_init__(self):
        typed(self, "data")
        positive(self, "data", "sequence_length", "tokenizer_vocab")
        require(0 <= self.seed < 2**32, f"data.seed is {self.seed}; it must be in 0 ... 2**32 - 1.")
        sources = {n: v for n in ("store", "mixture", "seqio_mixture") if (v := getattr(self, n))}
        require(
            len(sources) <= 1,
            f"{' and '.join(f'data.{name} is {value!r}' for name, value in sources.items())}; set "
            "only one of them.",
        )
        self._check_mixture()
        require(
            bool(self.module) == bool(self.seqio_mixture),
            f"data.module is {self.module!r} and data.seqio_mixture is {self.seqio_mixture!r}; the "
            "module is the file that registers the Task or Mixture: give both.",
        )

    def _check_mixture(self) -> None:
        for field, kinds in (("mixture", (str, float)), ("mixture_changes", (int, str, float))):
            for entry in getattr(self, field):
                require(
                    isinstance(entry, tuple)
                    and len(entry) == len(kinds)
                    and all(
                        isinstance(value, (int, float) if kind is float else kind)
                        for value, kind in zip(entry, kinds, strict=True)
                    ),
                    f"data.{field} has the entry {entry!r}; it must be a tuple of "
                    f"{', '.join(kind.__name__ for kind in kinds)}.",
                )
        names = [name for name, _ in self.mixture]
        require(
            len(set(names)) == len(names),
            f"data.mixture names a store twice: {', '.join(names)}; add its weights.",
        )
        for step, name, _ in self.mixture_changes:
            require(
                name in names and step > 0,
                f"data.mixture_changes has ({step}, {name!r}); the step must be above 0 and the "
                f"store one of data.mixture ({', '.join(names) or 'empty'}).",
            )
        for step, weights in self.mixture_phases if self.mixture else ():
            good = all(is_finite(weight) and weight >= 0 for weight in weights)
            require(
                good and sum(weights) > 0,
                f"the weights of data.mixture from step {step} on are {list(weights)}; they must "
                "be 0 or more, and at least one above 0.",
            )

    @property
    def mixture_phases(self) -> tuple[tuple[int, tuple[float, ...]], ...]:
        """(first step, weights in the order of `mixture`), from step 0 on."""
        weights = dict(self.mixture)
        phases = [(0, tuple(weights.values()))]
        for step in sorted({step for step, _, _ in self.mixture_changes}):
            weights |= {name: w for at, name, w in self.mixture_changes if at == step}
            phases.append((step, tuple(weights.values())))
        return tuple(phases)


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """The optimizer and its learning-rate schedule (see `optim/`)."""

    name: Literal["palm", "adamw", "adafactor", "lion"] = "palm"
    """palm: Adafactor without factorization (parameter scaling, beta2 = 1 - step^-0.8, weight decay
    lr^2)."""
    learning_rate: float = 1e-2
    """Peak learning rate. palm and adafactor multiply it by the RMS of each parameter."""
    schedule: Literal["palm", "constant", "linear", "cosine", "two_stage"] = "palm"
    """palm: constant for `warmup_steps`, then learning_rate * sqrt(warmup_steps / step). The others
    warm up linearly over `warmup_steps`; then they stay constant, or decay to `final_fraction` of
    the peak at `train.steps`. two_stage: linear, but the second half has the peak
    `second_learning_rate` and no weight decay (see `optim/schedules.py`)."""
    second_learning_rate: float = 0.0
    """Peak learning rate of the second half of the two_stage schedule."""
    warmup_steps: int = 10_000
    """Steps of linear warmup; with palm, steps at the peak learning rate."""
    final_fraction: float = 0.1
    """Final learning rate as a fraction of the peak (linear, cosine, two_stage)."""
    beta1: float = 0.9
    """Decay of the first moment (palm, adamw, lion)."""
    beta2: float = 0.99
    """Decay of the second moment (adamw, lion). palm and adafactor use 1 - step^-0.8."""
    epsilon: float = 1e-8
    """Added to the square root of the second moment (adamw)."""
    weight_decay: float = 0.0
    """Weight decay of adamw and lion, multiplied by the learning rate. Norm scales do not decay.
    palm decays by lr^2, adafactor not at all."""
    clip: float = 1.0
    """Maximum global norm of the gradients. 0: no clipping."""

    def __post_init__(self):
        typed(self, "optim")
        positive(self, "optim", "learning_rate", "epsilon")
        require(
            self.warmup_steps >= 0,
            f"optim.warmup_steps is {self.warmup_steps}; it must be 0 or more.",
        )
        require(
            self.schedule != "palm" or self.warmup_steps > 0,
            "optim.warmup_steps is 0; the palm schedule is constant for warmup_steps and then "
            "decays: give at least 1.",
        )
        require(
            (self.schedule == "two_stage") == (self.second_learning_rate > 0),
            f"optim.second_learning_rate is {self.second_learning_rate} and optim.schedule is "
            f"{self.schedule}; two_stage requires a value above 0, every other schedule 0.",
        )
        for field in ("beta1", "beta2"):
            value = getattr(self, field)
            require(0 <= value < 1, f"optim.{field} is {value}; it must be in [0, 1).")
        require(
            self.weight_decay == 0 or self.name in ("adamw", "lion"),
            f"optim.weight_decay is {self.weight_decay}, which optim.name {self.name} does not use "
            "(palm decays by lr^2): set it to 0, or choose adamw or lion.",
        )
        for field in ("weight_decay", "clip", "final_fraction"):
            value = getattr(self, field)
            require(value >= 0, f"optim.{field} is {value}; it must be 0 or more.")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Training length and batch sizes."""

    steps: int = 300
    """Total number of steps."""
    batch_size: int = 16
    """Global batch size in sequences, after the ramp."""
    batch_ramp: tuple[tuple[int, int], ...] = ()
    """Smaller batches at the start: ((sequences, until step), ...). PaLM 540B:
    ((512, 50000), (1024, 115000))."""
    accumulate: int = 1
    """Gradient-accumulation steps. The result does not depend on them."""
    z_loss: float = 1e-4
    """Weight of the auxiliary loss log^2 Z (PaLM, section 5)."""
    seed: int = 0
    """Seed of the initial parameters."""

    def __post_init__(self):
        typed(self, "train")
        positive(self, "train", "steps", "batch_size", "accumulate")
        require(self.z_loss >= 0, f"train.z_loss is {self.z_loss}; it must be 0 or more.")
        require(
            0 <= self.seed < 2**32, f"train.seed is {self.seed}; it must be in 0 ... 2**32 - 1."
        )
        require(
            isinstance(self.batch_ramp, tuple)
            and all(
                isinstance(row, tuple) and [type(n) for n in row] == [int, int]
                for row in self.batch_ramp
            ),
            f"train.batch_ramp {self.batch_ramp!r} must be ((sequences, until step), ...), "
            "all integers.",
        )
        ends = [until for _, until in self.batch_ramp]
        require(
            ends == sorted(set(ends)) and all(until > 0 for until in ends),
            f"train.batch_ramp {self.batch_ramp} must be ((sequences, until step), ...) with "
            "increasing steps greater than 0.",
        )
        for size in {self.batch_size, *(size for size, _ in self.batch_ramp)}:
            require(size > 0, f"train.batch_ramp has a batch of {size} sequences; give 1 or more.")
            require(
                size % self.accumulate == 0,
                f"a batch of {size} sequences cannot be split into train.accumulate "
                f"{self.accumulate} equal parts; choose accumulate among "
                f"{suggest_divisors(size, self.accumulate)}.",
            )

    def batch_size_at(self, step: int) -> int:
        """Number of sequences in batch `step` (counted from 0)."""
        for size, until in self.batch_ramp:
            if step < until:
                return size
        return self.batch_size

    def sequences_before(self, step: int) -> int:
        """Number of sequences in all batches before `step`: where it starts in the data order."""
        total, start = 0, 0
        for size, until in self.batch_ramp:
            total += size * (min(step, until) - start)
            start = min(step, until)
        return total + self.batch_size * (step - start)
