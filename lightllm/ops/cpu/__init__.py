"""Kernels for a CPU, in Python, compiled by Numba for the processor they run on.

`kernels/` holds their source; it is imported by the process that compiles them (`compile.py`) and nowhere else. What runs
is the machine code that is kept of them (`library.py`): a server neither imports Numba nor waits for a compiler. `calls/`
says what each is told, and a file for each operation tells it.
"""

SYMBOLS = "symbols.json"
"""Beside the object files: under which name each has its kernel."""
