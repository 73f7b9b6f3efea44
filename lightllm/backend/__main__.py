"""One Model Backend process: `python -m lightllm.backend --rank R`, started by the Supervisor."""

import argparse

from lightllm.ipc.child import Child, run_child


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m lightllm.backend")
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--show_bar", action="store_true", help="Progress on standard error.")
    options = parser.parse_args()

    def run(child: Child) -> None:
        from lightllm.backend.process import BackendProcess  # after the child can report errors

        BackendProcess(child, options.rank, options.show_bar).run()

    run_child(f"backend-{options.rank}", run)


if __name__ == "__main__":
    main()
