"""The parser of every `lightllm` command: either spelling of an option, and an answer to what does not exist."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from lightllm.errors import InvalidOption
from lightllm.foreign_options import advice


class CommandParser(argparse.ArgumentParser):
    """Names are declared with underscores; `--max-tokens` is `--max_tokens`. Abbreviations are off: `--mem` is an error, not
    a guess. What is wrong raises `InvalidOption`, a line instead of argparse's page of usage."""

    def __init__(
        self,
        known: Iterable[str] | None = None,
        others: Mapping[str, str] | None = None,
        answers: Mapping[str, str] | None = None,
        **more: Any,
    ) -> None:
        """known: names to suggest, by default all; others: names of other tools, and ours for the same; answers: their options
        that nothing here corresponds to, and what to do."""
        super().__init__(allow_abbrev=False, **more)
        self._known, self._others, self._answers = known, others or {}, answers or {}

    def error(self, message: str) -> NoReturn:
        raise InvalidOption(message[:1].upper() + message[1:] + ".", "See --help.")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        words = sys.argv[1:] if args is None else args
        values, unknown = super().parse_known_args([with_underscores(word) for word in words], namespace)
        if unknown:
            raise InvalidOption(
                f"Unrecognized arguments: {' '.join(unknown)}.", self._advice(unknown[0]) or "See --help."
            )
        return values, unknown

    def _advice(self, word: str) -> str:
        """Of short options only those that another tool has: nearly every letter is near to some name."""
        name = word.lstrip("-").partition("=")[0]
        if not word.startswith("--") and not (
            word.startswith("-") and name in {*self._others, *self._answers}
        ):
            return ""
        return advice(name, self._known or self._names(), self._others, answers=self._answers)

    def _names(self) -> list[str]:
        words = (word for action in self._actions for word in action.option_strings)
        return [word[2:] for word in words if word.startswith("--")]


def with_underscores(word: str) -> str:
    """Of `--max-body-mb=3` the name only; what is no option stays as it is."""
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value
