"""Cohere's Command models: CohereForCausalLM is the PaLM decoder."""

from paxlike.interop.families.family import LLAMA_NAMES, SERIAL_RMS, Family

COHERE = Family(
    model_type="cohere",
    architecture="CohereForCausalLM",
    shape={**SERIAL_RMS, "block": ("parallel",), "norm": ("layer",)},
    supported={"attention_bias": (False,), "use_qk_norm": (False,), "hidden_act": ("silu",)},
    epsilon="layer_norm_eps",
    names={
        name: tensor
        for name, tensor in LLAMA_NAMES.items()
        if "norm.weight" not in tensor or name == "scale_D"
    },
    interleaved=True,
    scaled_logits=True,
    tied=True,
    keys=lambda model: {"use_qk_norm": False},
)
