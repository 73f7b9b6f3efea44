"""Compiles the CPU kernels into a folder: `python -m lightllm.ops.cpu.compile FOLDER`, started by `library.py`.

Numba makes code for the processor it runs on, or for the one that NUMBA_CPU_NAME names.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from lightllm.ipc.child import die_with_parent
from lightllm.ops.cpu.kernels import decode_attention
from lightllm.ops.cpu.library import SYMBOLS


def main(folder: Path) -> None:
    symbols = {}
    for name, kernel in decode_attention.kernels().items():
        library = kernel._library
        # Numba itself keeps object code only if it was told to before it linked.
        (folder / f"{name}.o").write_bytes(library._codegen._tm.emit_object(library._final_module))
        symbols[name] = kernel.native_name
    (folder / SYMBOLS).write_text(json.dumps(symbols))


if __name__ == "__main__":
    die_with_parent()
    main(Path(sys.argv[1]))
