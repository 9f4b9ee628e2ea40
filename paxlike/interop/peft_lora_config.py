"""adapter_config.json of a LoRA adapter: what is written, and what is honored or refused."""

import re
from typing import NamedTuple

from paxlike.config import Config, ModelConfig
from paxlike.interop.hf_layout import family
from paxlike.interop.peft_folder import Folder
from paxlike.interop.peft_lora_layout import modules

REFUSED = {
    "use_dora": (False,),
    "bias": ("none",),
    "lora_bias": (False,),
    "layer_replication": (None,),
    "alora_invocation_tokens": (None,),
    "trainable_token_indices": (None,),
    "modules_to_save": (None, []),
    "target_parameters": (None, []),
    "exclude_modules": (None, []),
}
"""Setting -> the only values that are supported; a missing setting is."""


def written(config: Config, ranks: dict[str, int]) -> dict:
    """The settings of an adapter. ranks: of every module, by its path.

    A module of several weights has their ranks' sum, and an alpha that leaves the scale the same.
    """
    adapt = config.adapt
    # GPT-2 has an attn.c_proj and an mlp.c_proj.
    kinds = {module.path.rpartition(".")[2]: set[str]() for module in modules(config.model)}
    for module in modules(config.model):
        kinds[module.path.rpartition(".")[2]].add(module.path.split(".")[-2])

    def name(path: str) -> str:
        parent, last = path.split(".")[-2:]
        return last if len(kinds[last]) == 1 else f"{parent}.{last}"

    targets = sorted({name(path) for path in ranks})
    other = {name(path): rank for path, rank in ranks.items() if rank != adapt.rank}
    alphas = {
        name: adapt.scale * (rank**0.5 if adapt.rank_stabilized else rank)
        for name, rank in other.items()
    }
    return {
        "r": adapt.rank,
        "lora_alpha": adapt.alpha,
        "use_rslora": adapt.rank_stabilized,
        "lora_dropout": adapt.dropout,
        "target_modules": targets,
        "rank_pattern": other,
        "alpha_pattern": alphas,
        "layers_to_transform": sorted(set(adapt.layers)) or None,
        "bias": "none",
        "fan_in_fan_out": family(config.model).inputs_first,
        "init_lora_weights": True,
        "use_dora": False,
        "modules_to_save": None,
    }


class Settings(NamedTuple):
    """What a folder says about its tensors."""

    values: dict

    def rank(self, path: str) -> int:
        return self._pattern("rank_pattern", path, self.values.get("r", 8))

    def scale(self, path: str) -> float:
        alpha = self._pattern("alpha_pattern", path, self.values.get("lora_alpha", 8))
        rank = self.rank(path)
        return alpha / (rank**0.5 if self.values.get("use_rslora") else rank)

    def targets(self, path: str) -> bool:
        """Whether the settings list this module, by name. A pattern or `all-linear` lists none."""
        named = self.values.get("target_modules")
        return isinstance(named, list) and any(f".{path}".endswith(f".{name}") for name in named)

    def has_layer(self, layer: int) -> bool:
        chosen = self.values.get("layers_to_transform")
        return chosen is None or layer in (chosen if isinstance(chosen, list) else [chosen])

    def _pattern(self, field: str, path: str, default):
        """The value of the first key that is the end of the path, as PEFT matches them."""
        for key, value in (self.values.get(field) or {}).items():
            if re.fullmatch(rf"(.*\.)?({key})", path):
                return value
        return default


def read(folder: Folder, model: ModelConfig) -> Settings:
    """Raises UserError if a setting has no equivalent."""
    # PEFT itself corrects the setting for GPT-2's weights.
    layouts = (False, True) if family(model).inputs_first else (False,)
    folder.check_settings({**REFUSED, "fan_in_fan_out": layouts})
    return Settings(folder.settings)
