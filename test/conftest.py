"""Shared by all tests: `test/` is on the path, so that `from support import ...` works from every folder.

Triton asks once, when it is imported, whether kernels are to be interpreted; so that is said here, before any test.
"""

import os
import sys
from pathlib import Path

if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

sys.path.insert(0, str(Path(__file__).parent))
