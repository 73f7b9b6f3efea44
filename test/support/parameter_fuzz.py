"""Random sampling parameters at and beyond their limits, in batches beside streams whose tokens are known.

`run(url, cases, seed)` sends the cases, some at a time, while steady streams run one after the other; it reports what was not
right. What is in range is drawn more often than what is not, so that most requests run.
"""

from __future__ import annotations

import dataclasses
import json
import random
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

from support.http_client import http_client

VOCAB = 256
"""Ids below this exist in every model that is tried."""
TOO_MUCH = (
    "2147483648", "9223372036854775807", "9223372036854775808", "-9223372036854775808", "18446744073709551616", "1e308",
    "-1e308", "1e-300", "-1e-300", "5e-324", "1e400", "1" + "0" * 400, "-1", "-0.0", "0", "NaN", "1e39", "3.5e38", "1e-46",
)  # fmt: skip
ALLOWED: dict[str, tuple[str, ...]] = {
    "temperature": ("0", "1e-300", "5e-324", "9.9e-6", "1e-5", "1.00001e-5", "0.5", "1", "100", "99.99999999999999"),
    "top_p": ("5e-324", "1e-300", "1e-46", "0.1", "0.9999999999999999", "1", "0.5"),
    "top_k": ("-1", "1", "2", "50", "255", "256", "2147483647"),
    "min_p": ("0", "5e-324", "1e-300", "0.05", "0.9999999999999999", "1"),
    "seed": ("0", "1", "9223372036854775807", "9223372036854775806", "4294967296"),
    "presence_penalty": ("0", "5e-324", "0.5", "2", "100", "-0.0"),
    "frequency_penalty": ("0", "1e-300", "0.5", "2", "100"),
    "repetition_penalty": ("1", "1.0000000000000002", "1.1", "2", "100"),
    "exponential_decay_length_penalty": (
        "[0, 1]", "[0, 100]", "[2147483647, 100]", "[1, 1.0000000000000002]", "[3, 1.5]", "[0, 99.99999999999999]"
    ),
    "logit_bias": ('{"7": 100}', '{"7": -100}', '{"0": 5e-324, "2": -100, "255": 100}', '{"2": 100}', "{}"),
    "allowed_token_ids": ("[7]", "[0, 255]", "[2]", "[]"),
    "stop_token_ids": ("[0]", "[255, 255, 255]", "[2]"),
    "stop_sequences": ("[[7, 8]]", '["a"]', "[[255]]"),
    "max_new_tokens": ("1", "2", "9", "40"),
    "min_new_tokens": ("1", "2"),
    "best_of": ("1", "2", "5"),
    "timeout": ("5e-324", "1e-300", "0.01", "60", "1e9"),
    "priority": ("0", "2147483647", "-2147483647", "-1"),
    "ignore_eos": ("true", "false"),
    "input_penalty": ("true", "false"),
    "regular_constraint": ('"[a-z ]{1,12}"', '"(ab|c)*"'),
    "guided_json": ('{"type": "integer", "minimum": -9223372036854774784}', '{"enum": [9223372036854775807, 1e308]}'),
}  # fmt: skip
"""Native names -> JSON texts in range."""
OPENAI_NAMES = {
    "max_new_tokens": "max_tokens", "min_new_tokens": "min_tokens", "best_of": "n", "stop_sequences": "stop",
    "regular_constraint": "guided_regex",
}  # fmt: skip
NATIVE_ONLY = {"exponential_decay_length_penalty", "input_penalty"}
OPENAI_ALLOWED: dict[str, tuple[str, ...]] = {
    "presence_penalty": ("-2", "2", "5e-324"), "frequency_penalty": ("-2", "2"),
    "repetition_penalty": ("0.01", "0.5", "100"), "stop": ('["a"]', '"zz"'), "seed": ("-1", "-9223372036854775808", "7"),
    "top_k": ("0", "-1", "1", "2147483647"), "logprobs": ("0", "1", "20"), "echo": ("true",),
}  # fmt: skip
"""Where /v1 has other ranges, or more fields."""

STEADY: tuple[dict[str, Any], ...] = (
    {"do_sample": False},
    {"do_sample": True, "temperature": 0.9, "top_p": 0.9, "top_k": 40, "seed": 7},
    {"do_sample": False, "frequency_penalty": 0.4, "repetition_penalty": 1.2, "logit_bias": {"9": 3.0}},
)
STEADY_TOKENS = 120


@dataclasses.dataclass
class Report:
    statuses: Counter[int] = dataclasses.field(default_factory=Counter)
    problems: list[str] = dataclasses.field(default_factory=list)
    streams: int = 0
    """Steady streams that were read to their end."""
    ended_with_error: int = 0
    """Streams of cases that ended with an error event (a timeout)."""


def case(rng: random.Random) -> tuple[str, str]:
    """(path, body) of one request."""
    native = rng.random() < 0.6
    allowed = (
        ALLOWED if native else {OPENAI_NAMES.get(name, name): values for name, values in ALLOWED.items()}
    )
    if not native:
        allowed = {
            name: values for name, values in allowed.items() if name not in NATIVE_ONLY
        } | OPENAI_ALLOWED
    fields = rng.sample(sorted(allowed), rng.randint(1, 7))
    wild = rng.choice(fields) if rng.random() < 0.35 else None
    values = {
        name: rng.choice(allowed[name]) if name != wild else _wild(rng, allowed[name]) for name in fields
    }
    length = "max_new_tokens" if native else "max_tokens"
    values.setdefault(length, str(rng.randint(1, 24)))
    prompt = json.dumps([rng.randrange(3, VOCAB) for _ in range(rng.randint(1, 60))])
    stream = rng.random() < 0.4
    if native:
        if stream:
            values.pop("best_of", None)
        parameters = _object(values | {"do_sample": rng.choice(["true", "false"])})
        return (
            "/generate_stream" if stream else "/generate",
            f'{{"inputs": {prompt}, "parameters": {parameters}}}',
        )
    return "/v1/completions", _object({"prompt": prompt, "stream": "true" if stream else "false"} | values)


def _wild(rng: random.Random, allowed: tuple[str, ...]) -> str:
    """An extreme in the place of the value, or of one of the numbers in it."""
    extreme = rng.choice(TOO_MUCH)
    form = rng.choice(allowed)
    if form[0] not in "[{" or rng.random() < 0.3:
        return extreme
    digits = [
        i
        for i, sign in enumerate(form)
        if sign.isdigit() and not form[i - 1].isalnum() and form[i - 1] not in '."'
    ]
    if not digits:
        return extreme
    start = rng.choice(digits)
    end = start
    while end < len(form) and (form[end].isalnum() or form[end] in ".-+"):
        end += 1
    return form[:start] + extreme + form[end:]


def _object(values: dict[str, str]) -> str:
    return "{" + ", ".join(f'"{name}": {text}' for name, text in values.items()) + "}"


def steady_tokens(client: httpx.Client, number: int) -> list[int]:
    """The token ids of one steady stream."""
    parameters = STEADY[number] | {"max_new_tokens": STEADY_TOKENS, "ignore_eos": True}
    body = {"inputs": [(11 * i + number) % 200 + 20 for i in range(12)], "parameters": parameters}
    with client.stream("POST", "/generate_stream", json=body) as response:
        assert response.status_code == 200, response.read()
        events = [json.loads(line[5:]) for line in response.iter_lines() if line.startswith("data:")]
    return [event["token"]["id"] for event in events]


def run(url: str, cases: int, seed: int, at_once: int = 8) -> Report:
    report, stop, lock = Report(), threading.Event(), threading.Lock()
    rng = random.Random(seed)
    bodies = [case(rng) for _ in range(cases)]
    with http_client(url, timeout=120) as client:
        expected = [steady_tokens(client, number) for number in range(len(STEADY))]

        def steady(number: int) -> None:
            while True:
                tokens = steady_tokens(client, number)
                with lock:
                    report.streams += 1
                    if tokens != expected[number]:
                        report.problems.append(f"steady stream {number}: {tokens[-5:]}, {len(tokens)} tokens")
                if stop.is_set():
                    return

        def send(path: str, body: str) -> None:
            response = client.post(path, content=body.encode(), headers={"Content-Type": "application/json"})
            problem = _problem(response)
            with lock:
                report.statuses[response.status_code] += 1
                report.ended_with_error += response.status_code == 200 and '"error"' in response.text
                if problem:
                    report.problems.append(f"{path} {body[:600]}: {problem}")

        with ThreadPoolExecutor(len(STEADY)) as streams, ThreadPoolExecutor(at_once) as senders:
            running = [streams.submit(steady, number) for number in range(len(STEADY))]
            try:
                list(senders.map(send, *zip(*bodies, strict=True)))
            finally:
                stop.set()
            for future in running:
                future.result()
    return report


def _problem(response: httpx.Response) -> str:
    """What is wrong with an answer; "" if nothing is."""
    if response.status_code not in (200, 400, 408, 422):
        return f"{response.status_code} {response.text[:300]}"
    lines = (
        response.text.splitlines() if "event-stream" in response.headers["content-type"] else [response.text]
    )
    try:
        for line in lines:
            data = line.removeprefix("data:").strip()
            if data and data != "[DONE]":
                json.loads(data, parse_constant=_no_json)
    except ValueError as error:
        return f"{error}: {response.text[:300]}"
    if response.status_code == 200 and "the model" in response.text and '"error"' in response.text:
        return response.text[-300:]
    return ""


def _no_json(text: str) -> Any:
    raise ValueError(f"{text} in an answer")
