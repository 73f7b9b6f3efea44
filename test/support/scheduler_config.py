"""A scheduler's config from one flat list of names, as tests want it."""

from __future__ import annotations

import dataclasses

from lightllm.config import ServerConfig
from lightllm.router.scheduler_config import SchedulerConfig

RESOLVED = {field.name for field in dataclasses.fields(SchedulerConfig)} - {"options"}


def scheduler_config(**values) -> SchedulerConfig:
    """Names that are none of its own fields are options of the server."""
    own = {name: value for name, value in values.items() if name in RESOLVED}
    options = {name: value for name, value in values.items() if name not in RESOLVED}
    return SchedulerConfig(**own, options=ServerConfig(**options))


def changed(config: SchedulerConfig, **values) -> SchedulerConfig:
    own = {name: value for name, value in values.items() if name in RESOLVED}
    options = {name: value for name, value in values.items() if name not in RESOLVED}
    return dataclasses.replace(config, **own).with_options(**options)
