"""Generating text from a trained run."""
