"""Fills the examples of README.md and docs/api.md with what a running server really answers.

    make serve                                     in one terminal
    python tools/record_examples.py                in another

An example stands between `<!-- output: NAME -->` and `<!-- end -->`; NAMES are the keys of EXAMPLES.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "docs/api.md")
_MARKED = re.compile(r"(<!-- output: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)

WHAT_IS_AI = {"inputs": "What is AI?", "parameters": {"max_new_tokens": 17, "frequency_penalty": 1}}
SUM = {"inputs": "2+3=", "parameters": {"max_new_tokens": 8, "do_sample": False}}
CAPITAL = {
    "inputs": "What is the capital of France?",
    "parameters": {
        "guided_json": {
            "type": "object",
            "properties": {"capital": {"type": "string"}},
            "required": ["capital"],
            "additionalProperties": False,
        }
    },
}
CHAT = {"messages": [{"role": "user", "content": "What is AI?"}], "max_tokens": 32, "temperature": 0}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Record the examples of the docs from a running server.")
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    options = parser.parse_args(argv)
    server = Server(options.url)
    for page in PAGES:
        path = ROOT / page
        text = path.read_text(encoding="utf-8")
        path.write_text(fill(text, lambda name: EXAMPLES[name](server)), encoding="utf-8")
        print(f"{page}: {len(_MARKED.findall(text))} examples")
    return 0


def fill(text: str, record: Callable[[str], str]) -> str:
    """`text` with every marked example replaced by what `record` gives for its name (a fenced block)."""
    return _MARKED.sub(lambda match: f"{match[1]}{record(match[2]).rstrip()}\n{match[3]}", text)


class Server:
    def __init__(self, url: str) -> None:
        self._url = url

    def ask(self, path: str, body: dict[str, Any] | None = None) -> str:
        """The body of the answer, whatever its status."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._url + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return str(answer.read().decode())
        except urllib.error.HTTPError as error:
            with error:
                return str(error.read().decode())


def fenced(text: str, language: str = "json") -> str:
    return f"```{language}\n{text.strip()}\n```"


def details(server: Server) -> str:
    """The first two tokens of an answer with details."""
    body = {"inputs": "2+3=", "parameters": {"max_new_tokens": 4, "return_details": True}}
    answer = json.loads(server.ask("/generate", body))
    answer["tokens"] = answer["tokens"][:2]
    shown = json.dumps(answer, ensure_ascii=False)
    return fenced(shown.replace('"tokens": [', '"tokens": [\n  ').replace("}, {", "},\n  {"))


def stream(server: Server, path: str, body: dict[str, Any]) -> str:
    """The first event and the last ones of a stream."""
    events = server.ask(path, body).strip().split("\n\n")
    kept = [*events[:2], "...", *events[-3:]] if len(events) > 6 else events
    return fenced("\n\n".join(kept), "text")


def several(server: Server, calls: list[tuple[str, dict[str, Any] | None]]) -> str:
    """One line a call: what is asked, what comes back."""
    lines = []
    for path, body in calls:
        lines.append(
            f"{'GET' if body is None else 'POST'} {path}" + ("" if body is None else f"  {json.dumps(body)}")
        )
        lines.append(f"  {server.ask(path, body)}")
    return fenced("\n".join(lines), "text")


SMALL: list[tuple[str, dict[str, Any] | None]] = [
    ("/tokens", {"text": "What is AI?"}),
    ("/abort_request", {"request_id": "the X-Request-Id or id of a request"}),
    ("/flush_cache", {}),
    ("/token_load", None),
    ("/get_model_name", None),
    ("/version", None),
    ("/v1/models", None),
    ("/health", None),
]
CONSTRAINED: list[tuple[str, dict[str, Any] | None]] = [
    ("/generate", CAPITAL),
    ("/generate", {"inputs": "2+3=", "parameters": {"regular_constraint": "[0-9]{2}!"}}),
    ("/v1/completions", {"prompt": "2+3=", "temperature": 0, "guided_choice": ["3", "4", "5"]}),
    ("/v1/completions", {"prompt": "2+3=", "structured_outputs": {"regex": "("}}),
]
ERRORS: list[tuple[str, dict[str, Any] | None]] = [
    ("/generate", {"inputs": "hi", "parameters": {"top_p": 0}}),
    ("/v1/completions", {"prompt": "hi", "max_tokens": 1000000}),
]

EXAMPLES: dict[str, Callable[[Server], str]] = {
    "curl": lambda server: fenced(server.ask("/generate", WHAT_IS_AI)),
    "constrained_curl": lambda server: fenced(server.ask("/generate", CAPITAL)),
    "python": lambda server: fenced(str(json.loads(server.ask("/generate", SUM))), "text"),
    "generate": lambda server: fenced(server.ask("/generate", WHAT_IS_AI)),
    "details": details,
    "stream": lambda server: stream(server, "/generate_stream", SUM),
    "chat": lambda server: fenced(server.ask("/v1/chat/completions", CHAT)),
    "completions": lambda server: stream(
        server, "/v1/completions",
        {"prompt": "2+3=", "max_tokens": 8, "temperature": 0, "stream": True, "stream_options": {"include_usage": True}},
    ),
    "small": lambda server: several(server, SMALL),
    "constrained": lambda server: several(server, CONSTRAINED),
    "errors": lambda server: several(server, ERRORS),
}  # fmt: skip

if __name__ == "__main__":
    sys.exit(main())
