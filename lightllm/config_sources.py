"""Where options come from: the command line, then the environment (`LIGHTLLM_<NAME>`), then `--config FILE.yaml`, then the
default; the first that gives a value wins.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import os
import re
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightllm import __version__
from lightllm.command_line import CommandParser
from lightllm.config import Option, ServerConfig, options
from lightllm.errors import InvalidOption
from lightllm.foreign_options import (
    ANSWERS,
    NOT_YET,
    OUR_OPTIONS,
    TRANSLATED,
    WITHOUT_EFFECT,
    advice,
    notes,
    translate,
)

_KEYS = {"api_key": "clients need no key", "admin_api_key": "there is no admin key"}
"""Options that hold keys, and what it means that there are none."""
_SERVICE_LINK = re.compile(r"(tcp|udp|sctp)://")
"""Kubernetes sets LIGHTLLM_PORT=tcp://10.0.0.1:80 in every pod beside a service that is named lightllm, and
LIGHTLLM_NCCL_PORT beside lightllm-nccl."""


_PATHS = {
    "model_dir",
    "chat_template",
    "cluster_secret_file",
    "api_key_file",
    "ssl_certfile",
    "ssl_keyfile",
    "request_log",
}
_SERVICE_VARIABLE = re.compile(r"_(SERVICE|PORT)_")
"""And these beside them: LIGHTLLM_TP_SERVICE_HOST, LIGHTLLM_TP_PORT_80_TCP."""


def make_parser() -> argparse.ArgumentParser:
    """The command line of the server."""
    parser = CommandParser(
        known=_names(), others=OUR_OPTIONS, answers=ANSWERS, prog="lightllm serve [MODEL]",
        argument_default=argparse.SUPPRESS, description="LightLLM: serve a language model over HTTP. MODEL: as --model_dir.",
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"lightllm {__version__}")
    parser.add_argument(
        "--config", metavar="FILE.yaml", help="Options from a YAML file; the command line wins."
    )
    groups: dict[str, Any] = {}
    for field, option in options():
        group = groups.setdefault(option.group, parser.add_argument_group(option.group))
        names = (f"--{field.name}", *option.aliases)
        help_text = option.help.replace("%", "%%")
        if field.default is False:
            group.add_argument(*names, dest=field.name, action="store_true", help=help_text)
            continue
        default = "" if field.default is None else f" (default: {field.default})"
        extra: dict[str, Any] = {"const": option.const} if option.nargs == "?" else {}
        extra |= {"action": "extend"} if option.extends else {}
        group.add_argument(*names, dest=field.name, type=option.type, choices=option.choices, nargs=option.nargs,
                           metavar=option.metavar, help=help_text + default, **extra)  # fmt: skip
    upstream = parser.add_argument_group("Accepted for compatibility")
    for name, value in NOT_YET.items():
        if value is False:
            upstream.add_argument(f"--{name}", action="store_true", help=argparse.SUPPRESS)
        else:
            upstream.add_argument(f"--{name}", help=argparse.SUPPRESS)
    for name, count in WITHOUT_EFFECT.items():
        if count == 0:
            upstream.add_argument(f"--{name}", action="store_true", help=argparse.SUPPRESS)
        else:
            upstream.add_argument(f"--{name}", nargs="*" if count < 0 else None, help=argparse.SUPPRESS)
    for name, how in TRANSLATED.items():
        spelt = [f"--{each}" for each in (name, *how.get("aliases", ()))]
        reading = {key: how[key] for key in ("type", "choices", "nargs") if key in how}
        upstream.add_argument(*spelt, help=argparse.SUPPRESS, **reading)
    return parser


def parse(argv: Sequence[str], environ: Mapping[str, str] = os.environ) -> tuple[ServerConfig, list[str]]:
    """Reads all sources. Returns the config and warnings for the log; raises `InvalidOption`."""
    given = vars(make_parser().parse_args(argv))
    idle = [f"--{name}" for name in WITHOUT_EFFECT if name in given]
    warnings = [f"without effect in this server: {', '.join(idle)}"] if idle else []
    warnings += notes(given)
    for name, value in NOT_YET.items():
        if name in given and str(given[name]) != str(value):
            shown = f"--{name}" + ("" if given[name] is True else f" {given[name]}")
            raise InvalidOption(f"{shown} is not supported yet.", "Leave it out.")
    values = translate(given, environ)
    if "config" in given:
        path = os.path.expanduser(given.pop("config"))
        stated = _from_yaml(path)
        values |= stated
        if _KEYS.keys() & stated.keys() and readable_by_others(path):
            warnings.append(f"--config {path} holds API keys and can be read by others: chmod 600 {path}")
    values |= _from_environment(environ)
    warnings += _misspelt(environ)
    for name, consequence in _KEYS.items():
        variable = f"LIGHTLLM_{name.upper()}"
        if not environ.get(variable, "x").strip() and name not in values | given:
            warnings.append(f"{variable} is empty: {consequence}")
    names = {field.name for field, _ in options()}
    values |= {name: value for name, value in given.items() if name in names}
    return verify(ServerConfig(**_as_meant(values))), warnings


def verify(config: ServerConfig) -> ServerConfig:
    """Checks every value on its own and in combination; returns the config."""
    for field, option in options():
        value = getattr(config, field.name)
        if value is None:
            continue
        if option.choices and value not in option.choices:
            raise InvalidOption(f"--{field.name} {value} is not one of {', '.join(option.choices)}.")
        if option.check and not option.check(value):
            raise InvalidOption(f"--{field.name} must be {option.expects}, got {value}.")
    if (
        config.max_total_token_num
        and config.max_req_total_len
        and config.max_req_total_len > config.max_total_token_num
    ):
        raise InvalidOption(
            f"--max_req_total_len {config.max_req_total_len} exceeds --max_total_token_num {config.max_total_token_num}.",
            "A request of that length could never run: lower the first or raise the second.",
        )
    chunked = config.chunked_prefill_size and config.batch_max_tokens and not config.disable_chunked_prefill
    if chunked and config.batch_max_tokens < config.chunked_prefill_size:  # type: ignore[operator]
        raise InvalidOption(
            f"--batch_max_tokens {config.batch_max_tokens} is below --chunked_prefill_size {config.chunked_prefill_size}."
        )
    return config


def readable_by_others(path: str | Path) -> bool:
    """Whether the mode of a file with secrets lets its group or everybody read it (as mounted ones often do: then it is
    their owner's choice)."""
    return bool(Path(path).stat().st_mode & (stat.S_IRGRP | stat.S_IROTH))


def _as_meant(values: dict[str, Any]) -> dict[str, Any]:
    """What a shell or a URL would have made of a value: `~` in quotes is a home folder, `[::]` an address."""
    meant = dict(values)
    for name in _PATHS & values.keys():
        meant[name] = os.path.expanduser(values[name])
    host = values.get("host", "")
    if host.startswith("[") and host.endswith("]"):
        meant["host"] = host[1:-1]
    return meant


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for field, option in options():
        variable = f"LIGHTLLM_{field.name.upper()}"
        text = environ.get(variable, "")
        # An orchestrator sets variables that it has no value for to nothing: that is no value here either.
        if text.strip() and not (variable.endswith("_PORT") and _SERVICE_LINK.match(text)):
            values[field.name] = _convert(field, option, text, variable)
    return values


def _misspelt(environ: Mapping[str, str]) -> list[str]:
    """Warnings of variables that are nearly the name of an option. Others may belong to anybody."""
    warnings = []
    for variable in environ.keys() - {f"LIGHTLLM_{name.upper()}" for name in _names()}:
        if variable.startswith("LIGHTLLM_") and not _SERVICE_VARIABLE.search(variable):
            meant = difflib.get_close_matches(variable[9:].lower(), _names(), n=1, cutoff=0.85)
            warnings += [f"{variable} is no option: did you mean LIGHTLLM_{name.upper()}?" for name in meant]
    return sorted(warnings)


def _names() -> list[str]:
    """Of all options, as they are written on the command line."""
    return ["config", *NOT_YET, *(field.name for field, _ in options())]


def _from_yaml(path: str) -> dict[str, Any]:
    import yaml

    try:
        with open(path, encoding="utf-8") as file:
            entries = yaml.safe_load(file) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InvalidOption(f"--config {path}: {error}") from error
    if not isinstance(entries, dict):
        raise InvalidOption(f"--config {path} must hold `option: value` lines.")
    known = {field.name: (field, option) for field, option in options()}
    known |= {alias.lstrip("-"): pair for pair in known.values() for alias in pair[1].aliases}
    values: dict[str, Any] = {}
    for written, value in entries.items():
        name = str(written).replace("-", "_")
        if name not in known:
            raise InvalidOption(f"--config {path}: unknown option {name!r}.", advice(name, known, prefix=""))
        field, option = known[name]
        where = f"{name} in {path}"
        if value is None:  # `option:` without a value leaves the default
            continue
        if option.nargs == "+":
            parts = value if isinstance(value, list) else str(value).split()
            values[field.name] = [_convert_one(option, str(part), where) for part in parts]
        elif isinstance(value, list | dict):
            raise InvalidOption(f"{where} must be a single value, got {value!r}.")
        else:
            values[field.name] = _convert(field, option, str(value), where)
    return values


def _convert(field: dataclasses.Field[Any], option: Option, text: str, where: str) -> Any:
    if field.default is False:
        if text.lower() not in ("1", "true", "yes", "on", "0", "false", "no", "off"):
            raise InvalidOption(f"{where} must be true or false, got {text!r}.")
        return text.lower() in ("1", "true", "yes", "on")
    if option.nargs == "+":
        return [_convert_one(option, part, where) for part in text.split()]
    return _convert_one(option, text, where)


def _convert_one(option: Option, text: str, where: str) -> Any:
    try:
        return option.type(text)
    except ValueError as error:
        kind = {int: "a whole number", float: "a number"}.get(option.type, option.type.__name__)  # type: ignore[call-overload]
        raise InvalidOption(f"{where} must be {kind}, got {text!r}.") from error
