"""`python -m lightllm.simulate`: the command line of the simulator; `... fleet`: of many servers."""

from __future__ import annotations

import sys

from lightllm.simulate.cli import main
from lightllm.simulate.fleet_cli import main as fleet

if __name__ == "__main__":
    sys.exit(fleet(sys.argv[2:]) if sys.argv[1:2] == ["fleet"] else main(sys.argv[1:]))
