"""Arithmetic about models, machines and programs: parameters, FLOPs, memory, utilization, energy. Imports no JAX."""
