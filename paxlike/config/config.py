"""The complete config, and its sections on checkpoints, evaluation, logging and supervision."""

import dataclasses

from paxlike.config.adapt import AdaptConfig
from paxlike.config.init import InitConfig
from paxlike.config.model import ModelConfig
from paxlike.config.runtime import MeshConfig, PrecisionConfig
from paxlike.config.training import DataConfig, OptimConfig, TrainConfig
from paxlike.config.validation import positive, require, suggest_divisors, typed


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When checkpoints are saved and how long they are kept."""

    every: int = 1000
    """Steps between checkpoints. The last step is always saved."""
    keep: int = 3
    """How many of the newest checkpoints to keep."""
    keep_every: int = 0
    """Checkpoints at multiples of this many steps are kept permanently. 0: none."""

    def __post_init__(self):
        typed(self, "checkpoint")
        positive(self, "checkpoint", "every", "keep")
        require(
            self.keep_every >= 0,
            f"checkpoint.keep_every is {self.keep_every}; it must be 0 or more.",
        )


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """Evaluation on the validation split during training."""

    every: int = 0
    """Steps between evaluations. 0: only after the last step."""
    batches: int = 8
    """Batches per evaluation; always the same ones."""

    def __post_init__(self):
        typed(self, "eval")
        positive(self, "eval", "batches")
        require(self.every >= 0, f"eval.every is {self.every}; it must be 0 or more.")


@dataclasses.dataclass(frozen=True)
class LogConfig:
    """Terminal, TensorBoard and Weights & Biases output."""

    every: int = 10
    """Steps between terminal lines and TensorBoard points. metrics.jsonl has every step."""
    tensorboard: bool = True
    """Write TensorBoard event files into the run directory."""
    wandb: bool = False
    """Log to Weights & Biases (extra `wandb`)."""
    sample: str = ""
    """A prompt to continue when training ends. Empty: no sample."""

    def __post_init__(self):
        typed(self, "log")
        positive(self, "log", "every")


@dataclasses.dataclass(frozen=True)
class ProfileConfig:
    """A profiler window during training."""

    start: int = -1
    """First step of the window. -1: no profile."""
    steps: int = 3
    """Number of steps to profile."""

    def __post_init__(self):
        typed(self, "profile")
        positive(self, "profile", "steps")


@dataclasses.dataclass(frozen=True)
class GuardConfig:
    """What happens after a loss spike or a non-finite loss (see `training/guard.py`)."""

    rewinds: int = 0
    """Maximum number of rewinds before the run fails. 0 disables rewinding: a non-finite loss stops
    the run, a finite spike is ignored."""
    back: int = 100
    """Skipping starts this many steps before the spike."""
    skip: int = 300
    """Batches to skip; more if these do not reach past the spike."""
    window: int = 100
    """Recent steps whose losses define the normal range."""
    deviations: float = 8.0
    """Spike threshold, in robust standard deviations above the window's median."""
    patience: int = 3
    """Consecutive high losses that count as a spike."""
    skip_nonfinite: bool = False
    """Skip the parameter and optimizer update of a step whose loss or gradient is not finite.
    `patience` such steps in a row count as a non-finite loss."""

    def __post_init__(self):
        typed(self, "guard")
        positive(self, "guard", "skip", "window", "deviations", "patience")
        for field in ("rewinds", "back"):
            value = getattr(self, field)
            require(value >= 0, f"guard.{field} is {value}; it must be 0 or more.")


@dataclasses.dataclass(frozen=True)
class WatchdogConfig:
    """When a step counts as hung and ends the job (see `training/watchdog.py`)."""

    factor: float = 20.0
    """Timeout of a step, as a multiple of the run's typical step time."""
    at_least: float = 300.0
    """Minimum timeout in seconds; storage can be slow for minutes."""

    def __post_init__(self):
        typed(self, "watchdog")
        positive(self, "watchdog", "factor", "at_least")


def check_expert_axis(model: ModelConfig, mesh: MeshConfig) -> None:
    """Raises ConfigError unless the experts of a layer can be sharded over mesh.expert."""
    count = model.experts.count
    require(
        mesh.expert == 1 or count > 0,
        f"mesh.expert is {mesh.expert}, but the model has no experts (model.experts.count 0); set "
        "mesh.expert to 1.",
    )
    require(
        not count or count % mesh.expert == 0,
        f"mesh.expert {mesh.expert} does not divide model.experts.count {count}; choose "
        f"mesh.expert among {suggest_divisors(count, mesh.expert)}.",
    )


@dataclasses.dataclass(frozen=True)
class Config:
    """The complete config of a run."""

    name: str = "run"
    """Default run directories are runs/NAME-1, runs/NAME-2, ..."""
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    adapt: AdaptConfig = dataclasses.field(default_factory=AdaptConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    precision: PrecisionConfig = dataclasses.field(default_factory=PrecisionConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    eval: EvalConfig = dataclasses.field(default_factory=EvalConfig)
    log: LogConfig = dataclasses.field(default_factory=LogConfig)
    profile: ProfileConfig = dataclasses.field(default_factory=ProfileConfig)
    guard: GuardConfig = dataclasses.field(default_factory=GuardConfig)
    watchdog: WatchdogConfig = dataclasses.field(default_factory=WatchdogConfig)
    init: InitConfig = dataclasses.field(default_factory=InitConfig)

    def __post_init__(self):
        typed(self, "config")
        require(
            bool(self.name)
            and all(c.isalnum() or c in "._-" for c in self.name)
            and self.name[0] != ".",
            f"name {self.name!r} is used as a directory name; use letters, digits, '.', '_' and "
            "'-'; it must not start with '.'.",
        )
        longest, length = self.model.learned_positions, self.data.sequence_length
        require(
            not longest or length <= longest,
            f"data.sequence_length {length} is above model.learned_positions {longest}; change one "
            "of them.",
        )
        check_expert_axis(self.model, self.mesh)
        if self.model.routed:
            self.model.depths.check_length(length)
            require(
                self.adapt.kind != "prefix",
                "adapt.kind is prefix, and model.pattern has routed blocks, whose caches have no "
                "places for a prefix; use lora.",
            )
        if self.adapt.kind == "prefix":
            self._check_prefix()
        changed = sum(self.adapt.prompt_positions)
        require(
            self.adapt.kind != "reft" or changed <= length,
            f"adapt.positions {self.adapt.positions} are {changed} tokens of a prompt, more than "
            f"data.sequence_length {length}; no prompt has as many.",
        )
        reach, needed = (
            (self.checkpoint.keep - 1) * self.checkpoint.every,
            self.guard.back + self.guard.patience,
        )
        require(
            self.guard.rewinds == 0 or reach >= needed,
            f"checkpoint.keep {self.checkpoint.keep} checkpoints at checkpoint.every "
            f"{self.checkpoint.every} reach back {reach} steps; to rewind by guard.back "
            f"{self.guard.back} and guard.patience {self.guard.patience}, they must reach "
            f"{needed}: keep more.",
        )

    def _check_prefix(self) -> None:
        longest, length = self.model.learned_positions, self.data.sequence_length
        prefix, kernel = self.adapt.prefix_length, self.model.attention
        require(
            not longest or prefix + length <= longest,
            f"adapt.prefix_length {prefix} and data.sequence_length {length} together are above "
            f"model.learned_positions {longest}; reduce one of them.",
        )
        require(
            kernel in ("auto", "blocked", "reference"),
            f"model.attention is {kernel}, which has no prefix (adapt.kind); set it to blocked.",
        )
