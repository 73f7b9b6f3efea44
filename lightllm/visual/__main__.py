"""`python -m lightllm.visual --rank R`: started by the Supervisor."""

import argparse

from lightllm.ipc.child import Child, run_child


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m lightllm.visual")
    parser.add_argument("--rank", type=int, default=0)
    rank = parser.parse_args().rank

    def run(child: Child) -> None:
        from lightllm.visual.process import run_visual  # after the child can report errors
        from lightllm.visual.vision_encoder import VisionEncoder

        run_visual(child, rank, VisionEncoder)

    run_child(f"visual-{rank}", run)


if __name__ == "__main__":
    main()
