"""One Model Backend process: `python -m lightllm.backend --rank R`, started by the Supervisor."""

import argparse

from lightllm.backend.process import run_backend
from lightllm.ipc.child import run_child

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m lightllm.backend")
    parser.add_argument("--rank", type=int, default=0)
    rank = parser.parse_args().rank
    run_child(f"backend-{rank}", lambda child: run_backend(child, rank))
