"""A chat in the terminal: `python -m lightllm.chat [--model_dir FOLDER]`, or `--url` for a server that runs already.

/reset forgets the conversation, /exit or Ctrl-D ends, Ctrl-C stops an answer. Without a terminal each line of the
input is one message, so it can be piped.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import urllib.error
import urllib.request
from collections.abc import Generator, Sequence
from contextlib import closing, suppress
from http.client import HTTPException

from lightllm.errors import LightLLMError, RequestError

Messages = list[dict[str, str]]
_HELP = "/reset starts anew, /exit or Ctrl-D ends, Ctrl-C stops an answer."


class LocalModel:
    """The offline engine."""

    def __init__(self, model_dir: str | None, options: dict[str, object]) -> None:
        from lightllm.llm import LLM

        # a line of a terminal is a text: no vision encoder is needed
        self._llm = LLM(model_dir, show_bar=sys.stderr.isatty(), disable_vision=True, **options)
        self.name = self._llm.model_dir

    def answer(self, messages: Messages) -> Generator[str, None, None]:
        """The next answer, piece by piece."""
        return self._llm.stream(self._llm.chat_prompt(messages))

    def close(self) -> None:
        self._llm.close()


class RemoteServer:
    """A server with the OpenAI API; `url` as in http://127.0.0.1:8000, with or without /v1."""

    def __init__(self, url: str, api_key: str | None, timeout: float = 600.0) -> None:
        self._base = url.rstrip("/").removesuffix("/v1") + "/v1"
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._timeout = timeout
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with self._open("/models", None) as response:
            self._model = _first_model(response.read())
        self.name = f"{self._model} at {self._base}"

    def answer(self, messages: Messages) -> Generator[str, None, None]:
        body = {"model": self._model, "messages": messages, "stream": True}
        with self._open("/chat/completions", body) as response:
            try:
                for line in response:
                    field, _, data = line.decode().strip().partition(":")
                    if field != "data":
                        continue  # a comment, or the end of an event
                    if data.strip() == "[DONE]":
                        return
                    yield _piece(json.loads(data))
            except (OSError, HTTPException, ValueError) as error:
                raise RequestError(f"the answer of {self._base} broke off: {error}") from error

    def close(self) -> None:
        """Nothing is held between answers."""

    def _open(self, path: str, body: dict[str, object] | None):  # type: ignore[no-untyped-def]
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._base + path, data, self._headers)
        try:
            return self._opener.open(request, timeout=self._timeout)
        except urllib.error.HTTPError as error:
            raise RequestError(f"{error.code}: {_error_message(error.read())}") from error
        except OSError as error:
            raise RequestError(f"{self._base} does not answer: {error}") from error


Talker = LocalModel | RemoteServer


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    arguments = _parser().parse_args(argv)
    # The terminal shows the conversation: what fails comes as an error, what is interrupted was meant to be.
    logging.getLogger("lightllm").setLevel(logging.ERROR)
    options = {
        name: value for name, value in vars(arguments).items() if name not in ("model_dir", "url", "api_key")
    }
    try:
        talker: Talker
        if arguments.url:
            talker = RemoteServer(arguments.url, arguments.api_key)
        else:
            talker = LocalModel(arguments.model_dir, {k: v for k, v in options.items() if v is not None})
    except LightLLMError as error:
        print(error, file=sys.stderr)
        return 1
    try:
        return converse(talker)
    finally:
        talker.close()


def converse(talker: Talker) -> int:
    """Reads messages until the input ends. Without a terminal the first failure ends it, with status 1."""
    interactive = sys.stdin.isatty()
    if interactive:
        with suppress(ImportError):
            import readline  # noqa: F401  (arrow keys and history for `input`)
        print(f"{talker.name}\n{_HELP}")
    messages: Messages = []
    while (line := _read(interactive)) is not None:
        if line == "/exit":
            break
        if line == "/reset":
            messages.clear()
        elif line:
            messages.append({"role": "user", "content": line})
            if not _reply(talker, messages) and not interactive:
                return 1
    return 0


def _reply(talker: Talker, messages: Messages) -> bool:
    """Prints the answer as it comes and adds it to the conversation; without one the question is taken back."""
    text = ""
    try:
        with closing(talker.answer(messages)) as pieces:
            for piece in pieces:
                print(piece, end="", flush=True)
                text += piece
    except KeyboardInterrupt:
        print(" [stopped]", end="")
    except LightLLMError as error:
        print(error, file=sys.stderr)
        messages.pop()
        return False
    print(flush=True)
    messages.append({"role": "assistant", "content": text})
    return True


def _read(interactive: bool) -> str | None:
    """The next message, stripped; None at the end of the input."""
    try:
        return input("> " if interactive else "").strip()
    except KeyboardInterrupt:
        print()
        return ""
    except EOFError:
        if interactive:
            print()
        return None


def _first_model(body: bytes) -> str:
    try:
        return str(json.loads(body)["data"][0]["id"])
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise RequestError("the server's /v1/models lists no model") from error


def _piece(chunk: dict) -> str:  # type: ignore[type-arg]
    """The text in one streamed chunk."""
    if "error" in chunk:
        raise RequestError(str(chunk["error"].get("message", chunk["error"])))
    choices = chunk.get("choices") or [{}]
    return choices[0].get("delta", {}).get("content") or ""


def _error_message(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return body.decode(errors="replace")[:200]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m lightllm.chat", description=__doc__)
    parser.add_argument("--model_dir", help="model folder or Hugging Face hub id; default: the demo model")
    parser.add_argument("--url", help="talk to this server instead, e.g. http://127.0.0.1:8000")
    parser.add_argument("--api_key", help="for --url")
    parser.add_argument("--data_type", choices=("bf16", "fp16", "fp32"), help="default: as config.json says")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument("--max_total_token_num", type=int, help="KV slots; default: measured")
    parser.add_argument("--cpu_threads", type=int, help="default: all physical cores")
    parser.add_argument("--chat_template", help="Jinja file instead of the model's own template")
    parser.add_argument(
        "--trust_remote_code", action="store_true", help="allow tokenizer code from the model folder"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
