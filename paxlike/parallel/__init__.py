"""Dimension letters, sharding rules, the mesh, and processes."""
