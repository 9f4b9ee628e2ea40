"""The declaration of softmax attention with RoPE; `models/attention.py` is its forward pass."""

from paxlike.architecture.branch import Activation, ActivationSizes, Product, WeightSpec
from paxlike.architecture.remat_policies import ATTENTION, PROJECTION, STREAM
from paxlike.config import ModelConfig

LINEAR, SCORES = "attention projections", "attention products"


class Attention:
    """Multi-query, grouped-query or multi-head attention (PaLM, arXiv 2204.02311, section 2)."""

    name = "attention"

    def weights(self, model: ModelConfig) -> tuple[WeightSpec, ...]:
        kernels = [
            WeightSpec("wq_DNH", "attention q"),
            WeightSpec("wk_DKH", "attention k"),
            WeightSpec("wv_DKH", "attention v"),
            WeightSpec("wo_NHD", "attention o"),
        ]
        biases = [
            WeightSpec("bq_NH", "biases", "bias"),
            WeightSpec("bk_KH", "biases", "bias"),
            WeightSpec("bv_KH", "biases", "bias"),
            WeightSpec("bo_D", "biases", "bias"),
        ][: {"none": 0, "qkv": 3, "qkvo": 4}[model.attention_bias]]
        norms = [
            WeightSpec("q_scale_H", "norms", "scale"),
            WeightSpec("k_scale_H", "norms", "scale"),
        ]
        return (*kernels, *biases, *(norms if model.qk_norm else ()))

    def products(self, model: ModelConfig, sequence_length: int) -> tuple[Product, ...]:
        D, T = model.d_model, sequence_length
        heads, kv = model.heads * model.head_dim, model.kv_heads * model.head_dim
        return (
            Product("attention q", LINEAR, "2LD·HQ", 2 * D * heads, PROJECTION),
            Product("attention k", LINEAR, "2LD·KQ", 2 * D * kv, PROJECTION),
            Product("attention v", LINEAR, "2LD·KQ", 2 * D * kv, PROJECTION),
            Product("attention scores", SCORES, "2LHQT", 2 * heads * T, None, is_attention=True),
            Product(
                "attention values", SCORES, "2LHQT", 2 * heads * T, ATTENTION, is_attention=True
            ),
            Product("attention o", LINEAR, "2L·HQ·D", 2 * heads * D, STREAM, needed=False),
        )

    def activations(self, model: ModelConfig, sizes: ActivationSizes) -> tuple[Activation, ...]:
        shards, b = sizes.model_shards, sizes.bytes
        heads = model.heads * model.head_dim // shards
        kv = model.kv_heads * model.head_dim // (shards if model.kv_heads >= shards else 1)
        found = [
            Activation("q, k, v", b * (heads + 2 * kv), PROJECTION),
            Activation("attention output", b * heads, ATTENTION),
        ]
        if sizes.scores_kept:
            # Exponentials and probabilities in float32, and a copy in the compute dtype.
            scores = sizes.sequence_length * model.heads // shards
            copies = 8 + (2 if b == 2 else 0)
            found.append(Activation("probabilities", scores * copies, None))
        return tuple(found)

    def cache(self, model: ModelConfig) -> dict[str, str]:
        return {"k": "BSKH", "v": "BSKH"}
