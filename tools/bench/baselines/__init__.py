"""The reference workload (`tools/bench/reference.py`) in other libraries.

One program each, started by `tools/bench/cpu.py`.
"""
