"""Many concurrent clients over raw asyncio sockets: streams that are read to the end, or cut off at a random point."""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import urlsplit


@dataclass
class LoadReport:
    """What the clients saw. `outcomes` counts "complete", "cancelled", "overloaded", "lost with its Http Server", and "obeyed"
    for constrained ones that ended by themselves; `problems` is to be empty."""

    outcomes: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    problems: list[str] = field(default_factory=list)
    lost_ports: set[int] = field(default_factory=set)
    """Of connections whose Http Server was killed."""


@dataclass(frozen=True)
class Shape:
    """One kind of request that the clients draw from."""

    path: str
    body: dict[str, object]
    wanted_tokens: int
    """Exactly; if `obeys` is given, at most."""
    obeys: Callable[[str], object] | None = None
    """What a text that ended by itself must be true for."""


def shapes(rng: random.Random, model: str) -> Shape:
    """A random request to one of the four generating routes, with exact output length through `ignore_eos`."""
    words = " ".join(
        rng.choice(["count", "sky", "two", "why", "json", "hello"]) for _ in range(rng.randint(1, 60))
    )
    length = rng.randint(1, 48)
    sampling = {"ignore_eos": True, "temperature": rng.choice([0.0, 0.7, 1.0]), "seed": rng.randint(0, 9)}
    kind = rng.randrange(4)
    if kind < 2:
        path = ("/generate", "/generate_stream")[kind]
        native = {**sampling, "do_sample": True, "max_new_tokens": length, "return_details": True}
        native["temperature"] = max(float(str(native["temperature"])), 1e-6)
        return Shape(path, {"inputs": words, "parameters": native}, length)
    openai = {
        **sampling,
        "model": model,
        "max_tokens": length,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if kind == 2:
        return Shape("/v1/completions", {**openai, "prompt": words}, length)
    return Shape("/v1/chat/completions", {**openai, "messages": [{"role": "user", "content": words}]}, length)


_PATTERN = "[a-zé ]{5,30}[.!]"
_SCHEMA = {
    "type": "object",
    "properties": {"age": {"type": "integer"}, "tags": {"type": "array", "items": {"enum": ["a", "é"]}}},
    "required": ["age", "tags"],
    "additionalProperties": False,
}


def constrained(rng: random.Random, shape: Shape) -> Shape:
    """The same request, bound to a regular expression or a schema and free to end."""
    fields, obeys = rng.choice(
        [
            ({"regular_constraint": _PATTERN}, lambda text: re.fullmatch(_PATTERN, text)),
            ({"guided_json": _SCHEMA}, lambda text: sorted(json.loads(text)) == ["age", "tags"]),
        ]
    )
    if shape.path.startswith("/v1"):
        fields = {name.replace("regular_constraint", "guided_regex"): value for name, value in fields.items()}
        body = shape.body | fields | {"ignore_eos": False, "max_tokens": 60}
    else:
        parameters = dict(shape.body["parameters"]) | fields | {"ignore_eos": False, "max_new_tokens": 60}  # type: ignore[call-overload]
        body = shape.body | {"parameters": parameters}
    return Shape(shape.path, body, 60, obeys)


async def run_load(
    url: str,
    model: str,
    clients: int,
    seconds: float,
    cancel_share: float,
    seed: int = 0,
    constrained_share: float = 0.0,
    report: LoadReport | None = None,
) -> LoadReport:
    """`clients` loops, each sending one request after the other for `seconds`; a share is cut off at a random chunk, and
    a share is constrained. report: to be filled, where others read it meanwhile."""
    report = report or LoadReport()
    address = urlsplit(url)
    end = time.monotonic() + seconds

    async def client(number: int) -> None:
        rng = random.Random(f"{seed}-{number}")
        while time.monotonic() < end:
            shape = shapes(rng, model)
            if rng.random() < constrained_share:
                shape = constrained(rng, shape)
            cut_after = rng.randint(0, 12) if rng.random() < cancel_share else None
            try:
                outcome = await asyncio.wait_for(
                    _one(address.hostname, address.port, shape, cut_after, report), 120
                )
            except TimeoutError:
                report.problems.append(f"{shape.path}: no end within 120 s")
                return
            except (OSError, ValueError, asyncio.IncompleteReadError) as error:
                report.problems.append(f"{shape.path}: {error!r}")
                continue
            report.outcomes[outcome] += 1
            if outcome == "overloaded":
                await asyncio.sleep(0.3)

    await asyncio.gather(*(client(number) for number in range(clients)))
    return report


async def _one(
    host: str | None, port: int | None, shape: Shape, cut_after: int | None, report: LoadReport
) -> str:
    reader, writer = await asyncio.open_connection(host, port)
    own_port = writer.get_extra_info("sockname")[1]
    try:
        body = json.dumps(shape.body).encode()
        head = f"POST {shape.path} HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\nConnection: close\r\n"
        writer.write(head.encode() + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
        await writer.drain()
        if cut_after == 0:
            await asyncio.sleep(random.random() * 0.05)
            return "cancelled"
        status = int((await reader.readuntil(b"\r\n")).split()[1])
        headers = (await reader.readuntil(b"\r\n\r\n")).lower()
        if status == 503:
            return "overloaded"
        if status != 200:
            raise ValueError(f"status {status}: {(await reader.read(500))!r}")
        payload, chunks = b"", 0
        if b"chunked" not in headers:
            payload = await reader.read()
        else:
            while (size := int(await reader.readuntil(b"\r\n"), 16)) > 0:
                payload += (await reader.readexactly(size + 2))[:-2]
                chunks += 1
                if chunks == cut_after:
                    return "cancelled"
        count = count_tokens(shape.path, payload)
        report.tokens += count
        if shape.obeys is not None:
            text, reason = answer(shape.path, payload)
            if reason == "stop" and not shape.obeys(text) or reason not in ("stop", "length"):
                raise ValueError(f"{reason}: {text!r}")
            report.outcomes["obeyed"] += reason == "stop"
            return "complete" if count <= shape.wanted_tokens else "too long"
        if count != shape.wanted_tokens:
            raise ValueError(f"{count} tokens instead of {shape.wanted_tokens}: ...{payload[-300:]!r}")
        return "complete"
    except (OSError, asyncio.IncompleteReadError):
        if own_port in report.lost_ports:
            return "lost with its Http Server"
        raise
    finally:
        writer.close()


def count_tokens(path: str, payload: bytes) -> int:
    """Output tokens that a complete answer reports; raises ValueError when the stream lacks its end."""
    if path == "/generate":
        return int(json.loads(payload)["count_output_tokens"])
    events = [line[5:].strip() for line in payload.split(b"\n") if line.startswith(b"data:")]
    if path == "/generate_stream":
        decoded = [json.loads(event) for event in events]
        if not decoded[-1]["finished"] or any(event["finished"] for event in decoded[:-1]):
            raise ValueError("the finished event is missing or not the last")
        return len(decoded)
    if events[-1] != b"[DONE]":
        raise ValueError("[DONE] is missing")
    return int(json.loads(events[-2])["usage"]["completion_tokens"])


def answer(path: str, payload: bytes) -> tuple[str, str]:
    """Text and finish reason of a complete answer."""
    if path == "/generate":
        body = json.loads(payload)
        return body["generated_text"][0], body["finish_reason"]
    events = [
        json.loads(line[5:]) for line in payload.split(b"\n") if line.startswith(b"data:") and b"{" in line
    ]
    if path == "/generate_stream":
        return "".join(event["token"]["text"] for event in events), events[-1]["finish_reason"]
    choices = [choice for event in events for choice in event["choices"]]
    texts = [
        choice["text"] if "text" in choice else choice["delta"].get("content") or "" for choice in choices
    ]
    return "".join(texts), [choice["finish_reason"] for choice in choices if choice["finish_reason"]][-1]
