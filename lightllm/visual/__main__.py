"""`python -m lightllm.visual --rank R`: started by the Supervisor; with --tp_rank by a Visual Server, as a part of it."""

import argparse

from lightllm.ipc.child import Child, run_child


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m lightllm.visual")
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--tp_rank", type=int, default=0)
    parser.add_argument("--meeting", default="")
    options = parser.parse_args()
    rank = options.rank

    def run(child: Child) -> None:
        from lightllm.visual.encoder_rank import give_way  # after the child can report errors
        from lightllm.visual.process import run_visual
        from lightllm.visual.vision_encoder import make_encoder

        give_way(child.config)
        run_visual(child, rank, make_encoder)

    def run_part(child: Child) -> None:
        from lightllm.visual.encoder_rank import give_way
        from lightllm.visual.other_ranks import run_other_rank

        give_way(child.config)
        run_other_rank(child, rank, options.tp_rank, options.meeting)

    if options.tp_rank:
        run_child(f"visual-{rank}-{options.tp_rank}", run_part)
    else:
        run_child(f"visual-{rank}", run)


if __name__ == "__main__":
    main()
