"""What the backward pass computes again instead of keeping, by name.

| policy | kept per layer | computed again | extra matmul FLOPs |
|---|---|---|---|
| none | everything, each step of norms and activations too | nothing | none |
| attention | results of matmuls, of attention: PaLM 8B, 62B | norms, elementwise, attention's scores | half its forward, or none |
| dots | the projections' outputs (q, k, v, gate, up), the block's input | norms, elementwise, attention | attention's forward |
| full | the block's input | the block, less its last matmuls, whose results the gradient does not need | 2/3 of the forward |
| palm | the same: PaLM 540B's one fully sharded activation per layer | the same | the same |

No policy keeps a weight that was gathered over `data`: it is gathered again (`nn/einsum.py`). The residual stream lies fully sharded
over `data` and `model` here, so that `full` already keeps what PaLM 540B kept, and `palm` is the same program; it has a name of its own
because its FLOPs are stated by the paper's convention (arXiv 2204.02311, appendix B: 75 % of the non-attention forward). A flash kernel
(cudnn, splash) never keeps the scores; under `attention` its output and its softmax's statistics are kept, and it does not run again.
"""

from collections.abc import Callable

import jax
from jax.ad_checkpoint import checkpoint_name

PROJECTION = "projection"
"""The name given to the outputs of the projections."""
ATTENTION = "attention"
"""That of what attention's backward pass reads beside q, k and v: its output and, of splash attention, its softmax's statistics."""
STREAM = "stream"
"""That of the residual stream inside a serial block."""

_CUDNN_FORWARD = "dot_product_attention_fwd_wrapper"
"""The primitive that runs cuDNN's forward kernel; JAX gives its results no name."""


def keep(name: str, *arrays: jax.Array) -> tuple[jax.Array, ...]:
    """Marks arrays by one of the names above, for policies to choose."""
    return tuple(checkpoint_name(array, name) for array in arrays)


def of_block(policy: str, body: Callable) -> Callable:
    """The scanned block's body under the policy."""
    if policy == "none":
        return body
    saved = {"dots": (PROJECTION,), "attention": (PROJECTION, ATTENTION, STREAM)}.get(policy, ())
    named = jax.checkpoint_policies.save_only_these_names(*saved)

    def saveable(primitive, *arguments, **parameters) -> bool:
        kernel = policy == "attention" and primitive.name == _CUDNN_FORWARD
        return kernel or named(primitive, *arguments, **parameters)

    return jax.checkpoint(body, prevent_cse=False, policy=saveable)
