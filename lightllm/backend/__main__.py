"""One Model Backend process: `python -m lightllm.backend --rank R`, started by the Supervisor."""

import argparse

from lightllm.ipc.child import Child, run_child


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m lightllm.backend")
    parser.add_argument("--rank", type=int, default=0)
    rank = parser.parse_args().rank

    def run(child: Child) -> None:
        from lightllm.backend.process import BackendProcess  # after the child can report errors

        BackendProcess(child, rank).run()

    run_child(f"backend-{rank}", run)


if __name__ == "__main__":
    main()
