"""`python -m lightllm.health`: started by the Supervisor."""

from lightllm.ipc.child import Child, run_child


def run(child: Child) -> None:
    from lightllm.health.process import main  # after the child can be told to stop, and report errors

    main(child)


if __name__ == "__main__":
    run_child("health", run)
