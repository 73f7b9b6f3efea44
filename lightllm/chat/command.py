"""`lightllm chat`: a chat in the terminal, with a running server (--url) or with a model in this process (--model_dir, --local).

Without a terminal each line of the input is one message, so it can be piped.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from typing import Any

from lightllm.chat.plain import INSTALL, PlainView
from lightllm.chat.session import Session, View
from lightllm.chat.talkers import LocalModel, RemoteServer, Talker
from lightllm.client import add_server_options, server_of
from lightllm.command_line import CommandParser
from lightllm.errors import InvalidOption, LightLLMError

OTHER_NAMES = {
    "system_prompt": "system", "sys": "system", "temp": "temperature", "n_predict": "max_tokens",
    "max_new_tokens": "max_tokens", "max_completion_tokens": "max_tokens", "base_url": "url", "model_name": "model",
    "model_path": "model_dir", "dtype": "data_type", "threads": "cpu_threads",
}  # fmt: skip
"""Options of other chats, and ours for the same."""
_SAMPLING = ("max_tokens", "temperature", "top_p", "top_k", "seed")
_ENGINE = ("data_type", "device", "max_total_token_num", "cpu_threads", "chat_template", "trust_remote_code")


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    try:
        arguments = make_parser().parse_args(argv)
        # The terminal shows the conversation: what fails comes as an error, what is interrupted was meant to be.
        logging.getLogger("lightllm").setLevel(logging.ERROR)
        talker = make_talker(arguments)
    except LightLLMError as error:
        print(f"lightllm chat: error: {error}", file=sys.stderr)
        return 2 if isinstance(error, InvalidOption) else 1
    try:
        view = make_view(talker.name, arguments.plain)
        return Session(talker, view, arguments.system).run(end_on_failure=not sys.stdin.isatty())
    finally:
        talker.close()


def make_talker(arguments: argparse.Namespace) -> Talker:
    """Raises `LightLLMError`."""
    parameters = _given(arguments, _SAMPLING)
    if arguments.local or arguments.model_dir:
        return LocalModel(arguments.model_dir, _given(arguments, _ENGINE), parameters)
    return RemoteServer(server_of(arguments), parameters)


def make_view(title: str, plain: bool) -> View:
    terminal = sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"
    if terminal and not plain:
        try:
            from lightllm.chat.terminal import TerminalView
        except ImportError as error:
            if (error.name or "").partition(".")[0] not in ("prompt_toolkit", "rich"):
                raise
            print(INSTALL)
        else:
            return TerminalView(title)
    return PlainView(title)


def _given(arguments: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    return {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}


def make_parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        others=OTHER_NAMES, prog="lightllm chat",
        description="Chat in the terminal, with a running server or with a model in this process.",
    )  # fmt: skip
    add_server_options(parser)
    local = parser.add_argument_group("a model in this process instead")
    local.add_argument("--model_dir", help="model folder or Hugging Face hub id")
    local.add_argument("--local", action="store_true", help="without --model_dir: the demo model")
    local.add_argument("--data_type", choices=("bf16", "fp16", "fp32"), help="default: as config.json says")
    local.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    local.add_argument("--max_total_token_num", type=int, help="KV slots; default: measured")
    local.add_argument("--cpu_threads", type=int, help="default: all physical cores")
    local.add_argument("--chat_template", help="Jinja file instead of the model's own template")
    local.add_argument(
        "--trust_remote_code", action="store_true", help="allow tokenizer code from the model folder"
    )
    chat = parser.add_argument_group("chat; what is left out is as the server or the model has it")
    chat.add_argument("--system", metavar="TEXT", help="a system message before all others")
    chat.add_argument("--max_tokens", type=int, help="of an answer")
    chat.add_argument("--temperature", type=float)
    chat.add_argument("--top_p", type=float)
    chat.add_argument("--top_k", type=int)
    chat.add_argument("--seed", type=int)
    chat.add_argument("--plain", action="store_true", help="lines without history, colours and markdown")
    return parser
