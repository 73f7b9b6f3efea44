"""What an option declares of itself beside its type and default: `config.ServerConfig` holds one a field."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True)
class Option:
    """The description of one option; kept in the field's metadata."""

    help: str
    group: str
    type: Callable[[str], Any] = str
    choices: tuple[str, ...] | None = None
    nargs: str | None = None
    aliases: tuple[str, ...] = ()
    check: Callable[[Any], bool] | None = None
    expects: str = ""
    """What `check` wants, in words: "at least 1"."""
    metavar: str | None = None
    const: Any = None
    """Value when the option is given without one (with nargs="?")."""


def option(default: Any, help: str, group: str, **more: Any) -> Any:
    return dataclasses.field(default=default, metadata={"option": Option(help=help, group=group, **more)})


def at_least(low: int) -> dict[str, Any]:
    return {"type": int, "check": lambda v: v >= low, "expects": f"at least {low}"}
