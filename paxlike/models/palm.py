"""The PaLM decoder (arXiv 2204.02311, section 2) and its neighbors, by one word each in the config.

A block is a sum of branches over a norm: attention and a feed-forward. Parallel: both read one norm and their sum is one sharded
matmul back to the stream. Serial: attention first, then the feed-forward over a norm of its own. With quantized weights
(`model.quant`) the norm is part of every projection, and the block has none of its own.

Letters: B batch, T query time, S key time, D width, F feed-forward, N query heads, K key/value heads, H head dim,
V vocabulary rows, L layers.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from paxlike.config import ModelConfig
from paxlike.nn import bitlinear, remat
from paxlike.nn.attention import attention
from paxlike.nn.einsum import combine, project
from paxlike.nn.embedding import lookup
from paxlike.nn.norm import norm
from paxlike.nn.rotary import rotate
from paxlike.nn.weight import Numerics, embedding, scale, weight

Array = jax.Array

ACTIVATIONS = {
    "gelu": jax.nn.gelu,
    "relu": jax.nn.relu,
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),
}


class Block(nnx.Module):
    """One layer. `__call__` runs a whole sequence; `infer/` runs the same parts with a cache."""

    def __init__(self, config: ModelConfig, numerics: Numerics, rngs: nnx.Rngs):
        self.config, self.numerics = config, numerics
        make = functools.partial(weight, config=config, rngs=rngs, dtype=numerics.params, quant=config.quant)
        if not config.quant.active:
            self.scale_D = scale("D", config, numerics.params)
        self.wq_DNH = make("DNH")
        self.wk_DKH = make("DKH")
        self.wv_DKH = make("DKH")
        self.wo_NHD = make("NHD")
        if config.gated:
            self.wgate_DF = make("DF")
        self.wup_DF = make("DF")
        self.wdown_FD = make("FD")
        if config.block == "serial" and not config.quant.active:
            self.feed_forward_scale_D = scale("D", config, numerics.params)

    def __call__(self, x_BTD: Array, positions_BT: Array, mix) -> tuple[Array, object]:
        """x_BTD after this layer, and what `mix` returns beside its output.

        `mix(q_BTNH, k_BTKH, v_BTKH) -> (o_BTNH, extra)` is the attention: of a whole sequence in training, over a cache in
        generation.
        """
        c = self.config
        project_, combine_ = self._matmuls()
        y_BTD = self._norm(x_BTD, "scale_D")
        if c.block == "parallel":
            q_BTNH, k_BTKH, v_BTKH, *wide = project_(y_BTD, *self._mixer_in(), *self._feed_forward_in())
        else:
            q_BTNH, k_BTKH, v_BTKH = project_(y_BTD, *self._mixer_in())
        q_BTNH, k_BTKH, v_BTKH = remat.keep(remat.PROJECTION, q_BTNH, k_BTKH, v_BTKH)
        q_BTNH = rotate(q_BTNH, positions_BT, c.rope_theta)
        k_BTKH = rotate(k_BTKH, positions_BT, c.rope_theta)
        o_BTNH, extra = mix(q_BTNH, k_BTKH, v_BTKH)
        if c.block == "parallel":
            h_BTF = self._activate(*wide)
            y_BTD = combine_("BTNH,NHD->BTD", o_BTNH, self.wo_NHD[...], "BTF,FD->BTD", h_BTF, self.wdown_FD[...])
            return x_BTD + y_BTD, extra
        (x_BTD,) = remat.keep(remat.STREAM, x_BTD + combine_("BTNH,NHD->BTD", o_BTNH, self.wo_NHD[...]))
        y_BTD = self._norm(x_BTD, "feed_forward_scale_D")
        h_BTF = self._activate(*project_(y_BTD, *self._feed_forward_in()))
        return x_BTD + combine_("BTF,FD->BTD", h_BTF, self.wdown_FD[...]), extra

    def _matmuls(self):
        """`project` and `combine`, of the weights as they are or quantized."""
        c, n = self.config, self.numerics
        if c.quant.active:
            how = bitlinear.How(c.quant, c.norm_epsilon, n.integer, n.gradients)
            return functools.partial(bitlinear.project, how=how), functools.partial(bitlinear.combine, how=how)
        return functools.partial(project, gradients=n.gradients), functools.partial(combine, gradients=n.gradients)

    def _norm(self, x_BTD: Array, name: str) -> Array:
        c = self.config
        return x_BTD if c.quant.active else norm(x_BTD, getattr(self, name)[...], c.norm, c.norm_epsilon)

    def _mixer_in(self):
        kv = "BTD,DKH->BTKH"
        return "BTD,DNH->BTNH", self.wq_DNH[...], kv, self.wk_DKH[...], kv, self.wv_DKH[...]

    def _feed_forward_in(self):
        gate = ("BTD,DF->BTF", self.wgate_DF[...]) if self.config.gated else ()
        return *gate, "BTD,DF->BTF", self.wup_DF[...]

    def _activate(self, *wide: Array) -> Array:
        wide = remat.keep(remat.PROJECTION, *wide)
        if self.config.gated:
            gate_BTF, up_BTF = wide
            return jax.nn.silu(gate_BTF) * up_BTF
        return ACTIVATIONS[self.config.feed_forward](wide[0])


class Decoder(nnx.Module):
    def __init__(self, config: ModelConfig, numerics: Numerics, rngs: nnx.Rngs):
        self.config, self.numerics = config, numerics
        self.embedding_VD = embedding("VD", config, rngs, numerics.params)
        keys = jax.random.split(rngs.params(), config.layers)
        self.blocks = jax.vmap(lambda key: Block(config, numerics, nnx.Rngs(key)))(keys)
        self.scale_D = scale("D", config, numerics.params)
        if config.head == "untied":
            self.head_DV = weight("DV", config, rngs, numerics.params)

    def __call__(self, tokens_BT: Array, segments_BT: Array | None = None) -> Array:
        """The normed last hidden states x_BTD in the compute dtype; `train/loss.py` makes losses of them, `infer/` logits."""
        c, n = self.config, self.numerics
        positions_BT = jnp.arange(tokens_BT.shape[1], dtype=jnp.int32)[None]

        def body(x_BTD, block):
            return block(x_BTD, positions_BT, lambda q, k, v: (attention(q, k, v, segments_BT, n.attention), None))

        x_BTD = self.embed(tokens_BT)
        x_BTD, _ = jax.lax.scan(remat.of_block(c.remat, body), x_BTD, self.blocks)
        return self.finish(x_BTD)

    def embed(self, tokens_BT: Array) -> Array:
        n = self.numerics
        return lookup(self.embedding_VD[...], tokens_BT, compute=n.compute, gradients=n.gradients)

    def finish(self, x_BTD: Array) -> Array:
        return norm(x_BTD, self.scale_D[...], self.config.norm, self.config.norm_epsilon)

    def head(self) -> tuple[str, Array, float]:
        """(letters, weight, scale) of the logits: the embedding and 1/sqrt(D) where tied (PaLM, section 5)."""
        if self.config.head == "tied":
            return "VD", self.embedding_VD[...], self.config.d_model**-0.5
        return "DV", self.head_DV[...], 1.0


def init_params(config: ModelConfig, numerics: Numerics, seed: int) -> dict:
    """Initial parameters as a nested dict of arrays, in the layout of checkpoints (`blocks/wq_DNH` is [L, D, N, H]).

    Call it inside `jax.jit` with a mesh in force: every array is then born sharded.
    """
    return nnx.to_pure_dict(nnx.state(Decoder(config, numerics, nnx.Rngs(seed))))


def bind(config: ModelConfig, numerics: Numerics, params: dict) -> Decoder:
    """The decoder with these parameters, in the layout of `init_params`."""
    return nnx.merge(_graph(config, numerics), params)


@functools.lru_cache(maxsize=8)
def _graph(config: ModelConfig, numerics: Numerics) -> nnx.GraphDef:
    """The module's structure. It holds no arrays and no shardings, so that one serves every mesh."""
    return nnx.graphdef(jax.eval_shape(lambda: Decoder(config, numerics, nnx.Rngs(0))))
