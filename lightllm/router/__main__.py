"""The Router process: `python -m lightllm.router`, started by the Supervisor."""

from lightllm.ipc.child import Child, run_child


def run(child: Child) -> None:
    from lightllm.router.process import run_router  # after the child can be told to stop, and report errors

    run_router(child)


if __name__ == "__main__":
    run_child("router", run)
