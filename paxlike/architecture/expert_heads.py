"""The declaration of the mixture of attention heads; `models/expert_heads.py` runs it."""

from paxlike.architecture.attention import LINEAR, SCORES
from paxlike.architecture.branch import Activation, ActivationSizes, Product, WeightSpec
from paxlike.architecture.experts import ROUTER, rows_of_buffer
from paxlike.architecture.remat_policies import ATTENTION, PROJECTION, STREAM
from paxlike.config import ModelConfig


class ExpertHeads:
    """Attention whose query and output projections are experts (JetMoE, arXiv 2404.07413, section
    2.2).

    An expert has `model.heads` query heads. Keys and values are shared, so the generation cache is
    that of one expert. A token's k experts attend side by side with k times the heads.
    """

    name = "expert_heads"

    def weights(self, model: ModelConfig) -> tuple[WeightSpec, ...]:
        bias = WeightSpec("expert_heads_bias_D", "biases", "bias")
        return (
            WeightSpec("wq_EDNH", "attention q", "expert"),
            WeightSpec("wk_DKH", "attention k"),
            WeightSpec("wv_DKH", "attention v"),
            WeightSpec("wo_ENHD", "attention o", "expert"),
            WeightSpec("wheads_router_DE", ROUTER, "router"),
            *((bias,) if model.experts.output_bias else ()),
        )

    def products(self, model: ModelConfig, sequence_length: int) -> tuple[Product, ...]:
        D, T, k = model.d_model, sequence_length, model.experts.top_k
        heads, kv = k * model.heads * model.head_dim, model.kv_heads * model.head_dim
        scores = Product("attention scores", SCORES, "2LkHQT", 2 * heads * T, None)
        values = Product("attention values", SCORES, "2LkHQT", 2 * heads * T, ATTENTION)
        return (
            Product("heads router", ROUTER, "2LD·experts", 2 * D * model.experts.count, PROJECTION),
            Product("attention q", LINEAR, "2LkD·HQ", 2 * D * heads, PROJECTION),
            Product("attention k", LINEAR, "2LD·KQ", 2 * D * kv, PROJECTION),
            Product("attention v", LINEAR, "2LD·KQ", 2 * D * kv, PROJECTION),
            scores._replace(is_attention=True),
            values._replace(is_attention=True),
            Product("attention o", LINEAR, "2Lk·HQ·D", 2 * heads * D, STREAM, needed=False),
        )

    def activations(self, model: ModelConfig, sizes: ActivationSizes) -> tuple[Activation, ...]:
        shards, b, k = sizes.model_shards, sizes.bytes, model.experts.top_k
        rows = rows_of_buffer(model.experts, sizes.expert_shards)
        one = model.heads * model.head_dim // shards
        heads = k * one
        # Of the tokens, and of the attention output of the choices, of all expert shards.
        gathered = sizes.expert_shards if sizes.expert_shards > 1 else 0
        kv = model.kv_heads * model.head_dim // (shards if model.kv_heads >= shards else 1)
        found = [
            Activation("heads router", 4 * 3 * model.experts.count, PROJECTION),
            Activation("rows of the experts of heads", b * (rows + gathered) * model.d_model, None),
            Activation("q, k, v", b * (heads + 2 * kv), PROJECTION),
            Activation("attention output", b * heads, ATTENTION),
            # Also without the router's weights, whose gradient reads them.
            Activation(
                "rows of the attention output",
                b * ((1 if sizes.fused else 2) * rows + gathered * k) * one,
                None,
            ),
        ]
        if sizes.scores_kept:
            scores = sizes.sequence_length * k * model.heads // shards
            found.append(Activation("probabilities", scores * (8 + (2 if b == 2 else 0)), None))
        return tuple(found)

    def cache(self, model: ModelConfig) -> dict[str, str]:
        return {"k": "BSKH", "v": "BSKH"}
