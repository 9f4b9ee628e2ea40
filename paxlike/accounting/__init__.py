"""Parameters, FLOPs, memory, utilization, goodput and energy of models and programs.

Imports no JAX.
"""
