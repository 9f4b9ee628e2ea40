"""What the backward pass computes again instead of keeping, by name.

| policy | kept per layer | computed again | extra matmul FLOPs |
|---|---|---|---|
| none | everything | nothing | none |
| dots | the projections' outputs (q, k, v, gate, up), the block's input | norms, elementwise, attention | attention's forward |
| attention | everything but the inside of attention: PaLM 8B and 62B | attention's scores and probabilities | half its forward |
| full | the block's input | the block, less its last matmuls, whose results the gradient does not need | 2/3 of the forward |
| palm | the same: PaLM 540B's one fully sharded activation per layer | the same | the same |

No policy keeps a weight that was gathered over `data`: it is gathered again (`nn/einsum.py`). The residual stream lies fully sharded
over `data` and `model` here, so that `full` already keeps what PaLM 540B kept, and `palm` is the same program; it has a name of its own
because its FLOPs are stated by the paper's convention (arXiv 2204.02311, appendix B: 75 % of the non-attention forward). A flash kernel
(cudnn, splash) never keeps the scores: `attention` runs its whole forward again, for nothing but the memory of its statistics.
"""

from collections.abc import Callable

import jax
from jax.ad_checkpoint import checkpoint_name

PROJECTION = "projection"
"""The name given to the outputs of the projections (`keep`)."""


def keep(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    """Marks arrays that the policy `dots` keeps."""
    return tuple(checkpoint_name(array, PROJECTION) for array in arrays)


def of_block(policy: str, body: Callable) -> Callable:
    """The scanned block's body under the policy."""
    if policy in ("full", "palm"):
        return jax.checkpoint(body, prevent_cse=False)
    if policy == "dots":
        return jax.checkpoint(body, prevent_cse=False, policy=jax.checkpoint_policies.save_only_these_names(PROJECTION))
    return body


def of_attention(policy: str, attention: Callable) -> Callable:
    """The attention inside a block under the policy."""
    return jax.checkpoint(attention, prevent_cse=False) if policy == "attention" else attention
