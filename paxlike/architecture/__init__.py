"""What a decoder is made of, as data: branches, blocks, the stack, and their weights. Imports no
JAX.

Parameter counts, FLOPs, memory, sharding tables and the layouts of other libraries are derived from
these declarations. `models/` has the forward passes, one file for each branch.
"""
