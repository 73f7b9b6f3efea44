"""`lightllm COMMAND ...`, and `python -m lightllm COMMAND ...`. Without a command it serves, with all options of `serve`.

Each command's module is loaded when it is named: `serve` must listen to signals as soon as it can.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Sequence

from lightllm.command_line import with_underscores
from lightllm.server.api_server import main as api_server
from lightllm.server.api_server import use_utf8

_USAGE = """\
usage: lightllm COMMAND ...

  serve [MODEL]       serve a model over HTTP; without one the demo model
  chat                chat in the terminal, with a running server or (--model_dir) a model of its own
  complete [PROMPT]   complete one prompt on a running server; without one what stands in the input
  bench               measure a running server
  controller          many servers behind one address
  worker KIND         one of them: model, huggingface, vllm
  version             print the version

lightllm COMMAND --help says more. Options may be written with - or with _.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status. argv: None for the words of the process."""
    if argv is None:
        use_utf8()
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] and words[0] in ("help", "--help", "-h"):
        print(_USAGE, end="")
        return 0
    if words[:1] in (["--version"], ["-V"]):
        return _version([])
    if not words or words[0].startswith("-"):
        return _serve(words)  # the launch command from before there were others
    command = _COMMANDS.get(words[0])
    if command is None:
        print(f"lightllm: error: {_unknown(words[0])}", file=sys.stderr)
        return 2
    return command(words[1:])


def _serve(words: list[str]) -> int:
    if not words or words[0].startswith("-"):
        return api_server(words)
    if any(with_underscores(word).partition("=")[0] == "--model_dir" for word in words):
        print(f"lightllm: error: {words[0]} and --model_dir are two models. Leave one out.", file=sys.stderr)
        return 2
    return api_server(["--model_dir", *words])


def _chat(words: list[str]) -> int:
    from lightllm.chat.command import main as chat

    return chat(words)


def _complete(words: list[str]) -> int:
    from lightllm.cli.complete import main as complete

    return complete(words)


def _bench(words: list[str]) -> int:
    from lightllm.bench.command import main as bench

    return bench(words)


def _controller(words: list[str]) -> int:
    from lightllm.cluster.controller import main as controller

    return controller(words)


def _worker(words: list[str]) -> int:
    from lightllm.cluster.workers.command import main as worker

    return worker(words)


def _version(words: list[str]) -> int:
    from lightllm import __version__

    if words:
        print("lightllm: error: version takes nothing more.", file=sys.stderr)
        return 2
    print(f"lightllm {__version__}")
    return 0


_COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "serve": _serve,
    "chat": _chat,
    "complete": _complete,
    "bench": _bench,
    "controller": _controller,
    "worker": _worker,
    "version": _version,
}
_OTHER_NAMES = {"run": "chat", "launch": "serve", "server": "serve", "api_server": "serve", "start": "serve",
                "benchmark": "bench", "generate": "complete", "completion": "complete",
                "router": "controller", "gateway": "controller"}  # fmt: skip
"""What other tools call them."""


def _unknown(word: str) -> str:
    near = difflib.get_close_matches(word, [*_COMMANDS, *_OTHER_NAMES], n=1)
    meant = _OTHER_NAMES.get(near[0], near[0]) if near else ""
    remedy = f"Did you mean {meant}?" if meant else f"To serve a model: lightllm serve {word}"
    return f"There is no command {word!r}. {remedy} See lightllm --help."
