"""Layers: weight declarations, sharded einsums, norms, rotary embeddings, attention,
rematerialization.
"""
