"""Models built from the layers of `nn`."""
