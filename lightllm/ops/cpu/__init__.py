"""Kernels for a CPU, in Python, compiled by Numba for the processor they run on.

`kernels/` holds their source; it is imported by the process that compiles them (`compile.py`) and nowhere else. What runs
is the machine code that is kept of them (`library.py`): a server neither imports Numba nor waits for a compiler.
"""
