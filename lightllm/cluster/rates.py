"""What a key may ask for in a minute: requests, and tokens of prompts and answers. Buckets that fill all the time, up to what a
minute brings (token buckets)."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

from lightllm.cluster.ask import Ask
from lightllm.errors import RequestError
from lightllm.http.key_ring import KeyTerms

_TAIL = 1 << 13
"""Bytes at the end of an answer in which its usage is."""
_PROMPT = re.compile(rb'"(?:prompt_tokens|input_tokens|prompt_eval_count)"\s*:\s*(\d{1,9})\b')
_OUTPUT = re.compile(
    rb'"(?:completion_tokens|output_tokens|generated_tokens|count_output_tokens|eval_count)"\s*:\s*(\d{1,9})\b'
)


class RateLimited(RequestError, status=429, code="rate_limit_exceeded", kind="rate_limit_error"):
    """The key has used up what it may ask for in a minute."""


class Bucket:
    def __init__(self, per_minute: float, now: float) -> None:
        self.per_minute = per_minute
        self._level = per_minute
        self._at = now

    def level(self, now: float) -> float:
        self._level = min(self.per_minute, self._level + (now - self._at) * self.per_minute / 60.0)
        self._at = now
        return self._level

    def lacks(self, amount: float, now: float) -> float:
        """Seconds until so much is there; of more than it holds, until it is full."""
        missing = min(amount, self.per_minute) - self.level(now)
        return max(0.0, missing * 60.0 / self.per_minute)

    def take(self, amount: float, now: float) -> None:
        """May leave a debt, which is paid off first; a negative amount is given back."""
        self._level = self.level(now) - amount


class Usage:
    """Shown an answer's parts: the tokens that it tells of, if it does; else its events count."""

    def __init__(self) -> None:
        self._tail = b""
        self._events = 0

    def look(self, part: bytes) -> None:
        self._events += part.count(b"data:")
        self._tail = (self._tail + part)[-_TAIL:]

    def tokens(self, ask: Ask) -> int:
        prompt, output = _PROMPT.findall(self._tail), _OUTPUT.findall(self._tail)
        made = int(output[-1]) if output else self._events or ask.output_tokens
        return (int(prompt[-1]) if prompt else ask.prompt_tokens) + made


class Charge:
    """What one request has been charged."""

    def __init__(self, ask: Ask, bucket: Bucket | None, clock: Callable[[], float]) -> None:
        self._ask = ask
        self._bucket = bucket
        self._now = clock
        self.usage = None if bucket is None else Usage()
        """To be shown the answer; None: tokens are not counted."""
        self._tokens = ask.prompt_tokens + ask.output_tokens
        if bucket is not None:
            bucket.take(self._tokens, clock())

    def settle(self, answered: bool) -> None:
        """It is over: the estimate becomes what it was; a request that got no answer has used no tokens."""
        if self._bucket is None or self.usage is None:
            return
        used = self.usage.tokens(self._ask) if answered else 0
        self._bucket.take(used - self._tokens, self._now())
        self._bucket = None


class Rates:
    def __init__(self, clock: Callable[[], float]) -> None:
        self._now = clock
        self._buckets: dict[tuple[str, str], Bucket] = {}

    def charge(self, key: str, terms: KeyTerms, ask: Ask) -> Charge:
        """key: digest. Raises `RateLimited`."""
        now, who = self._now(), terms.tenant or key
        requests = self._bucket(who, "requests", terms.requests_per_minute)
        tokens = self._bucket(who, "tokens", terms.tokens_per_minute)
        for name, bucket, amount in (
            ("requests", requests, 1.0), ("tokens", tokens, float(ask.prompt_tokens + ask.output_tokens)),
        ):  # fmt: skip
            seconds = bucket.lacks(amount, now) if bucket is not None else 0.0
            if bucket is not None and seconds > 0:
                raise RateLimited(
                    f"the key may ask for {bucket.per_minute:g} {name} a minute, which are used up",
                    retry_after=math.ceil(seconds),
                )
        if requests is not None:
            requests.take(1.0, now)
        return Charge(ask, tokens, self._now)

    def _bucket(self, who: str, what: str, per_minute: float) -> Bucket | None:
        if math.isinf(per_minute):
            return None
        bucket = self._buckets.get((who, what))
        if bucket is None or bucket.per_minute != per_minute:
            bucket = self._buckets[who, what] = Bucket(per_minute, self._now())
        return bucket
