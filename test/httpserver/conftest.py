"""The real Http Server (uvicorn in a thread, real sockets) before a scripted engine."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvloop
from support.checkpoints import write_tokenizer
from support.fake_engine import FakeEngine
from support.http_client import http_client

from lightllm.config import ServerConfig
from lightllm.http.metric_store import MetricStore
from lightllm.http.server import HttpServer, make_config
from lightllm.http.tls import ServerTls
from lightllm.httpserver.app import create_app
from lightllm.httpserver.engine_client import EngineClient
from lightllm.httpserver.reading.prompts import PromptEncoder
from lightllm.httpserver.state import ServerState, ServerView
from lightllm.httpserver.vector_model import VectorModel
from lightllm.ipc.channels import make_context
from lightllm.ipc.runtime_dir import RuntimeDir
from lightllm.ipc.stalls import round_seconds
from lightllm.parsers.chat_format import ChatFormat
from lightllm.protocol.metrics import HTTP_METRICS
from lightllm.tokenizer import Tokenizer, load_tokenizer


class Worker:
    """One Http worker in a thread."""

    def __init__(
        self, runtime: RuntimeDir, tokenizer: Tokenizer, config: ServerConfig, worker: int,
        chat_format: ChatFormat | None = None, vectors: VectorModel | None = None,
    ) -> None:  # fmt: skip
        store = MetricStore(runtime.metrics_dir / f"http-{worker}", HTTP_METRICS)
        self.engine = EngineClient(runtime, store, config, worker)
        self.encoder = PromptEncoder(tokenizer, config.long_truncation_mode, config.max_req_input_len)
        self.view = ServerView(runtime, round_seconds(config))
        self.state = ServerState(
            config,
            self.engine,
            self.view,
            self.encoder,
            {},
            chat_format=chat_format or ChatFormat(),
            vectors=vectors,
        )
        self.errors: list[dict] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        tls = None
        if config.ssl_certfile is not None:
            tls = ServerTls(config.ssl_certfile, config.ssl_keyfile)
        self.url = f"http{'s' * (tls is not None)}://127.0.0.1:{self.port}"
        config_of_uvicorn = make_config(create_app(self.state), config.timeout_keep_alive)
        self.app: Any = config_of_uvicorn.app
        self._server = HttpServer(config_of_uvicorn, lambda: None, lambda: None, tls)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def connections(self) -> list[Any]:
        return list(self._server.server_state.connections)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.loop.set_exception_handler(lambda _, context: self.errors.append(context))
        context = make_context()
        self.engine.connect(context, self.loop)
        await self._server.serve([self._listener])
        self.engine.close()
        self.encoder.close()
        context.term()

    def close(self) -> None:
        self._server.should_exit = True
        self._thread.join(10)
        assert not self._thread.is_alive()
        assert self.errors == []


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return load_tokenizer(str(folder))


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RuntimeDir]:
    folder = RuntimeDir.create(tmp_path_factory.mktemp("r"))
    yield folder
    folder.remove()


@pytest.fixture(scope="module")
def started_engine(runtime: RuntimeDir, tokenizer: Tokenizer) -> Iterator[FakeEngine]:
    engine = FakeEngine(runtime, tokenizer)
    yield engine
    engine.close()


@pytest.fixture
def engine(started_engine: FakeEngine) -> Iterator[FakeEngine]:
    """The scripted engine in its initial state; after the test nothing may run in it."""
    script = type(started_engine.script)()
    started_engine.script = script
    started_engine.ready()
    started_engine.added.clear()
    started_engine.aborted.clear()
    started_engine.prepared.clear()
    yield started_engine
    started_engine.script = type(started_engine.script)()
    started_engine.wait_for(lambda: started_engine.active == 0)


@pytest.fixture(scope="module")
def start_worker(
    runtime: RuntimeDir, tokenizer: Tokenizer, started_engine: FakeEngine
) -> Iterator[Callable[..., Worker]]:
    """Starts a worker with the given options."""
    workers: list[Worker] = []

    def start(
        worker: int = 0,
        chat_format: ChatFormat | None = None,
        vectors: VectorModel | None = None,
        **options: object,
    ) -> Worker:
        values = {"model_dir": "/models/tiny", "max_body_mb": 1} | options
        config = ServerConfig(**values)  # type: ignore[arg-type]
        workers.append(Worker(runtime, tokenizer, config, worker, chat_format, vectors))
        return workers[-1]

    yield start
    for worker in workers:
        worker.close()


@pytest.fixture(scope="module")
def worker(start_worker: Callable[..., Worker]) -> Worker:
    return start_worker()


@pytest.fixture(scope="module")
def shared_client(worker: Worker) -> Iterator[httpx.Client]:
    with http_client(worker.url) as client:
        yield client


@pytest.fixture
def client(shared_client: httpx.Client, engine: FakeEngine, worker: Worker) -> Iterator[httpx.Client]:
    """An HTTP client of a worker with default options; afterwards the worker holds no request."""
    yield shared_client
    engine.wait_for(lambda: worker.engine.active == 0)


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    write_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    return tmp_path


@pytest.fixture(scope="module")
def ask_of(
    start_worker: Callable[..., Worker], started_engine: FakeEngine
) -> Iterator[Callable[..., Callable[..., httpx.Response]]]:
    """ask_of(vectors, **options) -> a function that posts to a worker that has them."""
    clients: list[httpx.Client] = []

    def of(vectors: VectorModel | None = None, **options: Any) -> Callable[..., httpx.Response]:
        worker = start_worker(len(clients) + 1, vectors=vectors, **options)
        client = http_client(worker.url)
        clients.append(client)
        return lambda path, **body: client.post(path, json=body)

    yield of
    for client in clients:
        client.close()
