"""`python -m lightllm.router.simulate`: the command line of the simulator."""

from __future__ import annotations

import sys

from lightllm.router.simulate.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
