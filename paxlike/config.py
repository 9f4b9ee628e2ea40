"""Every knob of a run: frozen dataclasses, checked when they are made. Imports no JAX.

A run's config is one Python file that defines `config() -> Config` (see `configs/`); the command line overrides any
field by its dotted name (`--model.layers 4`). Nothing here depends on the machine: a mesh axis of -1 takes what is there.
"""

import dataclasses
import difflib
import json
import math
import re
import runpy
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, get_args, get_origin


class UserError(Exception):
    """Something the user can mend: shown as one plain message, without a traceback, with exit code 2."""


class SaveError(UserError):
    """A save failed while other writes of it are under way. Whoever reports it ends the process without waiting for those."""


class JobError(Exception):
    """Another process of the job failed, is lost or hangs; the same command goes on from the newest checkpoint. Exit code 3."""


class ConfigError(UserError, ValueError):
    """A config that cannot work. The message names the field, the values and the remedy."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def _typed(config: object, section: str) -> None:
    """Every field is of the type it is declared with; a word is one of its choices."""
    for field in dataclasses.fields(config):
        value, kind, name = getattr(config, field.name), field.type, f"{section}.{field.name}"
        if get_origin(kind) is Literal:
            words = get_args(kind)
            _require(value in words, f"{name} is {value!r}; choose among {', '.join(words)}.{_near(value, words)}")
        elif kind in (int, float, str, bool) or dataclasses.is_dataclass(kind):
            fits = isinstance(value, (int, float) if kind is float else kind)
            _require(
                fits and (kind is bool or not isinstance(value, bool)),
                f"{name} is {value!r}; it must be of type {kind.__name__}.",
            )


def _near(name: object, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(str(name), list(names), n=1)
    return f" Perhaps you meant {near[0]}." if near else ""


def _positive(config: object, section: str, *fields: str) -> None:
    for field in fields:
        value = getattr(config, field)
        _require(value > 0, f"{section}.{field} is {value}; it must be greater than 0.")


@dataclasses.dataclass(frozen=True)
class QuantConfig:
    """BitNet's BitLinear in the projections of the blocks (arXiv 2310.11453; see `quant/`).

    Latent weights, gradients and optimizer state, embedding, head, residuals and attention's products stay in high precision.
    """

    weights: Literal["none", "bitnet", "bitnet_b158"] = "none"
    """bitnet: +1 and -1. bitnet_b158: +1, 0 and -1 (arXiv 2402.17764)."""
    variant: Literal["paper", "code"] = "paper"
    """paper: the sign of 0 is -1, 128 steps of activations, layer norm. code, as published later: 0, 127 steps, RMS norm."""
    groups: int = 1
    """Parts of heads and feed-forward columns with statistics of their own. They belong to the model: on any mesh whose `model` axis
    divides them no device asks another for a statistic. 1: one statistic for a whole weight, by communication."""
    data_tiles: int = 1
    """Parts of d_model with statistics of their own. If more than 1, `data` must divide them, and weights are gathered over `data` as
    packed bits."""
    statistics: Literal["auto", "tensor", "token"] = "auto"
    """What an activation's scale is taken over in training. auto: tensor in the ungrouped paper variant, token otherwise; tensor asks
    the other devices. Generation always takes one per token."""
    nonnegative: bool = False
    """The input of the projection before a non-linearity is shifted by its minimum to 0 ... 127 (paper variant only)."""

    def __post_init__(self):
        _typed(self, "model.quant")
        _positive(self, "model.quant", "groups", "data_tiles")
        changed = [f.name for f in dataclasses.fields(self) if getattr(self, f.name) != f.default]
        _require(
            self.active or not changed,
            f"model.quant.{', '.join(changed)} is set, but model.quant.weights is none; choose bitnet or bitnet_b158.",
        )
        _require(
            not self.nonnegative or self.variant == "paper",
            f"model.quant.nonnegative is of the paper's variant; model.quant.variant is {self.variant}: set it to paper.",
        )

    @property
    def active(self) -> bool:
        return self.weights != "none"

    @property
    def per_token(self) -> bool:
        """Whether every token has a scale of its own in training."""
        return self.statistics == "token" or (self.statistics == "auto" and (self.variant == "code" or self.groups > 1))

    @property
    def bits(self) -> int:
        """Bits of a packed weight: 2 where it can also be 0."""
        return 1 if self.weights == "bitnet" and self.variant == "paper" else 2


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The decoder's shape. The defaults of the words are PaLM's (arXiv 2204.02311, section 2)."""

    layers: int = 4
    d_model: int = 256
    heads: int = 4
    """Query heads."""
    kv_heads: int = 1
    """Key/value heads: 1 is multi-query, `heads` is multi-head, between them grouped-query attention."""
    head_dim: int = 64
    d_ff: int = 1024
    vocab_size: int = 512
    """Tokens that can be predicted. Must be at least the tokenizer's vocabulary."""
    vocab_multiple: int = 128
    """The embedding is stored with this many rows times a whole number, so that `mesh.model` divides it.
    The rows beyond `vocab_size` are never predicted and are not counted as parameters."""
    block: Literal["parallel", "serial"] = "parallel"
    """parallel: x + attention(norm(x)) + feed_forward(norm(x)), one norm. serial: one after the other, two norms."""
    norm: Literal["layer", "rms"] = "layer"
    """Both have a scale only, no bias."""
    feed_forward: Literal["swiglu", "gelu", "relu", "relu2"] = "swiglu"
    """swiglu is gated (three matrices); the others have two. relu2 is the square of relu."""
    head: Literal["tied", "untied"] = "tied"
    """tied: the logits come from the embedding, scaled by 1/sqrt(d_model). untied: from a matrix of their own."""
    rope_theta: float = 10_000.0
    norm_epsilon: float = 1e-6
    attention: Literal["auto", "reference", "xla", "cudnn", "splash"] = "auto"
    """auto: cuDNN flash attention on NVIDIA GPUs, splash attention on TPU, the reference elsewhere."""
    remat: Literal["none", "full", "attention", "palm", "dots"] = "none"
    """What the backward pass computes again instead of keeping (see `nn/remat.py`)."""
    quant: QuantConfig = dataclasses.field(default_factory=QuantConfig)

    def __post_init__(self):
        _typed(self, "model")
        _positive(
            self, "model", "layers", "d_model", "heads", "kv_heads", "head_dim", "d_ff", "vocab_size", "vocab_multiple",
            "rope_theta", "norm_epsilon",
        )  # fmt: skip
        _require(
            self.heads % self.kv_heads == 0,
            f"model.heads {self.heads} is not a multiple of model.kv_heads {self.kv_heads}; every key/value head serves "
            f"the same number of query heads: choose kv_heads among {divisors(self.heads)}.",
        )
        _require(
            self.head_dim % 2 == 0,
            f"model.head_dim {self.head_dim} is odd; rotary embeddings turn pairs of dimensions: choose an even one.",
        )
        self._check_quant()

    def _check_quant(self) -> None:
        groups, tiles = self.quant.groups, self.quant.data_tiles
        for field, size in (("heads", self.heads), ("d_ff", self.d_ff)):
            _require(
                size % groups == 0,
                f"model.quant.groups {groups} does not divide model.{field} {size}; choose among "
                f"{[n for n in divisors(self.heads) if self.d_ff % n == 0]}.",
            )
        # Key/value weights with fewer heads than groups are cut along d_model.
        parts = tiles if self.kv_heads % groups == 0 else tiles * groups
        _require(
            self.d_model % parts == 0,
            f"model.quant cuts model.d_model {self.d_model} into {parts} parts (data_tiles {tiles}"
            + (f" x groups {groups}" if parts > tiles else "")
            + "), which do not divide it; choose other numbers.",
        )

    @property
    def vocab_rows(self) -> int:
        """Rows of the stored embedding: `vocab_size` rounded up to a multiple of `vocab_multiple`."""
        return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple

    @property
    def gated(self) -> bool:
        return self.feed_forward == "swiglu"


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
        _typed(self, "data")
        _positive(self, "data", "sequence_length", "tokenizer_vocab")
        _require(0 <= self.seed < 2**32, f"data.seed is {self.seed}; it must be in 0 … 2**32 - 1.")
        _require(
            not (self.store and self.seqio_mixture),
            f"data.store is {self.store!r} and data.seqio_mixture {self.seqio_mixture!r}; only one can be read.",
        )
        _require(
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
        _typed(self, "optim")
        _positive(self, "optim", "learning_rate", "epsilon")
        _require(self.warmup_steps >= 0, f"optim.warmup_steps is {self.warmup_steps}; it must be 0 or more.")
        _require(
            self.schedule != "palm" or self.warmup_steps > 0,
            "optim.warmup_steps is 0; the palm schedule is constant for warmup_steps and then falls: give at least 1.",
        )
        _require(
            (self.schedule == "two_stage") == (self.second_learning_rate > 0),
            f"optim.second_learning_rate is {self.second_learning_rate} and optim.schedule {self.schedule}; two_stage needs one "
            "above 0, and no other schedule has one.",
        )
        for field in ("beta1", "beta2"):
            value = getattr(self, field)
            _require(0 <= value < 1, f"optim.{field} is {value}; it must be in [0, 1).")
        _require(
            self.weight_decay == 0 or self.name in ("adamw", "lion"),
            f"optim.weight_decay is {self.weight_decay}, which optim.name {self.name} does not use (palm decays by lr^2): "
            "set it to 0, or choose adamw or lion.",
        )
        for field in ("weight_decay", "clip", "final_fraction"):
            value = getattr(self, field)
            _require(value >= 0, f"optim.{field} is {value}; it must be 0 or more.")


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
        _typed(self, "train")
        _positive(self, "train", "steps", "batch_size", "accumulate")
        _require(self.z_loss >= 0, f"train.z_loss is {self.z_loss}; it must be 0 or more.")
        _require(0 <= self.seed < 2**32, f"train.seed is {self.seed}; it must be in 0 … 2**32 - 1.")
        _require(
            isinstance(self.batch_ramp, tuple)
            and all(isinstance(row, tuple) and [type(n) for n in row] == [int, int] for row in self.batch_ramp),
            f"train.batch_ramp {self.batch_ramp!r} must be ((sequences, until step), ...), of whole numbers.",
        )
        ends = [until for _, until in self.batch_ramp]
        _require(
            ends == sorted(set(ends)) and all(until > 0 for until in ends),
            f"train.batch_ramp {self.batch_ramp} must be ((sequences, until step), ...) with rising steps above 0.",
        )
        for size in {self.batch_size, *(size for size, _ in self.batch_ramp)}:
            _require(
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


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes; -1 (one axis only) takes the devices that are left."""

    pod: int = 1
    """Groups of devices joined by a data-center network. Only the batch and the gradient reduction cross it."""
    data: int = -1
    model: int = 1

    def __post_init__(self):
        _typed(self, "mesh")
        for field in ("pod", "data", "model"):
            value = getattr(self, field)
            _require(
                value == -1 or value > 0,
                f"mesh.{field} is {value}; give a size above 0, or -1 for the devices that are left.",
            )
        _require(
            [self.pod, self.data, self.model].count(-1) <= 1,
            f"mesh {self.pod} x {self.data} x {self.model} has -1 more than once; only one axis can take what is left.",
        )

    def resolve(self, devices: int) -> tuple[int, int, int]:
        """(pod, data, model) for a number of devices. Raises ConfigError where they do not fit."""
        sizes = [self.pod, self.data, self.model]
        known = math.prod(size for size in sizes if size != -1)
        if -1 in sizes:
            sizes[sizes.index(-1)] = devices // known
        _require(
            math.prod(sizes) == devices,
            f"mesh pod {self.pod} x data {self.data} x model {self.model} does not fit {devices} devices; "
            f"choose mesh.model among {divisors(devices)}, or --fake-devices N to try another count on the CPU.",
        )
        return sizes[0], sizes[1], sizes[2]


DType = Literal["bfloat16", "float32"]


@dataclasses.dataclass(frozen=True)
class PrecisionConfig:
    """Number formats."""

    compute: Literal["auto", "bfloat16", "float32"] = "auto"
    """Matmuls and activations. auto: bfloat16 on accelerators, float32 on the CPU."""
    params: DType = "float32"
    """Stored parameters. The optimizer's moments are float32 always."""
    gradients: DType = "float32"
    """In which gradients are summed over data and pod."""

    def __post_init__(self):
        _typed(self, "precision")


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    every: int = 1000
    """Steps between checkpoints. The last step is always saved."""
    keep: int = 3
    """Newest checkpoints kept."""
    keep_every: int = 0
    """Steps: checkpoints at multiples of it are kept for good. 0: none."""

    def __post_init__(self):
        _typed(self, "checkpoint")
        _positive(self, "checkpoint", "every", "keep")
        _require(self.keep_every >= 0, f"checkpoint.keep_every is {self.keep_every}; it must be 0 or more.")


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    every: int = 0
    """Steps between evaluations on the validation split. 0: only at the end."""
    batches: int = 8
    """Batches of an evaluation; always the same ones."""

    def __post_init__(self):
        _typed(self, "eval")
        _positive(self, "eval", "batches")
        _require(self.every >= 0, f"eval.every is {self.every}; it must be 0 or more.")


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
        _typed(self, "log")
        _positive(self, "log", "every")


@dataclasses.dataclass(frozen=True)
class ProfileConfig:
    start: int = -1
    """First step of the profiler window. -1: no profile."""
    steps: int = 3

    def __post_init__(self):
        _typed(self, "profile")
        _positive(self, "profile", "steps")


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
        _typed(self, "guard")
        _positive(self, "guard", "skip", "window", "deviations", "patience")
        for field in ("rewinds", "back"):
            value = getattr(self, field)
            _require(value >= 0, f"guard.{field} is {value}; it must be 0 or more.")


@dataclasses.dataclass(frozen=True)
class WatchdogConfig:
    """When a step is taken for hung, and the job is ended: see `train/watchdog.py`."""

    factor: float = 20.0
    """Times the usual step of the run."""
    at_least: float = 300.0
    """Seconds that a step may take in any case: storage has slow minutes."""

    def __post_init__(self):
        _typed(self, "watchdog")
        _positive(self, "watchdog", "factor", "at_least")


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
        _typed(self, "config")
        _require(
            bool(self.name) and all(c.isalnum() or c in "._-" for c in self.name) and self.name[0] != ".",
            f"name {self.name!r} is used as a folder name; use letters, digits, '.', '_' and '-'.",
        )
        reach, needed = (self.checkpoint.keep - 1) * self.checkpoint.every, self.guard.back + self.guard.patience
        _require(
            self.guard.rewinds == 0 or reach >= needed,
            f"checkpoint.keep {self.checkpoint.keep} of every {self.checkpoint.every} steps reach back {reach} steps; to rewind by "
            f"guard.back {self.guard.back} and guard.patience {self.guard.patience} they must reach {needed}: keep more.",
        )


@dataclasses.dataclass(frozen=True)
class Hosts:
    """The processes that work together. No part of a run's config: a run goes on with any number of them."""

    coordinator: str = ""
    """HOST:PORT where process 0 listens, and nowhere else. Empty: Cloud TPU, GKE, Slurm and Open MPI say it themselves."""
    count: int = 0
    """Processes of the job. 1: this process alone, whatever the machine says. 0 (without coordinator): found out."""
    id: int = -1
    """The number of this process, from 0."""

    def __post_init__(self):
        _typed(self, "hosts")
        if not self.coordinator:
            _require(
                (self.count, self.id) in ((0, -1), (1, -1), (1, 0)),
                f"hosts.count is {self.count} and hosts.id {self.id}, but there is no hosts.coordinator HOST:PORT to meet at.",
            )
            return
        host, _, port = self.coordinator.rpartition(":")
        _require(
            bool(host) and port.isdigit() and 0 < int(port) < 2**16,
            f"hosts.coordinator is {self.coordinator!r}; it must be HOST:PORT of process 0, such as 10.0.0.2:8476.",
        )
        _require(self.count > 0, f"hosts.count is {self.count}; give the number of processes of the job.")
        _require(
            0 <= self.id < self.count,
            f"hosts.id is {self.id}; with hosts.count {self.count} it must be in 0 … {self.count - 1}.",
        )


def divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def load(path: str | Path) -> Config:
    """The Config that a config file's `config()` returns. Raises UserError naming the file and what is wrong."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no config file {path}.{_near(path, map(str, path.parent.glob('*.py')))}")
    try:
        config = runpy.run_path(str(path)).get("config")
        _require(callable(config), "it defines no function `config() -> Config`.")
        made = config()
        _require(isinstance(made, Config), f"config() returned a {type(made).__name__}, not a paxlike Config.")
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except Exception as error:
        raise UserError(f"{path}: {type(error).__name__}: {error}.{_near_field(error)}") from error
    return made


def _near_field(error: Exception) -> str:
    """What a misspelt field was probably meant to be, from Python's own message."""
    misspelt = re.search(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error))
    kind = misspelt and globals().get(misspelt.group(1))
    return _near(misspelt.group(2), [field.name for field in dataclasses.fields(kind)]) if kind else ""


def to_json(config: Config) -> str:
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def from_json(text: str) -> Config:
    """The Config written by `to_json`. Raises ConfigError naming an unknown field, ValueError where it is no JSON."""
    return _build(Config, json.loads(text), "")


def _build(kind: type, values: dict, prefix: str) -> object:
    fields = {field.name: field for field in dataclasses.fields(kind)}
    _require(isinstance(values, dict), f"config section {prefix.rstrip('.') or 'of all'} is {values!r}, no section.")
    for name in values:
        _require(
            name in fields,
            f"unknown config field {prefix}{name}; fields are {', '.join(fields)}.{_near(name, fields)}",
        )
    made = {}
    for name, value in values.items():
        default = fields[name].default_factory
        if default is not dataclasses.MISSING:
            made[name] = _build(default, value, f"{prefix}{name}.")
        else:
            made[name] = tuple(tuple(row) for row in value) if isinstance(value, list) else value
    return kind(**made)


def differences(old: Config, new: Config) -> list[str]:
    """`field: old -> new` for every field in which two configs differ."""

    def flat(value: dict, prefix: str = "") -> dict:
        out = {}
        for name, inner in value.items():
            out.update(flat(inner, f"{prefix}{name}.") if isinstance(inner, dict) else {prefix + name: inner})
        return out

    a, b = flat(dataclasses.asdict(old)), flat(dataclasses.asdict(new))
    return [f"{name}: {a[name]!r} -> {b[name]!r}" for name in a if a[name] != b[name]]
