"""Shared by all tests: `test/` is on the path, so that `from support import ...` works from every folder."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
