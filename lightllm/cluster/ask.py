"""What a request asks, as far as dispatch must know it: read from the body without a tokenizer.

A prompt is cut into blocks of 256 bytes, about 64 tokens of text, exactly 64 token ids; each block's key depends on all that
stands before it, so two requests share as many leading keys as they share leading blocks.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from array import array
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from lightllm.cluster.request_fields import DEFAULT_OUTPUT, output_tokens, priority
from lightllm.errors import MalformedBody
from lightllm.protocol.kv_events import BLOCK_BYTES, BLOCK_TOKENS, chain_keys

MAX_BLOCKS = 2048
"""What is behind them counts as tokens, and has no part in a match."""
_SESSION_HEADERS = (b"x-session-id", b"x-conversation-id", b"x-user-id")
_BEFORE = ("system", "instructions", "tools")
"""What templates put before the messages."""
_ITEM_ID = re.compile(r"[a-z]{2,3}_([0-9a-f]{48})_i?[0-9]+")
"""Of an item of a response: with the response's own number."""


@dataclasses.dataclass(frozen=True)
class Ask:
    model: str
    blocks: tuple[int, ...] = ()
    """Keys of the prompt's leading blocks."""
    prompt_tokens: int = 0
    """An estimate, unless the prompt is token ids."""
    output_tokens: int = DEFAULT_OUTPUT
    """The most that was asked for, of all answers, or an estimate."""
    session: str = ""
    """What the client calls its conversation or its user; "": nothing."""
    follows: str = ""
    """The id of the response that it goes on with, or refers to: only the worker that holds it can; "": none."""
    is_ids: bool = False
    """The prompt is token ids: its blocks are those of its tokens."""
    priority: int = 0
    """Less goes first."""


def read_ask(path: str, body: bytes, headers: list[tuple[bytes, bytes]], default_model: str = "") -> Ask:
    """path: of the API that the body is in. Raises `MalformedBody`: it is no JSON object."""
    values = read_body(body)
    model = values.get("model")
    named = isinstance(model, str) and model
    return ask_of(values, str(model) if named else default_model, session_of(values, headers), path)


def read_body(body: bytes) -> dict[str, Any]:
    """Raises `MalformedBody`."""
    try:
        values = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError) as error:
        raise MalformedBody(f"the body is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise MalformedBody("the body must be a JSON object")
    return values


def write_json(values: Any) -> bytes:
    """Of what was read from a body. Raises `MalformedBody` for numbers that JSON may have, and few programs."""
    try:
        return msgspec.json.encode(values)
    except OverflowError as error:
        raise MalformedBody("the body has a number of more than 64 bits") from error


def with_fields(body: bytes, fields: Mapping[str, Any]) -> bytes:
    """The body of an object, with these fields in it, or without those that are None; the others are as they were."""
    values: dict[str, Any] = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    values |= fields
    return write_json({name: value for name, value in values.items() if value is not None})


def ask_of(values: Mapping[str, Any], model: str, session: str = "", path: str = "/v1/completions") -> Ask:
    blocks, size = _blocks(_prompt_parts(values))
    return Ask(
        model,
        blocks,
        size * BLOCK_TOKENS // BLOCK_BYTES,
        output_tokens(path, values),
        session,
        _follows(values),
        _is_ids(values),
        priority(path, values) or 0,
    )


def session_of(values: Mapping[str, Any], headers: list[tuple[bytes, bytes]]) -> str:
    """Of the fields at the top of the body alone: prompts may hold such words, too."""
    for header in _SESSION_HEADERS:
        for name, value in headers:
            if name == header and value:
                return value.decode("latin-1")
    for field in ("prompt_cache_key", "conversation", "session_id", "user"):
        given = values.get(field)
        if isinstance(given, str) and given:
            return given
    return ""


def _follows(values: Mapping[str, Any]) -> str:
    previous = values.get("previous_response_id")
    if isinstance(previous, str) and previous:
        return previous
    items = values.get("input")
    for item in items if isinstance(items, list) else ():
        if isinstance(item, dict) and item.get("type", "item_reference") == "item_reference":
            match = _ITEM_ID.fullmatch(str(item.get("id")))
            if match:
                return f"resp_{match[1]}"
    return ""


def hash_point(text: str) -> int:
    """A point of 64 bits, the same in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())


def _is_ids(values: Mapping[str, Any]) -> bool:
    prompt = values.get("prompt")
    return isinstance(prompt, list) and bool(prompt) and type(prompt[0]) is int


def _prompt_parts(values: Mapping[str, Any]) -> Iterator[bytes]:
    """The prompt's bytes, in an order that keeps what requests share in front."""
    for name in _BEFORE:
        if values.get(name):
            yield _bytes(values[name])
    for name in ("messages", "input", "prompt", "inputs"):
        prompt = values.get(name)
        if not prompt:
            continue
        if isinstance(prompt, list) and not _are_ids(prompt):
            for part in prompt:
                yield array("i", part).tobytes() if _are_ids(part) else _bytes(part)
        else:
            yield array("i", prompt).tobytes() if _are_ids(prompt) else _bytes(prompt)
        return


def _are_ids(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(type(entry) is int and 0 <= entry < 1 << 31 for entry in value)
    )


def _bytes(value: Any) -> bytes:
    return value.encode("utf-8", "surrogatepass") if isinstance(value, str) else write_json(value)


def _blocks(parts: Iterator[bytes]) -> tuple[tuple[int, ...], int]:
    """The keys, and how many bytes there were."""
    prompt = b"".join(parts)
    return blocks_of(prompt), len(prompt)


def blocks_of(prompt: bytes) -> tuple[int, ...]:
    """The keys of a prompt's leading blocks; token ids are int32, little endian."""
    return tuple(chain_keys(prompt[: MAX_BLOCKS * BLOCK_BYTES]))
