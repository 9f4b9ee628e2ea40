"""paxlike: plan, train and account for PaLM-style language models on TPU and GPU pods."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from paxlike.api.planning import flops, plan
    from paxlike.api.run import Run, open_run
    from paxlike.api.training import train
    from paxlike.config import Config, Hosts, UserError, load

__version__ = "0.1.0"
__all__ = ["Config", "Hosts", "Run", "UserError", "flops", "load", "open_run", "plan", "train"]

_MODULES = {
    "Config": "paxlike.config",
    "Hosts": "paxlike.config",
    "Run": "paxlike.api.run",
    "UserError": "paxlike.config",
    "flops": "paxlike.api.planning",
    "load": "paxlike.config",
    "open_run": "paxlike.api.run",
    "plan": "paxlike.api.planning",
    "train": "paxlike.api.training",
}


def __getattr__(name: str) -> object:
    """Imported on first use, so that `import paxlike` imports neither JAX nor NumPy."""
    if name not in _MODULES:
        raise AttributeError(f"module 'paxlike' has no attribute {name!r}")
    if name in ("Run", "open_run", "plan", "train"):
        # Without the CUDA plugin's warnings on machines without a GPU.
        importlib.import_module("paxlike.parallel.compilers").import_jax()
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
