"""Weights of one or two bits (BitNet, arXiv 2310.11453): `bitnet` the arithmetic, `tiles` its groups, `packing` bits in bytes."""
