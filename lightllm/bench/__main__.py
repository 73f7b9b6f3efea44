"""`python -m lightllm.bench` is `lightllm bench`."""

from __future__ import annotations

import sys

from lightllm.bench.command import main

if __name__ == "__main__":
    sys.exit(main())
