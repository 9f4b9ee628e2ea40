"""What each rematerialization policy keeps, by name. Imports no JAX.

| policy | kept per layer | |---|---| | none | everything that the backward pass reads | | attention
| the block's input, results of projections and of attention, the stream inside a block | | dots |
the block's input and the results of projections | | full, palm | the block's input |
"""

PROJECTION = "projection"
"""Outputs of the projections from the residual stream."""
ATTENTION = "attention"
"""Attention's output and, for flash kernels, the statistics of its softmax."""
STREAM = "stream"
"""The residual stream between the branches of a serial block."""
BLOCK_INPUT = "block input"
"""The residual stream that enters a block."""

KEPT = {
    "attention": (BLOCK_INPUT, PROJECTION, ATTENTION, STREAM),
    "dots": (BLOCK_INPUT, PROJECTION),
    "full": (BLOCK_INPUT,),
    "palm": (BLOCK_INPUT,),
}
"""Policy -> the names it keeps. `none` is not a row: it keeps all."""
