"""A client of the OpenAI API for the commands that talk to a running server: `lightllm chat` and `lightllm complete`."""

from __future__ import annotations

import argparse
import json
import os
import urllib.error
import urllib.request
from collections.abc import Generator, Mapping
from http.client import HTTPException, HTTPResponse
from typing import Any

from lightllm.errors import RequestError

DEFAULT_URL = "http://127.0.0.1:8000"
"""Where `lightllm serve` listens."""
_KEY_VARIABLES = ("LIGHTLLM_API_KEY", "OPENAI_API_KEY")
_VISIBLE = {code: 0x2400 + code for code in range(32) if code not in b"\t\n"} | dict.fromkeys(
    range(127, 160), 0xFFFD
)


def visible(text: str) -> str:
    """Text of a model as a terminal may get it: its control characters would be commands there, to set the clipboard or to draw over
    what was said before."""
    return text.translate(_VISIBLE)


class Server:
    """A server with the OpenAI API; `url` as in http://127.0.0.1:8000, with or without /v1."""

    def __init__(
        self,
        url: str = DEFAULT_URL,
        api_key: str | None = None,
        model: str | None = None,
        timeout: float = 600.0,
    ) -> None:
        """timeout: seconds without a byte. Raises `RequestError` where no server answers, or it lists no model."""
        self.base = url.rstrip("/").removesuffix("/v1") + "/v1"
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._timeout = timeout
        # Proxies of the environment are for downloads.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        self.model = model or self._first_model()

    def stream(self, path: str, body: Mapping[str, Any]) -> Generator[dict[str, Any], None, None]:
        """The chunks of a streamed answer. Closing the generator closes the connection, which ends the answer."""
        with self._open(path, {"model": self.model, **body, "stream": True}) as response:
            try:
                for line in response:
                    field, _, data = line.decode().strip().partition(":")
                    if field != "data":
                        continue  # a comment, or the end of an event
                    if data.strip() == "[DONE]":
                        return
                    yield _checked(json.loads(data))
            except (OSError, HTTPException, ValueError) as error:
                raise RequestError(f"the answer of {self.base} broke off: {error}") from error
            raise RequestError(f"the answer of {self.base} broke off")

    def _first_model(self) -> str:
        with self._open("/models", None) as response:
            body = response.read()
        try:
            return str(json.loads(body)["data"][0]["id"])
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise RequestError(f"{self.base}/models lists no model") from error

    def _open(self, path: str, body: Mapping[str, Any] | None) -> HTTPResponse:
        data = None if body is None else json.dumps(body).encode()
        try:
            request = urllib.request.Request(self.base + path, data, self._headers)
            return self._opener.open(request, timeout=self._timeout)  # type: ignore[no-any-return]
        except urllib.error.HTTPError as error:
            raise RequestError(f"{error.code}: {_error_message(error.read())}") from error
        except (OSError, HTTPException, ValueError) as error:
            raise RequestError(f"{self.base} does not answer: {error}") from error


def add_server_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("server")
    group.add_argument(
        "--url", help=f"a running server, with or without /v1; default: $LIGHTLLM_URL, else {DEFAULT_URL}"
    )
    group.add_argument("--api_key", help="its key; default: $" + ", else $".join(_KEY_VARIABLES))
    group.add_argument("--model", help="a name from its /v1/models; default: the first")


def server_of(arguments: argparse.Namespace, environ: Mapping[str, str] = os.environ) -> Server:
    """By what `add_server_options` has read. Raises `RequestError`."""
    url = arguments.url or environ.get("LIGHTLLM_URL") or DEFAULT_URL
    keys = [arguments.api_key or "", *(environ.get(name, "") for name in _KEY_VARIABLES)]
    # LIGHTLLM_API_KEY of a server may hold several
    key = next((key.split()[0] for key in keys if key.strip()), None)
    return Server(url, key, arguments.model)


def _checked(chunk: Any) -> dict[str, Any]:
    if not isinstance(chunk, dict):
        raise ValueError(f"not an object: {chunk!r}"[:200])
    if "error" in chunk:
        error = chunk["error"]
        raise RequestError(str(error.get("message", error) if isinstance(error, dict) else error))
    return chunk


def _error_message(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return body.decode(errors="replace")[:200]
