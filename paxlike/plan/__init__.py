"""Machines that are not here: their devices, for meshes and ahead-of-time compilation."""
