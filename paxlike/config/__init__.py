"""The configuration of a run: frozen dataclasses that validate themselves. Imports no JAX.

A config is one Python file that defines `config() -> Config` (see `configs/`). The command line
overrides any field by its dotted name (`--model.layers 4`). A config does not depend on the
machine: a mesh axis of -1 takes the devices that remain.
"""

from paxlike.config.adapt import AdaptConfig
from paxlike.config.config import (
    CheckpointConfig,
    Config,
    EvalConfig,
    GuardConfig,
    LogConfig,
    ProfileConfig,
    WatchdogConfig,
    check_expert_axis,
)
from paxlike.config.depths import DepthsConfig
from paxlike.config.experts import ExpertsConfig
from paxlike.config.file import differences, from_json, load, to_json
from paxlike.config.init import InitConfig
from paxlike.config.model import ModelConfig
from paxlike.config.quantization import QuantConfig
from paxlike.config.rope import RopeScalingConfig
from paxlike.config.runtime import DType, Hosts, MeshConfig, PrecisionConfig
from paxlike.config.training import DataConfig, OptimConfig, TrainConfig
from paxlike.config.validation import ConfigError, JobError, SaveError, UserError, divisors

__all__ = [
    "AdaptConfig",
    "CheckpointConfig",
    "Config",
    "ConfigError",
    "DType",
    "DataConfig",
    "DepthsConfig",
    "EvalConfig",
    "ExpertsConfig",
    "GuardConfig",
    "Hosts",
    "InitConfig",
    "JobError",
    "LogConfig",
    "MeshConfig",
    "ModelConfig",
    "OptimConfig",
    "PrecisionConfig",
    "ProfileConfig",
    "QuantConfig",
    "RopeScalingConfig",
    "SaveError",
    "TrainConfig",
    "UserError",
    "WatchdogConfig",
    "check_expert_axis",
    "differences",
    "divisors",
    "from_json",
    "load",
    "to_json",
]
