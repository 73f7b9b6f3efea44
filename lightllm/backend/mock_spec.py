"""The script of the mock backend: what `--mock_backend key=value,...` may say."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from lightllm.backend.mock_replies import Reply, read_replies
from lightllm.errors import InvalidOption


@dataclasses.dataclass(frozen=True)
class MockSpec:
    """See docs/mock_backend.md. Times are per round or token of compute; ids come from the vocabulary without EOS."""

    step_ms: float = 0.0
    token_us: float = 0.0
    init_ms: float = 0.0
    eos_after: int = 0
    """Output tokens of a request, the EOS included; 0: no EOS, only max_new_tokens ends it."""
    lengths: tuple[int, int] | None = None
    """(low, high): output length drawn for each request from its seed, both ends included; instead of eos_after."""
    tokens: str = "hash"
    """hash: a fixed function of (seed, choice, position); cycle: consecutive ids from the seed on."""
    text: str = ""
    """Answers with the tokens of this text, then EOS; instead of `tokens`."""
    replies: tuple[Reply, ...] = ()
    """Answers with one of these texts, by what stands in the prompt; instead of `text`."""
    round_tokens: tuple[int, int] = (1, 1)
    """(low, high): tokens that a decode row brings in one round, drawn for each round; no more than the round asks for."""
    vocab_size: int = 0
    """0: that of the model folder."""
    slots: int = 0
    """KV slots; 0: --max_total_token_num, or a million."""
    fail_every: int = 0
    """Every so many-th round fails."""
    fail_oom: bool = False
    """These failures count as out of memory."""
    die_after: int = 0
    """The process ends with an error in this round."""
    check: bool = True
    """Refuse rounds that a device could not compute rightly."""

    @classmethod
    def parse(cls, text: str) -> "MockSpec":
        """Raises `InvalidOption` naming the key. `text=` takes the rest of the line, commas included."""
        values: dict[str, object] = {}
        rest = text.strip()
        while rest:
            key, equals, rest = rest.partition("=")
            key = key.strip()
            value, _, rest = (rest, "", "") if key == "text" else rest.partition(",")
            if not equals or key not in _PARSERS:
                raise InvalidOption(
                    f"--mock_backend: {key!r} is not `key=value` with a known key.",
                    f"Keys: {', '.join(_PARSERS)}.",
                )
            try:
                values[key] = _PARSERS[key](value)
            except ValueError as error:
                raise InvalidOption(f"--mock_backend: {key}={value} has a wrong value: {error}.") from error
        return cls(**values)  # type: ignore[arg-type]


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise ValueError("must be 0 or more")
    return number


def _duration(text: str) -> float:
    number = float(text)
    if not 0.0 <= number < 1e9:
        raise ValueError("must be 0 or more")
    return number


def _flag(text: str) -> bool:
    if text not in ("0", "1"):
        raise ValueError("must be 0 or 1")
    return text == "1"


def _range(text: str) -> tuple[int, int]:
    low, _, high = text.partition(":")
    bounds = int(low), int(high or low)
    if not 1 <= bounds[0] <= bounds[1]:
        raise ValueError("must be LOW:HIGH with 1 <= LOW <= HIGH")
    return bounds


def _kind(text: str) -> str:
    if text not in ("hash", "cycle"):
        raise ValueError("must be hash or cycle")
    return text


_PARSERS: dict[str, Callable[[str], object]] = {
    "step_ms": _duration, "token_us": _duration, "init_ms": _duration, "eos_after": _count, "lengths": _range,
    "tokens": _kind, "round_tokens": _range, "vocab_size": _count, "slots": _count, "fail_every": _count, "fail_oom": _flag,
    "die_after": _count, "check": _flag, "text": str,
    "replies": read_replies,
}  # fmt: skip
