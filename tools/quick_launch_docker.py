"""Starts a server in a container with one command: builds the `docker run` line and runs it.

    python tools/quick_launch_docker.py --build
    python tools/quick_launch_docker.py --model_dir /models/llama-7b -- --max_total_token_num 120000
    python tools/quick_launch_docker.py --model_dir /models/llama-7b --dry_run

What follows `--` goes to the server as it stands.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

CONTAINER_PORT = 8080
CONTAINER_MODELS = "/data"
STOP_SECONDS = 60
ROOT = Path(__file__).resolve().parent.parent


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser()
    options = parser.parse_args(argv)
    if options.model_dir and Path(options.model_dir).exists() and not Path(options.model_dir).is_dir():
        parser.error(f"--model_dir {options.model_dir} is not a folder")
    commands = [build_command(options)] if options.build else []
    commands.append(run_command(options))
    for command in commands:
        print(shlex.join(command), flush=True)
        if options.dry_run:
            continue
        try:
            status = subprocess.run(command, check=False).returncode
        except FileNotFoundError:
            print(f"quick_launch_docker: there is no {options.docker}: install Docker, or name it with --docker",
                  file=sys.stderr)  # fmt: skip
            return 1
        if status:
            return status
    return 0


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Start a lightllm server in a container.", allow_abbrev=False
    )
    parser.add_argument("--image", default="lightllm:latest", help="image to run (default: %(default)s)")
    parser.add_argument("--build", action="store_true", help="build the image from this checkout first")
    parser.add_argument(
        "--model_dir", help="model folder of this machine, or a Hugging Face hub id; default: the demo model"
    )
    parser.add_argument(
        "--gpus",
        default="all",
        help="as `docker run --gpus`: all, 2, device=0,1; none for a CPU (default: all)",
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address of this machine to publish the port on (default: %(default)s)",
    )
    parser.add_argument(
        "-p", "--port", type=port, default=8080, help="port of this machine (default: %(default)s)"
    )
    parser.add_argument(
        "--shm_size", default="1g", help="shared memory; raise it for several GPUs (default: %(default)s)"
    )
    parser.add_argument(
        "--cache_dir",
        default="~/.cache/huggingface",
        help="where hub downloads are kept (default: %(default)s)",
    )
    parser.add_argument("--name", help="name of the container")
    parser.add_argument("--detach", action="store_true", help="run in the background")
    parser.add_argument("--docker", default="docker", help="program to call (default: %(default)s)")
    parser.add_argument("--dry_run", action="store_true", help="print the commands and stop")
    parser.add_argument("server_options", nargs="*", metavar="-- OPTIONS", help="options of the server")
    return parser


def port(text: str) -> int:
    value = int(text)
    if not 0 < value < 65536:
        raise argparse.ArgumentTypeError(f"must be 1 to 65535, got {value}")
    return value


def build_command(options: argparse.Namespace) -> list[str]:
    return [options.docker, "build", "-t", options.image, str(ROOT)]


def run_command(options: argparse.Namespace) -> list[str]:
    """`docker run` for these options. A model folder is mounted read-only and served under its own name."""
    command = [options.docker, "run", "--rm", "--init", "--shm-size", options.shm_size]
    # docker stop kills after 10 s unless told: longer than the server's --drain_timeout
    command += ["--stop-timeout", str(STOP_SECONDS)]
    command += ["-p", f"{options.host}:{options.port}:{CONTAINER_PORT}"]
    if options.gpus != "none":
        # Docker reads the value as CSV: a list of devices must be quoted inside it.
        command += ["--gpus", f'"{options.gpus}"' if "," in options.gpus else options.gpus]
    command += ["--detach"] if options.detach else (["-it"] if sys.stdout.isatty() else [])
    if options.name:
        command += ["--name", options.name]
    server: list[str] = []
    if options.model_dir and Path(options.model_dir).is_dir():
        folder = Path(options.model_dir).resolve()
        command += ["-v", f"{folder}:{CONTAINER_MODELS}/{folder.name}:ro"]
        server = ["--model_dir", f"{CONTAINER_MODELS}/{folder.name}"]
    elif options.model_dir:
        cache = Path(os.path.expanduser(options.cache_dir)).resolve()
        if not options.dry_run:
            cache.mkdir(parents=True, exist_ok=True)  # else Docker makes it, owned by root
        command += ["-v", f"{cache}:{CONTAINER_MODELS}/huggingface"]
        server = ["--model_dir", options.model_dir]
    if "HF_TOKEN" in os.environ:
        command += ["-e", "HF_TOKEN"]
    return [*command, options.image, *server, *options.server_options]


if __name__ == "__main__":
    sys.exit(main())
