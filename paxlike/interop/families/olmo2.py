"""OLMo 2: norms after the branches only, and of all query and key heads together."""

from paxlike.interop.families.family import LLAMA_NAMES, Family

OLMO2 = Family(
    model_type="olmo2",
    architecture="Olmo2ForCausalLM",
    shape={
        "block": ("serial",),
        "norm": ("rms",),
        "norm_placement": ("after",),
        "feed_forward": ("swiglu",),
        "qk_norm": ("heads",),
    },
    supported={"attention_bias": (False,), "hidden_act": ("silu",)},
    names={
        **LLAMA_NAMES,
        "q_scale_NH": "self_attn.q_norm.weight",
        "k_scale_KH": "self_attn.k_norm.weight",
        "attention_output_scale_D": "post_attention_layernorm.weight",
        "feed_forward_output_scale_D": "post_feedforward_layernorm.weight",
    },
)
