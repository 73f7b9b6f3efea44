"""Whether a constraint can be obeyed: it is within the limits, and the library can read it."""

from __future__ import annotations

import functools
import re
from concurrent.futures import ThreadPoolExecutor

from lightllm.constraints import limits
from lightllm.constraints.deep_threads import deep_threads
from lightllm.constraints.grammars import (
    KEPT_TEXTS,
    bytes_tokenizer,
    constraint_of,
    is_installed,
    make_matcher,
)
from lightllm.errors import InvalidParameter
from lightllm.sampling_params import SamplingParams

_LABELS = {
    "regular_constraint": ("regular_expression", "parse_pattern_error"),
    "guided_grammar": ("guided_grammar", "compile_grammar_error"),
    "guided_json": ("guided_json", "compile_grammar_error"),
}
"""How LightLLM's messages name a constraint, and what is wrong with it."""
_REGEX_ERROR = re.compile(r"(?:^error|\(in regex\)): (?!regex parse error)(.*)$", re.MULTILINE)
_SCHEMA_ERROR = re.compile(r"^at \d+\(\d+\): failed to compile JSON schema: (.*)$", re.MULTILINE)
"""Of a schema in a grammar; what follows shows the grammar."""
_TOKEN = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"|/[^/\\]*+(?:\\.[^/\\]*+)*+/|<\[\d+\]>', re.DOTALL)
"""A string or a regular expression of a grammar, or a special token."""
_SHOWN = 60
"""Characters of a constraint, and five times as many of the library's message, that a client is told."""


@functools.cache
def check_threads() -> ThreadPoolExecutor:
    """Where constraints are checked. The library releases the GIL."""
    return deep_threads(2, "check-constraints")


def check_constraint(params: SamplingParams, mode: str = "llguidance") -> None:
    """Raises `InvalidParameter` unless the constraint of a verified `params`, if it has one, can be obeyed.

    mode: the option --output_constraint_mode. Takes some milliseconds for ordinary constraints, 0.4 s at most; the
    outcome is kept. Waits for one of `check_threads`; a caller in one of them calls `check_here`.
    """
    if params.constrained:
        check_threads().submit(check_here, params, mode).result()


def check_here(params: SamplingParams, mode: str) -> None:
    """`check_constraint` in the present thread."""
    name, text, _ = constraint_of(params)  # what comes before it is the Http Server's own
    if not name:
        return
    if mode == "none":
        raise InvalidParameter(
            f"{_said(name)} is not available: this server was started with --output_constraint_mode none; leave the "
            "constraint out, or the option",
            param=_said(name),
        )
    if not is_installed():
        raise InvalidParameter(
            f"{_said(name)} needs a package that this server does not have: pip install 'lightllm[constraints]'",
            param=_said(name),
        )
    error = _check(name, text)
    if error and name == "call_grammar":
        raise InvalidParameter(
            f"tools: calls with these schemas cannot be guaranteed: {error}", param="tools"
        )
    if error:
        label, problem = _LABELS[name]
        shown = text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
        raise InvalidParameter(f"{label} '{shown}' has {problem}: {error}", param=name)


def _said(name: str) -> str:
    """What a client has asked for."""
    return "tool_choice" if name == "call_grammar" else name


@functools.lru_cache(KEPT_TEXTS)
def _check(name: str, text: str) -> str:
    """What is wrong with a constraint; "" if nothing is. A matcher over the 256 bytes is made, and asked what may come first:
    some errors show up only then."""
    error = limits.find_violation(name, text)
    if error:
        return error
    try:
        if name == "call_grammar":
            text = _TOKEN.sub(_without_token, text)
        matcher = make_matcher(bytes_tokenizer(), name, text)
        if not matcher.is_error():
            matcher.compute_bitmask()
    except Exception as error:  # the library's parsers raise what they like
        return _readable(str(error) or type(error).__name__)
    return _readable(matcher.get_error())


def _without_token(part: re.Match[str]) -> str:
    """Bytes have no special tokens; in a string, `<[7]>` is text."""
    return '"\\u0001"' if part[0].startswith("<") else part[0]


def _readable(message: str) -> str:
    """One line. Of a regular expression's error, which is drawn over several, only what is wrong."""
    wrong = _REGEX_ERROR.search(message) or _SCHEMA_ERROR.search(message)
    message = wrong[1] if wrong else message.removesuffix("<non-verbose/>")
    message = " ".join(message[: 5 * _SHOWN].split())
    return "nothing can match it" if message == "NoExtensionBias" else message
