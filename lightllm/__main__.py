"""`python -m lightllm` is `python -m lightllm.server.api_server`."""

from __future__ import annotations

import sys

from lightllm.server.api_server import main

if __name__ == "__main__":
    sys.exit(main())
