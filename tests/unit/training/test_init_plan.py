"""What differs from the source is named: refused with both values, or told with its origin."""

import dataclasses
import types

import pytest
from helpers import SHAPE

from paxlike.accounting.parameters import stored_shapes
from paxlike.config import InitConfig, ModelConfig, RopeScalingConfig, UserError
from paxlike.training.init_plan import make_plan

BASE = ModelConfig(**{**SHAPE, "kv_heads": 4, "head": "untied", "attention_bias": "qkv"})


def planned(init: InitConfig | None = None, base: ModelConfig = BASE, **changes):
    model = dataclasses.replace(base, **changes)
    source = types.SimpleNamespace(name="the run base", model=base)
    names = [name for name, _ in stored_shapes(model)]
    return make_plan(model, names, init or InitConfig(), source)


def test_an_equal_model_is_copied():
    plan = planned(remat="full", vocab_multiple=32)
    count = len(plan.origins)
    assert plan.lines() == [f"{count} of {count} parameters are copied"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": 3}, r"model\.layers 3 \(source: 2\)"),
        ({"d_model": 64, "d_ff": 96}, r"d_model 64 \(source: 32\); model\.d_ff 96 \(source: 48\)"),
        ({"kv_heads": 8}, r"model\.kv_heads 8 \(source: 4, not a multiple\)"),
        ({"rope_theta": 5e5}, r"model\.rope_theta 500000\.0 \(source: 10000\.0\)"),
        ({"vocab_size": 80}, r"vocab_size 80 \(source: 90.*--init\.new embedding_VD head_DV\)"),
        ({"attention_bias": "none"}, r"attention_bias none \(source: qkv, whose biases would be"),
        ({"qk_norm": "head"}, r"model\.qk_norm head \(source: none\)"),
        ({"logit_scale": 0.5}, r"model\.logit_scale 0\.5 \(source: 1\.0\)"),
    ],
)
def test_mismatches_name_the_fields_both_values_and_the_remedy(changes, message):
    with pytest.raises(UserError, match=f"the run base: .*{message}.*--init.config"):
        planned(**changes)


def test_differences_are_told_by_name():
    lines = planned(kv_heads=2, vocab_size=92, attention_bias="qkvo").lines()
    told = "\n".join(lines)
    assert lines[0].startswith("8 of 15 parameters")
    heads = "2 heads, each the mean of 2 contiguous heads"
    assert f"blocks/wk_DKH, blocks/wv_DKH, blocks/bk_KH, blocks/bv_KH: {heads}" in told
    assert "embedding_VD, head_DV: 2 new of 92 ids have the mean of the source's 90" in told
    assert "blocks/bo_D: new, zeros" in told
    assert "kv_heads 4 -> 2, vocab_size 90 -> 92, attention_bias qkv -> qkvo" in told


def test_heads_of_either_kind():
    tied = dataclasses.replace(BASE, head="tied")
    assert "head_DV: the source's embedding" in "\n".join(planned(base=tied, head="untied").lines())
    told = "\n".join(planned(head="tied").lines())
    assert "head untied -> tied" in told and "of the source, head_DV is not used" in told


def test_new_parameters():
    init = InitConfig("base", kv_heads="random", new=("head_DV", "embedding_VD"))
    plan = planned(init, kv_heads=1, vocab_size=80)  # a smaller vocabulary of another tokenizer
    new = {name for name, origin in plan.origins.items() if origin.read is None}
    assert new == {
        "head_DV", "embedding_VD", "blocks/wk_DKH", "blocks/wv_DKH", "blocks/bk_KH",
        "blocks/bv_KH",
    }  # fmt: skip
    assert "embedding_VD: new, N(0, 1)" in plan.lines()
    with pytest.raises(UserError, match="init.new names head_VD; .* Did you mean head_DV"):
        planned(InitConfig("base", new=("head_VD",)))


def test_a_longer_context_by_scaled_rope():
    yarn = RopeScalingConfig("yarn", 4.0, 32)
    assert "rope_scaling.kind none -> yarn" in planned(rope_scaling=yarn).lines()[-1]
    scaled = dataclasses.replace(BASE, rope_scaling=yarn)
    with pytest.raises(UserError, match=r"rope_scaling\.kind none \(source: yarn\)"):
        planned(base=scaled, rope_scaling=RopeScalingConfig())
