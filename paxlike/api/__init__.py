"""The Python API: what `import paxlike` offers (see docs/python.md). The commands are built on
it.
"""
