"""The Router process: `python -m lightllm.router`, started by the Supervisor."""

from lightllm.ipc.child import run_child
from lightllm.router.process import run_router

if __name__ == "__main__":
    run_child("router", run_router)
