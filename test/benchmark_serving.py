"""The load generator by its old name: `python test/benchmark_serving.py` is `lightllm bench`."""

from __future__ import annotations

import sys

from lightllm.bench.command import main

if __name__ == "__main__":
    sys.exit(main())
