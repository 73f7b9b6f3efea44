"""`python -m lightllm.simulate`: the command line of the simulator."""

from __future__ import annotations

import sys

from lightllm.simulate.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
