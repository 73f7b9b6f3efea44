"""Shared by all tests: `test/` is on the path, so that `from support import ...` works from every folder.

Triton asks once, when it is imported, whether kernels are to be interpreted, and torch's libraries ask which instructions
they may use (`LIGHTLLM_CPU_KIND`); so that is said here, before any test.
"""

import os
import sys
from pathlib import Path

import hypothesis
import pytest

from lightllm.ops.cpu_kind import library_variables

os.environ.update(library_variables())
# Each worker of the test run has one core; OpenMP's threads would spin on each other's.
os.environ.setdefault("OMP_NUM_THREADS", "1")
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# A busy machine makes an example slow, and a slow example is no fault.
hypothesis.settings.register_profile("lightllm", deadline=None)
hypothesis.settings.load_profile("lightllm")

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def tmp_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As pytest's own, with a short name: Unix sockets below it may have 107 characters, and workers add some."""
    return tmp_path_factory.mktemp("t")
