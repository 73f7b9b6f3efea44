"""The Http Server process: loads the tokenizer, serves on the socket that the Supervisor opened, obeys its commands."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
import time

import uvloop

from lightllm.config import ServerConfig
from lightllm.errors import InvalidOption, ServerStopping, StartupError
from lightllm.http.body import give_back_large_blocks
from lightllm.http.connection_counts import ConnectionCounts
from lightllm.http.key_ring import KeyRing
from lightllm.http.metric_store import MetricStore
from lightllm.http.server import HttpServer, make_config
from lightllm.http.tls import ServerTls
from lightllm.httpserver.app import create_app
from lightllm.httpserver.engine_client import EngineClient
from lightllm.httpserver.reading.prompts import PromptEncoder
from lightllm.httpserver.state import ServerState, ServerView
from lightllm.httpserver.vector_model import VectorModel
from lightllm.images.layouts.registry import layout_of
from lightllm.images.serving import embedding_width, serves_images
from lightllm.ipc.beats import Beat
from lightllm.ipc.channels import make_context
from lightllm.ipc.child import Child
from lightllm.ipc.runtime_dir import RuntimeDir
from lightllm.ipc.stalls import round_seconds
from lightllm.model_folder.config import eos_token_ids, read_model_config
from lightllm.model_folder.generation import generation_defaults
from lightllm.parsers.chat_format import ChatFormat, find_format
from lightllm.protocol.control import Command
from lightllm.protocol.metrics import HTTP_METRICS, LOOP_LAG_LATEST, LOOP_LAG_SECONDS
from lightllm.tokenizer import load_tokenizer
from lightllm.tokenizer.overruled import log_overruled
from lightllm.tokenizer.tokenizer import Tokenizer

_LAG_INTERVAL = 0.5


def run(child: Child, worker: int, fd: int) -> None:
    """Serves until the Supervisor says stop; then open streams end with an error event."""
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    give_back_large_blocks()
    started = time.monotonic()
    child.report("loading", "tokenizer")
    state = load_state(child, worker)
    seconds = {"tokenizer": time.monotonic() - started}
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(child, state, worker, socket.socket(fileno=fd), seconds))


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
    store = MetricStore(child.runtime.metrics_dir / f"http-{worker}", HTTP_METRICS)
    engine = EngineClient(child.runtime, store, config, worker)
    if serves_images(config):
        _open_images(engine, child.runtime, config, worker, tokenizer)
    watch_ends(engine, config, tokenizer)
    encoder = PromptEncoder(tokenizer, config.long_truncation_mode, config.max_req_input_len)
    view = ServerView(child.runtime, round_seconds(config))
    reward_token_id = None
    if config.use_reward_model:
        reward_token_id = read_model_config(config.model_dir).get("reward_token_id")
    defaults = generation_defaults(config.model_dir)
    ends = frozenset(eos_token_ids(config.model_dir, config.eos_id))
    chat_format = _chat_format(config, tokenizer, worker)
    vectors = VectorModel.of(config)
    return ServerState(config, engine, view, encoder, defaults, reward_token_id, ends, chat_format, vectors)


def _chat_format(config: ServerConfig, tokenizer: Tokenizer, worker: int) -> ChatFormat:
    special = frozenset(filter(None, map(tokenizer.token_text, tokenizer.special_ids)))
    found, line = find_format(
        config.tool_call_parser,
        config.reasoning_parser,
        tokenizer.chat_templates.sources,
        tokenizer.token_id,
        special,
    )
    if worker == 0:
        logging.getLogger(__name__).info("%s", line)
    return found


def _open_images(
    engine: EngineClient, runtime: RuntimeDir, config: ServerConfig, worker: int, tokenizer: Tokenizer
) -> None:
    """For a model that sees."""
    from lightllm.httpserver.images import Images  # loads Pillow
    from lightllm.ipc.image_cache import ImageCache

    assert config.model_dir is not None
    layout = layout_of(config.model_dir, tokenizer.token_id)
    assert layout is not None
    width, cache = embedding_width(config.model_dir), ImageCache(runtime, worker)
    engine.images = Images(config, layout, width, cache, engine.store, engine.flush_cache)


def watch_ends(engine: EngineClient, config: ServerConfig, tokenizer: Tokenizer) -> None:
    """Opens what keeps what became of requests. Raises `StartupError`."""
    if config.request_log is not None:
        from lightllm.httpserver.operating.request_log import RequestLog

        decode = tokenizer.decode if config.request_log_prompts else None
        engine.watchers.append(RequestLog(config.request_log, engine.store, decode))
    if config.otlp_traces_endpoint is not None:
        from lightllm.httpserver.operating.traces import Traces  # loads the SDK

        engine.watchers.append(Traces(config.otlp_traces_endpoint, (config.model_name or [""])[0]))


async def _serve(
    child: Child, state: ServerState, worker: int, listener: socket.socket, seconds: dict[str, float]
) -> None:
    started = time.monotonic()
    loop = asyncio.get_running_loop()
    context = make_context()
    state.engine.connect(context, loop)

    def on_started() -> None:
        gc.freeze()
        seconds["app"] = time.monotonic() - started
        child.report("ready", seconds=seconds)

    def end_requests() -> None:
        state.engine.fail_all(ServerStopping("the server is shutting down", retry_after=5))

    tls = None
    if state.config.ssl_certfile is not None:
        tls = ServerTls(state.config.ssl_certfile, state.config.ssl_keyfile)
    counts = None
    if state.config.httpserver_workers > 1:
        counts = ConnectionCounts(child.runtime.connections_file, state.config.httpserver_workers, worker)
    config = make_config(create_app(state), state.config.timeout_keep_alive)
    server = HttpServer(
        config, on_started, end_requests, tls, counts, state.config.max_connections_per_client
    )

    def obey(command: Command) -> None:
        if command.action == "reload":
            _reload(state.keys, tls)
            return
        state.view.draining = True
        server.drain()
        if command.action == "stop":
            server.should_exit = True

    def pass_on(command: Command) -> None:
        if not loop.is_closed():  # the channel's end of file comes when all is over
            loop.call_soon_threadsafe(obey, command)

    child.on_command(pass_on)
    lag = loop.create_task(_measure_lag(state.engine.store, child.beat))
    templates = loop.create_task(state.encoder.check_chat_templates())
    try:
        await server.serve(sockets=[listener])
    finally:
        lag.cancel()
        templates.cancel()
        state.encoder.close()
        state.engine.close()
        for watcher in state.engine.watchers:
            await asyncio.to_thread(watcher.close)
        context.term()


def _reload(*parts: KeyRing | ServerTls | None) -> None:
    """What cannot be read stays as it is."""
    for part in parts:
        try:
            if part is not None:
                part.reload()
        except InvalidOption as error:
            logging.getLogger("http").error("not read anew: %s", error)


async def _measure_lag(store: MetricStore, beat: Beat) -> None:
    """How late the event loop runs: what every client waits besides its own work; and that it runs."""
    loop = asyncio.get_running_loop()
    while True:
        beat.beat()
        before = loop.time()
        await asyncio.sleep(_LAG_INTERVAL)
        lag = max(0.0, loop.time() - before - _LAG_INTERVAL)
        store.observe(LOOP_LAG_SECONDS, lag)
        store.set(LOOP_LAG_LATEST, lag)
