"""The reference work (`tools/bench/reference.py`) as others would write it: one program each, started by `tools/bench/cpu.py`."""
