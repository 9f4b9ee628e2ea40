"""Adapters of a model with experts: what `all` covers, and what is never trained."""

import dataclasses

import pytest

from paxlike.architecture.adapters import trained_whole
from paxlike.architecture.lora import lora_updates
from paxlike.config import AdaptConfig, ConfigError, ExpertsConfig, ModelConfig

MODEL = ModelConfig(
    block="serial_experts", norm="rms", experts=ExpertsConfig(4, 2, 48, 1, bias_step=0.1)
)


def test_all_kernels_but_those_of_experts_and_the_router_are_adapted():
    found = lora_updates(MODEL, AdaptConfig("lora", targets=("all",)))["blocks"]
    attention = {"wq_DNH", "wk_DKH", "wv_DKH", "wo_NHD"}
    assert set(found) == attention | {"wgate_DU", "wup_DU", "wdown_UD"}


def test_an_expert_as_a_target_is_refused():
    model = dataclasses.replace(MODEL, experts=ExpertsConfig(4, 2, 48))
    with pytest.raises(ConfigError, match=r"targets has 'wgate_EDM', which this model does not"):
        lora_updates(model, AdaptConfig("lora", targets=("wgate_EDM",)))


@pytest.mark.parametrize("word", ["experts", "layers"])
def test_experts_are_trained_whole_without_the_selection_bias(word):
    found = trained_whole(MODEL, AdaptConfig(train=(word,)))
    assert "blocks/wgate_EDM" in found and "blocks/wrouter_DE" in found
    assert "blocks/selection_bias_E" not in found
