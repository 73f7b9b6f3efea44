"""What an option declares of itself beside its type and default: `config.ServerConfig` holds one a field."""

from __future__ import annotations

import dataclasses
import re
import urllib.parse
from collections.abc import Callable
from typing import Any

MOST_NAME = 256
"""Characters of a model's name, the server's own and those that requests give: it comes back in every event of a stream."""


@dataclasses.dataclass(frozen=True)
class Option:
    """The description of one option; kept in the field's metadata."""

    help: str
    group: str
    type: Callable[[str], Any] = str
    choices: tuple[str, ...] | None = None
    nargs: str | None = None
    extends: bool = False
    """Given again, it adds to its values, with nargs="+"."""
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


def is_gateway(value: Any) -> bool:
    """Whether it is a host, perhaps with a port and a path, of HTTP or HTTPS."""
    if not isinstance(value, str) or set(value) & set(" ?#"):
        return False
    url = urllib.parse.urlsplit(value if "://" in value else f"http://{value}")
    try:
        valid = bool(url.hostname) and url.port != 0
    except ValueError:  # of the port
        return False
    return valid and url.scheme in ("http", "https") and url.username is None


def is_zmq_endpoint(value: Any) -> bool:
    """Whether it is a TCP address, `*` for all of this machine; the next port is free for a second one."""
    match = re.fullmatch(r"tcp://(\*|[^\s/:*]+|\[[0-9a-fA-F:]+\]):([0-9]{1,5})", str(value))
    return match is not None and 0 < int(match[2]) < 65535


def are_model_names(values: Any) -> bool:
    """Whether each can be echoed in every event of a stream."""
    return isinstance(values, list) and all(0 < len(value) <= MOST_NAME for value in values)


def is_collector(value: Any) -> bool:
    """Whether it is a URL of HTTP or HTTPS."""
    return isinstance(value, str) and "://" in value and is_gateway(value)


def are_labels(values: Any) -> bool:
    """Whether each is LABEL=VALUE, as Prometheus wants it of a grouping key."""
    if not isinstance(values, list):
        return False
    matches = [re.fullmatch(r"([a-zA-Z_][a-zA-Z0-9_]*)=.+", value) for value in values]
    return all(match is not None and match[1] != "job" for match in matches)
