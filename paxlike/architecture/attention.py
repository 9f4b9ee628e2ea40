"""The declaration of softmax attention with RoPE; `models/attention.py` is its forward pass."""

import dataclasses

from paxlike.architecture.branch import Activation, ActivationSizes, Product, WeightSpec
from paxlike.architecture.remat_policies import ATTENTION, PROJECTION, STREAM
from paxlike.config import ModelConfig

LINEAR, SCORES = "attention projections", "attention products"


@dataclasses.dataclass(frozen=True)
class Attention:
    """Multi-query, grouped-query or multi-head attention (PaLM, arXiv 2204.02311, section 2)."""

    local: bool = False
    """Whether it sees `model.sliding_window` tokens only."""

    @property
    def name(self) -> str:
        return "local_attention" if self.local else "attention"

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
        heads = ("", "") if model.qk_norm == "head" else ("N", "K")
        norms = [
            WeightSpec(f"q_scale_{heads[0]}H", "norms", "scale"),
            WeightSpec(f"k_scale_{heads[1]}H", "norms", "scale"),
        ]
        return (*kernels, *biases, *(norms if model.qk_norm != "none" else ()))

    def products(self, model: ModelConfig, sequence_length: int) -> tuple[Product, ...]:
        D, T = model.d_model, sequence_length
        heads, kv = model.heads * model.head_dim, model.kv_heads * model.head_dim
        scores = self._product(model, T, "scores", None)
        values = self._product(model, T, "values", ATTENTION)
        return (
            Product("attention q", LINEAR, "2LD·HQ", 2 * D * heads, PROJECTION),
            Product("attention k", LINEAR, "2LD·KQ", 2 * D * kv, PROJECTION),
            Product("attention v", LINEAR, "2LD·KQ", 2 * D * kv, PROJECTION),
            scores,
            values,
            Product("attention o", LINEAR, "2L·HQ·D", 2 * heads * D, STREAM, needed=False),
        )

    def _product(self, model: ModelConfig, T: int, what: str, kept_as: str | None) -> Product:
        """Of queries and keys, or of probabilities and values."""
        window = model.sliding_window if self.local else 0
        name = f"{'local ' * self.local}attention {what}"
        formula = "2LHQW" if self.local else "2LHQT"
        product = Product(name, SCORES, formula, 0, kept_as, is_attention=True, window=window)
        return product._replace(flops=2 * model.heads * model.head_dim * product.keys(T))

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
        letters = "BWKH" if self.local else "BSKH"
        return {"k": letters, "v": letters}
