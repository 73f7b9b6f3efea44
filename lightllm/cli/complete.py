"""`lightllm complete`: one prompt to a running server, and its continuation as it comes.

The answer alone goes to the output, exactly as it is, so that it can be piped; a line of figures goes to a terminal's
standard error.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from typing import Any

from lightllm.client import Server, add_server_options, server_of, visible
from lightllm.command_line import CommandParser
from lightllm.errors import LightLLMError

OTHER_NAMES = {
    "n_predict": "max_tokens", "predict": "max_tokens", "max_new_tokens": "max_tokens", "max_completion_tokens": "max_tokens",
    "temp": "temperature", "reverse_prompt": "stop", "base_url": "url", "model_name": "model",
}  # fmt: skip
ANSWERS = {
    "prompt": "The prompt stands by itself: lightllm complete 'Once upon a time'.",
    "system_prompt": "A completion has no roles: lightllm chat.",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 1 where the server gives no answer, 2 for a wrong option, 130 after Ctrl-C."""
    try:
        arguments = make_parser().parse_args(argv)
        prompt = arguments.prompt
        if prompt in (None, "-"):
            prompt = sys.stdin.read()
    except LightLLMError as error:
        return _fail(error, 2)
    try:
        _print_answer(server_of(arguments), {"prompt": prompt, **_parameters(arguments)})
    except KeyboardInterrupt:
        print(flush=True)
        return 130
    except BrokenPipeError:
        sys.stderr.close()  # whoever read the answer has enough; nothing more can be said to it
        return 0
    except LightLLMError as error:
        return _fail(error, 1)
    return 0


def _print_answer(server: Server, body: dict[str, Any]) -> None:
    began = first = time.monotonic()
    usage: dict[str, Any] = {}
    ended_line = True
    body = {**body, "stream_options": {"include_usage": True}}
    with closing(server.stream("/completions", body)) as chunks:
        for chunk in chunks:
            usage = chunk.get("usage") or usage
            text = "".join(choice.get("text") or "" for choice in chunk.get("choices") or ())
            if text:
                first = time.monotonic() if first == began else first
                sys.stdout.write(visible(text) if sys.stdout.isatty() else text)
                sys.stdout.flush()
                ended_line = text.endswith("\n")
    if sys.stdout.isatty() and not ended_line:
        print(flush=True)
    if sys.stderr.isatty():
        count, seconds = usage.get("completion_tokens", 0), time.monotonic() - first
        rate = f", {count / seconds:.1f} a second" if seconds > 0 else ""
        print(f"[{count} tokens{rate}; the first after {first - began:.2f} s]", file=sys.stderr)


def _parameters(arguments: argparse.Namespace) -> dict[str, Any]:
    names = ("max_tokens", "temperature", "top_p", "top_k", "seed", "stop")
    return {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}


def _fail(error: LightLLMError, status: int) -> int:
    print(f"lightllm complete: error: {error}", file=sys.stderr)
    return status


def make_parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        others=OTHER_NAMES, answers=ANSWERS, prog="lightllm complete",
        description="Complete one prompt on a running server.",
    )  # fmt: skip
    parser.add_argument("prompt", nargs="?", help="- or nothing: what stands in the input")
    add_server_options(parser)
    sampling = parser.add_argument_group("sampling; what is left out is as the server has it")
    sampling.add_argument("--max_tokens", type=int, default=256, help="default: %(default)s")
    sampling.add_argument("--temperature", type=float)
    sampling.add_argument("--top_p", type=float)
    sampling.add_argument("--top_k", type=int)
    sampling.add_argument("--seed", type=int)
    sampling.add_argument(
        "--stop", action="append", metavar="TEXT", help="end before this text; may be given again"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
