"""`python -m lightllm.chat` is `lightllm chat`."""

from __future__ import annotations

import sys

from lightllm.chat.command import main

if __name__ == "__main__":
    sys.exit(main())
