"""What the launch command does: options, model folder, socket, runtime folder, and then the Supervisor."""

from __future__ import annotations

import dataclasses
import logging
import os
import resource
from collections.abc import Callable, Sequence

import setproctitle

from lightllm import __version__
from lightllm.config import ServerConfig
from lightllm.config_sources import parse
from lightllm.errors import NodeLost, StartupError
from lightllm.http.connection_counts import ConnectionCounts
from lightllm.images.serving import serves_images
from lightllm.ipc.child import set_up_logging
from lightllm.ipc.image_folder import SHARED_MEMORY
from lightllm.ipc.runtime_dir import RuntimeDir, remove_abandoned
from lightllm.ipc.snapshot import SnapshotReader
from lightllm.ops import cpu_kind
from lightllm.server.environment import environment_warnings
from lightllm.server.kept_files import KeptFiles
from lightllm.server.listener import open_listener, url_of
from lightllm.server.log_output import LogOutput
from lightllm.server.plan import ChildSpec, plan_backends, plan_children
from lightllm.server.prepare import resolve_config
from lightllm.server.start_table import PhaseClock, Phases, format_table
from lightllm.server.supervisor import ProcessFailed, Supervisor
from lightllm.server.vision import make_cache_folder


def launch(argv: Sequence[str]) -> int:
    """Runs a server until it is stopped; returns the exit code."""
    clock = PhaseClock()
    clock.end("python")
    output = LogOutput()
    try:
        return _Launch(output, clock).run(argv)
    finally:
        output.close()


class _Launch:
    """One launch. `output`: where everything goes that an operator is to read."""

    def __init__(self, output: LogOutput, clock: PhaseClock) -> None:
        self._output = output
        self._clock = clock

    def run(self, argv: Sequence[str]) -> int:
        try:
            config, warnings = parse(argv)
            setproctitle.setproctitle("lightllm api_server")  # and no --api_key in the list of processes
            set_up_logging("supervisor", config.log_level, self._output)
            for warning in warnings + environment_warnings():
                logging.getLogger("supervisor").warning(warning)
            return self._serve(config)
        except StartupError as error:
            self._say(f"lightllm: error: {_one_line(str(error))}")
            return 2

    def _serve(self, config: ServerConfig) -> int:
        clock = self._clock
        clock.end("options")
        config = resolve_config(config)
        clock.end("model folder")
        if config.node_rank:
            ranks = config.node_ranks
            which = (
                f"node {config.node_rank} of {config.nnodes}, ranks {ranks[0]} to {ranks[-1]} of {config.tp}"
            )
            return self._supervise(config, plan_backends(config), lambda runtime: which)
        with open_listener(config.host, config.port) as listener, KeptFiles(config) as files:
            config = dataclasses.replace(files.config, port=listener.getsockname()[1])  # of `--port 0`

            def ready(runtime: RuntimeDir) -> str:
                slots = SnapshotReader(runtime.snapshot_file).read().slots_total
                return f"{url} — model {' '.join(config.model_name or ())} — {slots} slots"

            url = url_of(listener, "https" if config.ssl_certfile else "http")
            descriptors = files.descriptors
            if config.request_log == "-":  # the standard output of a child is a pipe to the log
                output = os.dup(1)
                config = dataclasses.replace(config, request_log=f"/dev/fd/{output}")
                descriptors = (*descriptors, output)
            specs = plan_children(config, listener.fileno(), descriptors)
            return self._supervise(config, specs, ready, url, files)

    def _supervise(
        self,
        config: ServerConfig,
        specs: list[ChildSpec],
        ready: Callable[[RuntimeDir], str],
        url: str = "",
        files: KeptFiles | None = None,
    ) -> int:
        """Runs the children until they are stopped. ready: what to say when all are; url: where they serve, "": not here."""
        clock, served = self._clock, False
        runtime = RuntimeDir.create()
        remove_abandoned(SHARED_MEMORY)  # images of a server that saw, and was killed, may take gigabytes
        images = None
        try:
            if serves_images(config):
                images = make_cache_folder(config, runtime)
                config = dataclasses.replace(config, cache_capacity_bytes=images.capacity_bytes)
            runtime.write_config(config.to_json())
            ConnectionCounts(runtime.connections_file, config.httpserver_workers)
            logging.getLogger("supervisor").info("processor: %s", cpu_kind.described())
            _raise_descriptor_limit()
            clock.end("socket and runtime folder")

            def on_ready(table: dict[str, Phases]) -> None:
                nonlocal served
                served = True
                logging.getLogger("supervisor").info(format_table(clock.total, table))
                self._say(f"lightllm {__version__} ready: {ready(runtime)} — started in {clock.total:.1f} s")
                if url:
                    self._say(
                        f"Uvicorn running on {url}"
                    )  # scripts that start LightLLM or vLLM wait for this line

            return Supervisor(config, runtime, clock, self._output, files).run(specs, on_ready)
        except ProcessFailed as failure:
            self._report_failure(failure, served)
            return 1 if served else 2
        except NodeLost as lost:
            self._say(f"lightllm: error: {_one_line(str(lost))}")
            return 1 if served else 2
        finally:
            if images is not None:
                images.remove()
            runtime.remove()

    def _report_failure(self, failure: ProcessFailed, served: bool) -> None:
        """The cause in one line, after the last lines of the process where it could not say the cause itself."""
        for line in failure.last_lines:
            self._say(f"  {failure.name} | {line}")
        what = "failed" if served else "failed to start"
        reason = _one_line(f"{failure.reason} {failure.remedy}")
        self._say(f"lightllm: error: {failure.name} {what}: {reason}")

    def _say(self, line: str) -> None:
        """A line for the operator whatever the log level."""
        self._output.write(f"{line}\n")


def _raise_descriptor_limit() -> None:
    """Every connection is a descriptor: children inherit the highest limit that is allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _one_line(text: str) -> str:
    return " ".join(text.split())
