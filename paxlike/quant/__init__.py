"""Weights of one or two bits (BitNet, arXiv 2310.11453): arithmetic, tiles, packing."""
