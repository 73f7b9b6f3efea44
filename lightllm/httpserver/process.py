"""The Http Server process: loads the tokenizer, serves on the socket that the Supervisor opened, obeys its commands."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import socket
import time
from collections.abc import Callable, Iterator

import uvicorn
import uvloop

from lightllm.errors import ServerStopping, StartupError
from lightllm.httpserver.acceptor import Acceptor, connection_limit
from lightllm.httpserver.app import create_app
from lightllm.httpserver.body_budget import give_back_large_blocks
from lightllm.httpserver.engine_client import EngineClient
from lightllm.httpserver.http_protocol import BoundedHttpProtocol
from lightllm.httpserver.metric_store import MetricStore
from lightllm.httpserver.prompts import PromptEncoder
from lightllm.httpserver.server_view import ServerView
from lightllm.httpserver.state import ServerState
from lightllm.ipc.channels import make_context
from lightllm.ipc.child import Child
from lightllm.ipc.stalls import stall_seconds
from lightllm.protocol.control import Command
from lightllm.protocol.metrics import HTTP_METRICS, LOOP_LAG_LATEST, LOOP_LAG_SECONDS
from lightllm.tokenizer import load_tokenizer
from lightllm.tokenizer.model_files import generation_defaults, read_model_config
from lightllm.tokenizer.overruled import log_overruled

_LAG_INTERVAL = 0.5
_LAST_WRITES_SECONDS = 0.8
"""After `stop`: how long clients may take to read the end of their answers."""


def run(child: Child, worker: int, fd: int) -> None:
    """Serves until the Supervisor says stop; then open streams end with an error event."""
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    give_back_large_blocks()
    started = time.monotonic()
    child.report("loading", "tokenizer")
    state = load_state(child, worker)
    seconds = {"tokenizer": time.monotonic() - started}
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(child, state, socket.socket(fileno=fd), seconds))


def load_state(child: Child, worker: int) -> ServerState:
    """Tokenizer, defaults, metrics and the client of the engine (not connected yet)."""
    config = child.config
    if config.model_dir is None:
        raise StartupError("no model folder was resolved.", "Give --model_dir.")
    tokenizer = load_tokenizer(
        config.model_dir, trust_remote_code=config.trust_remote_code, chat_template=config.chat_template
    )
    if worker == 0:
        log_overruled(config.model_dir, tokenizer, config.eos_id)
    engine = EngineClient(
        child.runtime,
        MetricStore(child.runtime.metrics_dir / f"http-{worker}", HTTP_METRICS),
        worker=worker,
        workers=config.httpserver_workers,
        request_timeout=config.request_timeout,
        stream_interval=config.stream_interval,
        sse_keep_alive=config.sse_keep_alive,
    )
    encoder = PromptEncoder(tokenizer, config.long_truncation_mode, config.max_req_input_len)
    view = ServerView(child.runtime.snapshot_file, stall_seconds(config))
    reward_token_id = None
    if config.use_reward_model:
        reward_token_id = read_model_config(config.model_dir).get("reward_token_id")
    defaults = generation_defaults(config.model_dir)
    return ServerState(config, engine, view, encoder, defaults, reward_token_id)


async def _serve(
    child: Child, state: ServerState, listener: socket.socket, seconds: dict[str, float]
) -> None:
    started = time.monotonic()
    loop = asyncio.get_running_loop()
    context = make_context()
    state.engine.connect(context, loop)

    def on_started() -> None:
        gc.freeze()
        seconds["app"] = time.monotonic() - started
        child.report("ready", seconds=seconds)

    server = _Server(make_config(state), on_started, state.engine)

    def obey(command: Command) -> None:
        state.view.draining = True
        server.drain()
        if command.action == "stop":
            server.should_exit = True

    def pass_on(command: Command) -> None:
        if not loop.is_closed():  # the channel's end of file comes when all is over
            loop.call_soon_threadsafe(obey, command)

    child.on_command(pass_on)
    lag = loop.create_task(_measure_lag(state.engine.store))
    templates = loop.create_task(state.encoder.check_chat_templates())
    try:
        await server.serve(sockets=[listener])
    finally:
        lag.cancel()
        templates.cancel()
        state.encoder.close()
        state.engine.close()
        context.term()


def make_config(state: ServerState) -> uvicorn.Config:
    """uvicorn as we run it."""
    return uvicorn.Config(
        create_app(state),
        http=BoundedHttpProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=state.config.timeout_keep_alive,
        timeout_graceful_shutdown=1,
    )


class _Server(uvicorn.Server):
    """Leaves signals alone (the Supervisor decides), says when it listens, and ends what is open at its end."""

    def __init__(self, config: uvicorn.Config, on_started: Callable[[], None], engine: EngineClient) -> None:
        super().__init__(config)
        self._on_started = on_started
        self._engine = engine

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup([])
        self._acceptors = [
            Acceptor(listener, self._make_protocol, self.server_state.connections, connection_limit())
            for listener in sockets or []
        ]
        self._on_started()

    def drain(self) -> None:
        """No connection outlives its answer: clients and proxies go elsewhere. Idle ones are closed, so that no request is
        sent on them; a connection on which one is arriving stays until that is answered."""
        for connection in list(self.server_state.connections):
            connection.drain()  # type: ignore[union-attr]

    def _make_protocol(self) -> asyncio.Protocol:
        return self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Requests are told that it is over. Who does not read that in time loses the connection: every handler ends
        in an orderly way, while the engine's sockets are still open."""
        self._engine.end_all(ServerStopping("the server is shutting down", retry_after=5))
        for acceptor in self._acceptors:
            acceptor.close()
        asyncio.get_running_loop().call_later(_LAST_WRITES_SECONDS, self._drop_connections)
        await super().shutdown([])

    def _drop_connections(self) -> None:
        for connection in list(self.server_state.connections):
            connection.transport.abort()  # type: ignore[union-attr]

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:  # type: ignore[override]
        yield


async def _measure_lag(store: MetricStore) -> None:
    """How late the event loop runs: what every client waits besides its own work."""
    loop = asyncio.get_running_loop()
    while True:
        before = loop.time()
        await asyncio.sleep(_LAG_INTERVAL)
        lag = max(0.0, loop.time() - before - _LAG_INTERVAL)
        store.observe(LOOP_LAG_SECONDS, lag)
        store.set(LOOP_LAG_LATEST, lag)
