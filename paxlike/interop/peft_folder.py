"""A folder of PEFT (adapter_config.json, adapter_model.safetensors), whatever its adapter is."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from paxlike.config import AdaptConfig, Config, ModelConfig, UserError
from paxlike.interop import safetensors
from paxlike.interop.hf_numpy import Past

Array = np.ndarray
Read = Callable[[str], Array]
"""A tensor of a Hugging Face model by its name."""

SETTINGS = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"


class Written(NamedTuple):
    """What a folder consists of."""

    settings: dict[str, Any]
    """Without those of every adapter, which `write` adds."""
    tensors: dict[str, Array]
    """float32, by name."""


class Loaded(NamedTuple):
    """An adapter that was read from a folder."""

    adapt: AdaptConfig
    params: dict[str, Array]
    """float32, by checkpoint name."""
    adapted: Callable[[Read], tuple[Read, Past]]
    """The base's tensors there -> those of the adapted model, and what its tokens follow."""


class Format(NamedTuple):
    """How PEFT stores a kind of adapter."""

    peft_type: str
    write: Callable[[Config, dict], Written]
    """Of a run's config and its trained parameters, nested as in a checkpoint."""
    read: Callable[["Folder", ModelConfig], Loaded]
    """Raises UserError naming what does not fit the base."""


def write(folder: Path, config: Config, peft_type: str, written: Written) -> None:
    settings = {
        "peft_type": peft_type,
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": config.init.source or None,
        "inference_mode": True,
        **written.settings,
    }
    (folder / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n")
    entries = [
        safetensors.Entry(name, value.shape, value.copy) for name, value in written.tensors.items()
    ]
    safetensors.write_file(folder / WEIGHTS, entries, np.dtype("float32"))


class Folder:
    """The settings and tensors of a folder."""

    def __init__(self, path: Path):
        """Raises UserError if the settings cannot be read."""
        self.path = path
        try:
            values = json.loads((path / SETTINGS).read_text())
            if not isinstance(values, dict):
                raise ValueError("it is not a JSON object")
        except (OSError, ValueError) as error:
            raise UserError(f"{path / SETTINGS} cannot be read: {error}.") from error
        self.settings: dict[str, Any] = values

    def check_settings(self, supported: dict[str, tuple]) -> None:
        """supported: setting -> its only supported values; a missing setting is supported. Raises
        UserError.
        """
        for name, values in supported.items():
            if name in self.settings and self.settings[name] not in values:
                raise UserError(
                    f"{self.path / SETTINGS} has {name} {self.settings[name]!r}; supported is "
                    f"{' or '.join(map(repr, values))}."
                )

    def tensors(self) -> safetensors.Tensors:
        """Raises UserError if there are none."""
        if not (self.path / WEIGHTS).is_file():
            raise UserError(f"{self.path} has no {WEIGHTS}; save the adapter as safetensors.")
        return safetensors.Tensors(self.path, WEIGHTS)

    def misfit(self, errors: list[str]) -> UserError:
        """What is raised for tensors that do not fit the base."""
        more = f", and {len(errors) - 5} more" if len(errors) > 5 else ""
        return UserError(
            f"{self.path / WEIGHTS} does not fit the base: {'; '.join(errors[:5])}{more}."
        )
