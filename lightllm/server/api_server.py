"""The launch command: `python -m lightllm.server.api_server [--model_dir DIR] [options]`.

Exit codes: 0 after a requested stop, 1 when a process failed while serving, 2 when the start failed, 130 when a second
Ctrl-C cut the stop short.
"""

from __future__ import annotations

import logging
import os
import resource
import sys
from collections.abc import Callable, Sequence

import setproctitle

from lightllm import __version__
from lightllm.config import ServerConfig
from lightllm.config_sources import parse
from lightllm.errors import StartupError
from lightllm.ipc.child import set_up_logging
from lightllm.ipc.runtime_dir import RuntimeDir
from lightllm.ipc.snapshot import SnapshotReader
from lightllm.server.environment import environment_warnings
from lightllm.server.listener import open_listener, url_of
from lightllm.server.plan import ChildSpec, plan_backends, plan_children
from lightllm.server.prepare import resolve_config, with_port
from lightllm.server.start_table import PhaseClock, Phases, format_table
from lightllm.server.supervisor import ProcessFailed, Supervisor


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a server until it is stopped; returns the exit code."""
    clock = PhaseClock()
    clock.end("python")
    try:
        config, warnings = parse(sys.argv[1:] if argv is None else argv)
        setproctitle.setproctitle("lightllm api_server")  # and no --api_key in the list of processes
        set_up_logging("supervisor", config.log_level)
        for warning in warnings + environment_warnings():
            logging.getLogger("supervisor").warning(warning)
        return _serve(config, clock)
    except StartupError as error:
        _say(f"lightllm: error: {_one_line(str(error))}")
        return 2
    except KeyboardInterrupt:
        return 130


def _serve(config: ServerConfig, clock: PhaseClock) -> int:
    clock.end("options")
    config = resolve_config(config)
    clock.end("model folder")
    if config.node_rank:
        ranks = config.node_ranks
        which = f"node {config.node_rank} of {config.nnodes}, ranks {ranks[0]} to {ranks[-1]} of {config.tp}"
        return _run(config, clock, plan_backends(config), lambda runtime: which)
    with open_listener(config.host, config.port) as listener:
        config = with_port(config, listener)

        def ready(runtime: RuntimeDir) -> str:
            slots = SnapshotReader(runtime.snapshot_file).read().slots_total
            return f"{url} — model {config.model_name} — {slots} slots"

        url = url_of(listener)
        return _run(config, clock, plan_children(config, listener.fileno()), ready, url)


def _run(
    config: ServerConfig,
    clock: PhaseClock,
    specs: list[ChildSpec],
    ready: Callable[[RuntimeDir], str],
    url: str = "",
) -> int:
    """Runs the children until they are stopped. ready: what to say when all are; url: where they serve, "": not here."""
    served = False
    runtime = RuntimeDir.create()
    try:
        runtime.write_config(config.to_json())
        _raise_descriptor_limit()
        clock.end("socket and runtime folder")

        def on_ready(table: dict[str, Phases]) -> None:
            nonlocal served
            served = True
            logging.getLogger("supervisor").info(format_table(clock.total, table))
            _say(f"lightllm {__version__} ready: {ready(runtime)} — started in {clock.total:.1f} s")
            if url:
                _say(f"Uvicorn running on {url}")  # scripts that start LightLLM or vLLM wait for this line

        return Supervisor(config, runtime, clock).run(specs, on_ready)
    except ProcessFailed as failure:
        _report_failure(failure, served)
        return 1 if served else 2
    finally:
        runtime.remove()


def _report_failure(failure: ProcessFailed, served: bool) -> None:
    """The cause in one line, after the last lines of the process where it could not say the cause itself."""
    for line in failure.last_lines:
        _say(f"  {failure.name} | {line}")
    what = "failed" if served else "failed to start"
    reason = _one_line(f"{failure.reason} {failure.remedy}")
    _say(f"lightllm: error: {failure.name} {what}: {reason}")


def _raise_descriptor_limit() -> None:
    """Every connection is a descriptor: children inherit the highest limit that is allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _say(line: str) -> None:
    """A line for the operator whatever the log level."""
    os.write(sys.stderr.fileno(), f"{line}\n".encode())


if __name__ == "__main__":
    sys.exit(main())
