"""The families of Hugging Face models that are read and written, one file each."""

from paxlike.interop.families.cohere import COHERE
from paxlike.interop.families.family import Family
from paxlike.interop.families.gemma import GEMMA2, GEMMA3
from paxlike.interop.families.gpt2 import GPT2
from paxlike.interop.families.gpt_neox import GPT_NEOX
from paxlike.interop.families.jetmoe import JETMOE
from paxlike.interop.families.llama import LLAMA
from paxlike.interop.families.mistral import MISTRAL
from paxlike.interop.families.mixtral import MIXTRAL
from paxlike.interop.families.olmo2 import OLMO2
from paxlike.interop.families.qwen2 import QWEN2
from paxlike.interop.families.qwen3 import QWEN3
from paxlike.interop.families.qwen3_moe import QWEN_MOE

FAMILIES: tuple[Family, ...] = (
    COHERE, LLAMA, MISTRAL, QWEN2, QWEN3, GEMMA2, GEMMA3, OLMO2, GPT_NEOX, GPT2, MIXTRAL,
    QWEN_MOE, JETMOE,
)  # fmt: skip
"""A model is written as the first of the families that it belongs to."""
