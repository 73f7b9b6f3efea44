"""`python -m lightllm` is the command `lightllm`."""

from __future__ import annotations

import sys

from lightllm.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
