"""Rematerialization policies: what the backward pass recomputes instead of saving.

| policy | saved per layer | recomputed | extra matmul FLOPs |
|---|---|---|---|
| none | everything, including intermediates of norms and activations | nothing | none |
| attention | outputs of matmuls and attention (PaLM 8B, 62B) | norms, elementwise, scores | (1) |
| dots | outputs of q, k, v, gate, up; the block's input | norms, elementwise, attention | (2) |
| full | the block's input | the block, except its last matmuls | 2/3 of the forward pass |
| palm | same as full | same as full | same as full |

(1) Half of attention's forward pass, or none with a flash kernel. (2) Attention's forward pass.

No policy saves a weight gathered over `data` (`nn/einsum.py`) or the residual stream gathered over
`model`; both are gathered again. The saved stream is sharded over `data` and `model`, so `full`
already saves what PaLM 540B saved. `palm` is the same program under its own name, because its FLOPs
are reported by the paper's convention (arXiv 2204.02311, appendix B: 75% of the non-attention
forward pass). A flash kernel (cudnn, splash) never saves the scores. Under `attention` its output
and its softmax statistics are saved, and it does not run again.
"""

from collections.abc import Callable

import jax
from jax.ad_checkpoint import checkpoint_name

from paxlike.architecture.remat_policies import ATTENTION, KEPT, PROJECTION, STREAM
from paxlike.parallel import rules
from paxlike.parallel.mesh import axis_sizes

__all__ = ["ATTENTION", "PROJECTION", "STREAM", "keep", "of_block"]

_CUDNN_FORWARD = "dot_product_attention_fwd_wrapper"
"""The primitive of cuDNN's forward kernel, matched because its results have no name."""


def keep(name: str, *arrays: jax.Array) -> tuple[jax.Array, ...]:
    """Tags arrays with one of the names above, by which policies select what to save."""
    return tuple(checkpoint_name(array, name) for array in arrays)


def of_block(policy: str, body: Callable, ring: bool) -> Callable:
    """Applies the policy to the body of the scanned block. ring: see `Numerics`."""
    if policy == "none":
        # With one shard of the model there is no gathered stream to exclude.
        saves_all = rules.size_of(("expert", "model"), axis_sizes()) == 1
        gathered = ("all_gather", *(("ppermute", "concatenate") if ring else ()))

        def not_gathered(primitive, *_, **__) -> bool:
            return primitive.name not in gathered

        return body if saves_all else jax.checkpoint(body, prevent_cse=False, policy=not_gathered)
    named = jax.checkpoint_policies.save_only_these_names(*KEPT[policy])

    def saveable(primitive, *arguments, **parameters) -> bool:
        kernel = policy == "attention" and primitive.name == _CUDNN_FORWARD
        return kernel or named(primitive, *arguments, **parameters)

    return jax.checkpoint(body, prevent_cse=False, policy=saveable)
