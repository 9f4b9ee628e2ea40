"""Adapters: what is trained beside or instead of the parameters of a base (docs/adapting.md)."""
