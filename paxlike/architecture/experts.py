"""The declaration of the mixture of experts; `models/experts.py` is its forward pass."""

from paxlike.architecture.branch import Activation, ActivationSizes, Product, WeightSpec
from paxlike.architecture.remat_policies import PROJECTION, STREAM
from paxlike.config import ExpertsConfig, ModelConfig

SELECTION_BIAS = "selection_bias_E"
EXPERTS, SHARED, ROUTER = "experts", "shared experts", "router"


def rows_of_buffer(experts: ExpertsConfig, expert_shards: int) -> int:
    """Rows that a device has room for, per token of its own part of the batch.

    No token is dropped: all k choices of every token on all expert shards may be experts of one
    shard, as far as it has as many.
    """
    return expert_shards * min(experts.top_k, experts.count // expert_shards)


class Experts:
    """Gated feed-forward networks of which each token uses `top_k` (arXiv 2401.04088, section 2.1).

    Shared experts are one feed-forward network: the sum of networks side by side is a wider one.
    """

    name = "experts"

    def weights(self, model: ModelConfig) -> tuple[WeightSpec, ...]:
        routed = [
            WeightSpec("wgate_EDM", EXPERTS, "expert"),
            WeightSpec("wup_EDM", EXPERTS, "expert"),
            WeightSpec("wdown_EMD", EXPERTS, "expert"),
            WeightSpec("wrouter_DE", ROUTER, "router"),
        ]
        bias = [WeightSpec(SELECTION_BIAS, "biases", "selection")]
        shared = [
            WeightSpec("wgate_DU", SHARED),
            WeightSpec("wup_DU", SHARED),
            WeightSpec("wdown_UD", SHARED),
        ]
        output = [WeightSpec("experts_bias_D", "biases", "bias")]
        c = model.experts
        options = (bias if c.bias_step else []) + (output if c.output_bias else [])
        return (*routed, *options, *(shared if c.shared else ()))

    def products(self, model: ModelConfig, sequence_length: int) -> tuple[Product, ...]:
        D, k, M = model.d_model, model.experts.top_k, model.experts.d_ff
        U = model.experts.shared * M
        # The product that is not the last one here; the block decides on the last.
        read = model.norm_placement != "before"
        shared = (
            Product("shared experts in", SHARED, "4LDU", 4 * D * U, PROJECTION),
            Product("shared experts out", SHARED, "2LUD", 2 * U * D, STREAM, needed=read),
        )
        N = model.experts.count
        return (
            Product("router", ROUTER, "2LD·experts", 2 * D * N, PROJECTION),
            *(shared if U else ()),
            Product("experts in", EXPERTS, "4LkDM", 4 * k * D * M, PROJECTION),
            Product("experts out", EXPERTS, "2LkMD", 2 * k * M * D, STREAM, needed=False),
        )

    def activations(self, model: ModelConfig, sizes: ActivationSizes) -> tuple[Activation, ...]:
        b, c = sizes.bytes, model.experts
        rows = rows_of_buffer(c, sizes.expert_shards)
        columns = (rows + c.shared) * c.d_ff // sizes.model_shards
        # Of the tokens of all expert shards.
        gathered = sizes.expert_shards if sizes.expert_shards > 1 else 0
        return (
            # Logits, scores and their gradient, in float32.
            Activation("router", 4 * 3 * c.count, PROJECTION),
            Activation("rows of the experts", b * (rows + gathered) * model.d_model, None),
            Activation("experts in", b * 2 * columns, PROJECTION),
            Activation("activation", (b if sizes.fused else 4 * b) * columns, None),
        )

    def cache(self, model: ModelConfig) -> dict[str, str]:
        return {}
