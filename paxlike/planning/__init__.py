"""Ahead-of-time compilation: plans for clusters that need not be present."""
