"""`python -m lightllm.httpserver --worker I --fd N`: started by the Supervisor, one process a worker."""

from __future__ import annotations

import argparse

from lightllm.ipc.child import Child, run_child


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m lightllm.httpserver", allow_abbrev=False)
    parser.add_argument("--worker", type=int, required=True, help="Number of this worker, from 0.")
    parser.add_argument("--fd", type=int, required=True, help="Descriptor of the listening socket.")
    args = parser.parse_args()

    def serve(child: Child) -> None:
        from lightllm.httpserver.process import run  # heavy: after the child can report errors

        run(child, args.worker, args.fd)

    run_child(f"http-{args.worker}", serve)


if __name__ == "__main__":
    main()
