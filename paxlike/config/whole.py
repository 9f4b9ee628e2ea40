"""What is kept, told and watched while a run goes on; and the whole config, of all sections."""

import dataclasses

from paxlike.config.check import positive, require, typed
from paxlike.config.machine import MeshConfig, PrecisionConfig
from paxlike.config.model import ModelConfig
from paxlike.config.training import DataConfig, OptimConfig, TrainConfig


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    every: int = 1000
    """Steps between checkpoints. The last step is always saved."""
    keep: int = 3
    """Newest checkpoints kept."""
    keep_every: int = 0
    """Steps: checkpoints at multiples of it are kept for good. 0: none."""

    def __post_init__(self):
        typed(self, "checkpoint")
        positive(self, "checkpoint", "every", "keep")
        require(self.keep_every >= 0, f"checkpoint.keep_every is {self.keep_every}; it must be 0 or more.")


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    every: int = 0
    """Steps between evaluations on the validation split. 0: only at the end."""
    batches: int = 8
    """Batches of an evaluation; always the same ones."""

    def __post_init__(self):
        typed(self, "eval")
        positive(self, "eval", "batches")
        require(self.every >= 0, f"eval.every is {self.every}; it must be 0 or more.")


@dataclasses.dataclass(frozen=True)
class LogConfig:
    every: int = 10
    """Steps between lines on the terminal and TensorBoard points; metrics.jsonl has every step."""
    tensorboard: bool = True
    wandb: bool = False
    """Also log to Weights & Biases, if it is installed."""
    sample: str = ""
    """A prompt that a finished run continues on the terminal. Empty: none."""

    def __post_init__(self):
        typed(self, "log")
        positive(self, "log", "every")


@dataclasses.dataclass(frozen=True)
class ProfileConfig:
    start: int = -1
    """First step of the profiler window. -1: no profile."""
    steps: int = 3

    def __post_init__(self):
        typed(self, "profile")
        positive(self, "profile", "steps")


@dataclasses.dataclass(frozen=True)
class GuardConfig:
    """What happens when the loss spikes or is not finite: see `train/guard.py`."""

    rewinds: int = 0
    """How often a run may be rewound before it gives up. 0: never; a loss that is not finite stops it, a spike is let be."""
    back: int = 100
    """Steps before the spike from which on batches are skipped."""
    skip: int = 300
    """Batches skipped; more where the spike is not reached by so many."""
    window: int = 100
    """Steps whose losses say what is usual."""
    deviations: float = 8.0
    """A loss is high where it is so many (robust) standard deviations above the median of the window."""
    patience: int = 3
    """High losses in a row that make a spike."""
    skip_nonfinite: bool = False
    """Leave parameters and optimizer as they are in a step whose loss or gradient is not finite; `patience` such steps in a row count as
    a loss that is not finite."""

    def __post_init__(self):
        typed(self, "guard")
        positive(self, "guard", "skip", "window", "deviations", "patience")
        for field in ("rewinds", "back"):
            value = getattr(self, field)
            require(value >= 0, f"guard.{field} is {value}; it must be 0 or more.")


@dataclasses.dataclass(frozen=True)
class WatchdogConfig:
    """When a step is taken for hung, and the job is ended: see `train/watchdog.py`."""

    factor: float = 20.0
    """Times the usual step of the run."""
    at_least: float = 300.0
    """Seconds that a step may take in any case: storage has slow minutes."""

    def __post_init__(self):
        typed(self, "watchdog")
        positive(self, "watchdog", "factor", "at_least")


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole run."""

    name: str = "run"
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    precision: PrecisionConfig = dataclasses.field(default_factory=PrecisionConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    eval: EvalConfig = dataclasses.field(default_factory=EvalConfig)
    log: LogConfig = dataclasses.field(default_factory=LogConfig)
    profile: ProfileConfig = dataclasses.field(default_factory=ProfileConfig)
    guard: GuardConfig = dataclasses.field(default_factory=GuardConfig)
    watchdog: WatchdogConfig = dataclasses.field(default_factory=WatchdogConfig)

    def __post_init__(self):
        typed(self, "config")
        require(
            bool(self.name) and all(c.isalnum() or c in "._-" for c in self.name) and self.name[0] != ".",
            f"name {self.name!r} is used as a folder name; use letters, digits, '.', '_' and '-'.",
        )
        reach, needed = (self.checkpoint.keep - 1) * self.checkpoint.every, self.guard.back + self.guard.patience
        require(
            self.guard.rewinds == 0 or reach >= needed,
            f"checkpoint.keep {self.checkpoint.keep} of every {self.checkpoint.every} steps reach back {reach} steps; to rewind by "
            f"guard.back {self.guard.back} and guard.patience {self.guard.patience} they must reach {needed}: keep more.",
        )
