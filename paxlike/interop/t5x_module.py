"""The decoder as a Linen module for T5X's `DecoderOnlyModel`: same parameters, same logits.

See `t5x_layout.py` for the parameters. T5X requires of a module (t5x/models.py, DecoderOnlyModel):
the signature of `Wrapped.__call__`; a collection `params_axes` in addition to the parameters, as
`flax.linen.partitioning.param_with_axes` creates it; and for generation a collection `cache`, whose
arrays have the batch first. A call with `decode=True` creates the cache, a call with `prefill=True`
fills it, and calls of one token with `decode=True` use it.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.partitioning import param_with_axes

from paxlike.config import Config, ModelConfig
from paxlike.interop.t5x_layout import Leaf, leaves
from paxlike.models.feed_forward import ACTIVATIONS
from paxlike.nn.attention import attend
from paxlike.nn.norm import norm
from paxlike.nn.numerics import Numerics
from paxlike.nn.rotary import rotate

Array = jax.Array


def decoder_module(config: Config) -> nn.Module:
    """Returns the module. Its parameters are `t5x_layout.leaves` in float32; it computes in
    `precision.compute`.

    Raises UserError for a model that T5X cannot compute.
    """
    table = {leaf.path: leaf for leaf in leaves(config.model)}
    compute = Numerics.of(config.model, config.precision, jax.default_backend()).compute
    return Wrapped(config.model, compute, table)


class _Parameter(nn.Module):
    """One parameter with its logical axes."""

    leaf: Leaf
    deviation: float
    """Standard deviation of the initial values. 0 initializes with ones."""

    @nn.compact
    def __call__(self) -> Array:
        init = (
            nn.initializers.normal(self.deviation)
            if self.deviation
            else nn.initializers.ones_init()
        )
        return param_with_axes(
            self.leaf.path[-1], init, self.leaf.shape, jnp.float32, axes=self.leaf.axes
        )


class _Attention(nn.Module):
    model: ModelConfig
    table: dict[str, Leaf]

    @nn.compact
    def __call__(
        self, y_BTD: Array, positions_BT: Array, mask_BTS: Array, mode: str, lengths_B: Array | None
    ) -> Array:
        c = self.model
        q_BTNH, k_BTKH, v_BTKH = (
            self._heads(y_BTD, name, n)
            for name, n in (("query", c.heads), ("key", c.kv_heads), ("value", c.kv_heads))
        )
        has_cache = self.has_variable("cache", "cached_key")
        if mode != "train":
            B, T, K, H = k_BTKH.shape
            k_BKHS, v_BKHS = (
                self.variable("cache", f"cached_{name}", jnp.zeros, (B, K, H, T), y_BTD.dtype)
                for name in ("key", "value")
            )
            index = self.variable("cache", "cache_index", jnp.zeros, (), jnp.int32)
        if mode == "decode" and has_cache:
            positions_BT = jnp.broadcast_to(index.value, (y_BTD.shape[0],))[:, None]
        how = positions_BT, c.rope_theta, c.rope_scaling, c.rope_fraction
        q_BTNH, k_BTKH = rotate(q_BTNH, *how), rotate(k_BTKH, *how)
        if mode == "prefill":
            assert lengths_B is not None
            k_BKHS.value, v_BKHS.value = jnp.moveaxis(k_BTKH, 1, -1), jnp.moveaxis(v_BTKH, 1, -1)
            index.value = lengths_B
        if mode == "decode" and has_cache:
            offsets_BS = jnp.arange(k_BKHS.value.shape[-1])[None] - positions_BT
            for cached, new_BTKH in ((k_BKHS, k_BTKH), (v_BKHS, v_BTKH)):
                new_BKHS = jnp.moveaxis(new_BTKH, 1, -1)
                cached.value = jnp.where(
                    (offsets_BS == 0)[:, None, None, :], new_BKHS, cached.value
                )
            k_BTKH, v_BTKH = jnp.moveaxis(k_BKHS.value, -1, 1), jnp.moveaxis(v_BKHS.value, -1, 1)
            mask_BTS = (offsets_BS <= 0)[:, None]
            index.value = index.value + 1
        o_BTNH = attend(q_BTNH, k_BTKH, v_BTKH, mask_BTS)
        return o_BTNH.reshape(*o_BTNH.shape[:2], -1) @ self._weight("out").astype(y_BTD.dtype)

    def _heads(self, y_BTD: Array, name: str, heads: int) -> Array:
        x = y_BTD @ self._weight(name).astype(y_BTD.dtype)
        return x.reshape(*x.shape[:2], heads, self.model.head_dim)

    def _weight(self, name: str) -> Array:
        leaf = self.table[name]
        return _Parameter(leaf, leaf.shape[0] ** -0.5, name=name)()


class _FeedForward(nn.Module):
    model: ModelConfig
    table: dict[str, Leaf]

    @nn.compact
    def __call__(self, y_BTD: Array) -> Array:
        w = {
            name: _Parameter(leaf, leaf.shape[0] ** -0.5, name=name)().astype(y_BTD.dtype)
            for name, leaf in self.table.items()
        }
        if self.model.gated:
            h_BTF = jax.nn.silu(y_BTD @ w["wi_0"]) * (y_BTD @ w["wi_1"])
        else:
            h_BTF = ACTIVATIONS[self.model.feed_forward](y_BTD @ w["wi"])
        return h_BTF @ w["wo"]


class _Layer(nn.Module):
    model: ModelConfig
    table: dict[tuple[str, ...], Leaf]

    @nn.compact
    def __call__(self, x_BTD: Array, *context) -> Array:
        attention = _Attention(
            self.model, _below(self.table, "self_attention"), name="self_attention"
        )
        feed_forward = _FeedForward(self.model, _below(self.table, "mlp"), name="mlp")
        y_BTD = self._norm(x_BTD, "pre_self_attention_layer_norm")
        if self.model.block == "parallel":
            return x_BTD + attention(y_BTD, *context) + feed_forward(y_BTD)
        x_BTD = x_BTD + attention(y_BTD, *context)
        return x_BTD + feed_forward(self._norm(x_BTD, "pre_mlp_layer_norm"))

    def _norm(self, x_BTD: Array, name: str) -> Array:
        scale_D = _Parameter(self.table[name, "scale"], 0.0, name=name)()
        return norm(x_BTD, scale_D, self.model.norm, self.model.norm_epsilon, axes=())


def _below(table: dict[tuple[str, ...], Leaf], name: str) -> dict[str, Leaf]:
    """Selects the leaves below `name`: `name/query/kernel` becomes `query`."""
    return {path[1]: leaf for path, leaf in table.items() if path[0] == name}


class _Decoder(nn.Module):
    model: ModelConfig
    compute: str
    table: dict[tuple[str, ...], Leaf]

    @nn.compact
    def __call__(
        self,
        tokens_BT: Array,
        mask_BTS: Array,
        positions_BT: Array,
        mode: str,
        lengths_B: Array | None,
    ) -> Array:
        c = self.model
        embedding_VD = _Parameter(
            self.table["decoder", "token_embedder", "embedding"], 1.0, name="token_embedder"
        )()
        x_BTD = embedding_VD.astype(self.compute)[tokens_BT]
        for layer in range(c.layers):
            name = f"layers_{layer}"
            table = {path[2:]: leaf for path, leaf in self.table.items() if path[1] == name}
            x_BTD = _Layer(c, table, name=name)(x_BTD, positions_BT, mask_BTS, mode, lengths_B)
        scale_D = _Parameter(
            self.table["decoder", "decoder_norm", "scale"], 0.0, name="decoder_norm"
        )()
        x_BTD = norm(x_BTD, scale_D, c.norm, c.norm_epsilon, axes=())
        if c.head == "tied":
            head_DV, scale = embedding_VD.T, c.d_model**-0.5
        else:
            head_DV = _Parameter(
                self.table["decoder", "logits_dense", "kernel"],
                c.d_model**-0.5,
                name="logits_dense",
            )()
            scale = 1.0
        logits_BTV = (
            jnp.matmul(x_BTD, head_DV.astype(self.compute), preferred_element_type=jnp.float32)
            * scale
        )
        return logits_BTV[..., : c.vocab_size]


class Wrapped(nn.Module):
    """The decoder under the name `decoder`, as T5X requires. Returns float32 [B, T, vocab_size]."""

    model: ModelConfig
    compute: str
    table: dict[tuple[str, ...], Leaf]

    def setup(self):
        self.decoder = _Decoder(self.model, self.compute, dict(self.table))

    def __call__(
        self,
        decoder_input_tokens: Array,
        decoder_target_tokens: Array,
        decoder_segment_ids: Array | None = None,
        decoder_positions: Array | None = None,
        decoder_causal_attention: Array | None = None,
        *,
        enable_dropout: bool = True,
        decode: bool = False,
        max_decode_length: int | None = None,
        prefill: bool = False,
        prefill_lengths: Array | None = None,
    ) -> Array:
        """Computes logits. All token arrays are int [B, T].

        decoder_causal_attention: 1 for tokens that attend to each other in both directions (prefix
        LM). Ignored: targets (padding is at the end, where causal attention never reaches), dropout
        (PaLM has none), and `max_decode_length` (the cache has the length of the call that created
        it).
        """
        del decoder_target_tokens, enable_dropout, max_decode_length
        tokens_BT = decoder_input_tokens.astype(jnp.int32)
        T = tokens_BT.shape[1]
        positions_BT = (
            jnp.arange(T, dtype=jnp.int32)[None] if decoder_positions is None else decoder_positions
        )
        mask_BTS = jnp.tril(jnp.ones((1, T, T), bool))
        if decoder_causal_attention is not None:
            prefix_BT = decoder_causal_attention.astype(bool)
            mask_BTS = mask_BTS | (prefix_BT[:, :, None] & prefix_BT[:, None, :])
        if decoder_segment_ids is not None:
            mask_BTS = mask_BTS & (
                decoder_segment_ids[:, :, None] == decoder_segment_ids[:, None, :]
            )
        mode = "decode" if decode else "prefill" if prefill else "train"
        return self.decoder(tokens_BT, mask_BTS, positions_BT, mode, prefill_lengths)
