"""Every knob of a run: frozen dataclasses, checked when they are made. Imports no JAX.

A run's config is one Python file that defines `config() -> Config` (see `configs/`); the command line overrides any
field by its dotted name (`--model.layers 4`). Nothing here depends on the machine: a mesh axis of -1 takes what is there.
"""

from paxlike.config.check import ConfigError, JobError, SaveError, UserError, divisors
from paxlike.config.file import differences, from_json, load, to_json
from paxlike.config.machine import DType, Hosts, MeshConfig, PrecisionConfig
from paxlike.config.model import ModelConfig, QuantConfig
from paxlike.config.training import DataConfig, OptimConfig, TrainConfig
from paxlike.config.whole import (
    CheckpointConfig,
    Config,
    EvalConfig,
    GuardConfig,
    LogConfig,
    ProfileConfig,
    WatchdogConfig,
)

__all__ = [
    "CheckpointConfig",
    "Config",
    "ConfigError",
    "DType",
    "DataConfig",
    "EvalConfig",
    "GuardConfig",
    "Hosts",
    "JobError",
    "LogConfig",
    "MeshConfig",
    "ModelConfig",
    "OptimConfig",
    "PrecisionConfig",
    "ProfileConfig",
    "QuantConfig",
    "SaveError",
    "TrainConfig",
    "UserError",
    "WatchdogConfig",
    "differences",
    "divisors",
    "from_json",
    "load",
    "to_json",
]
