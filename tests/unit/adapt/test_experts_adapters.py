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


EXPERT_HEADS = dataclasses.replace(
    MODEL, block="serial_expert_heads", experts=ExpertsConfig(4, 2, 48, 1, output_bias=True)
)


def test_of_expert_heads_the_shared_keys_and_values_are_adapted():
    def adapted(*targets):
        return set(lora_updates(EXPERT_HEADS, AdaptConfig("lora", targets=targets))["blocks"])

    assert adapted("expert-heads") == adapted("wk", "wv") == {"wk_DKH", "wv_DKH"}
    assert adapted("all") == {"wk_DKH", "wv_DKH", "wgate_DU", "wup_DU", "wdown_UD"}


@pytest.mark.parametrize("word", ["attention", "wq", "wo_ENHD", "wheads_router"])
def test_experts_of_heads_as_a_target_are_refused(word):
    message = f"targets has '{word}', which this model does not have; choose among .*wk, wv"
    with pytest.raises(ConfigError, match=message):
        lora_updates(EXPERT_HEADS, AdaptConfig("lora", targets=(word,)))


def test_experts_of_heads_are_trained_whole():
    names = {"wq_EDNH", "wk_DKH", "wv_DKH", "wo_ENHD", "wheads_router_DE", "expert_heads_bias_D"}
    found = trained_whole(EXPERT_HEADS, AdaptConfig(train=("expert-heads",)))
    assert found == {f"blocks/{name}" for name in names}


@pytest.mark.parametrize("word", ["experts", "layers"])
def test_experts_are_trained_whole_without_the_selection_bias(word):
    found = trained_whole(MODEL, AdaptConfig(train=(word,)))
    assert "blocks/wgate_EDM" in found and "blocks/wrouter_DE" in found
    assert "blocks/selection_bias_E" not in found
