"""Options of the cluster's commands: the command line, then the environment (`LIGHTLLM_CONTROLLER_<NAME>`), then the default."""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from lightllm.command_line import CommandParser
from lightllm.errors import InvalidOption
from lightllm.option_spec import Option

Config = TypeVar("Config")


def parse_options(
    kind: type[Config],
    argv: Sequence[str],
    prog: str,
    description: str,
    others: Mapping[str, str] | None = None,
    prefix: str = "LIGHTLLM_CONTROLLER_",
    environ: Mapping[str, str] = os.environ,
) -> Config:
    """Reads a dataclass whose fields are options. others: names of other tools, and ours for the same. Raises `InvalidOption`."""
    parser = CommandParser(
        others=others, prog=prog, description=description, argument_default=argparse.SUPPRESS
    )
    fields: list[tuple[dataclasses.Field[Any], Option]] = [
        (field, field.metadata["option"])
        for field in dataclasses.fields(kind)  # type: ignore[arg-type]
    ]
    values: dict[str, Any] = {}
    for field, option in fields:
        _declare(parser, field, option)
        text = environ.get(prefix + field.name.upper(), "").strip()
        if text:
            values[field.name] = _convert(field, option, text, prefix + field.name.upper())
    values |= vars(parser.parse_args(argv))
    for field, option in fields:
        value = values.get(field.name)
        if value is not None and option.check and not option.check(value):
            raise InvalidOption(f"--{field.name} must be {option.expects}, got {value}.")
    return kind(**values)


def _declare(parser: argparse.ArgumentParser, field: dataclasses.Field[Any], option: Option) -> None:
    names = (f"--{field.name}", *option.aliases)
    text = option.help.replace("%", "%%")
    if field.default is False:
        parser.add_argument(*names, dest=field.name, action="store_true", help=text)
        return
    default = "" if field.default is None else f" (default: {field.default})"
    parser.add_argument(
        *names, dest=field.name, type=option.type, choices=option.choices, nargs=option.nargs,
        metavar=option.metavar, help=text + default,
    )  # fmt: skip


def _convert(field: dataclasses.Field[Any], option: Option, text: str, where: str) -> Any:
    if field.default is False:
        return text.lower() in ("1", "true", "yes", "on")
    try:
        values = [option.type(part) for part in (text.split() if option.nargs == "+" else [text])]
    except ValueError as error:
        raise InvalidOption(f"{where} has a wrong value: {text!r}.") from error
    if option.choices and values[0] not in option.choices:
        raise InvalidOption(f"{where} {text} is not one of {', '.join(option.choices)}.")
    return values if option.nargs == "+" else values[0]
