"""A worker's process: its HTTP server, and the server behind it where it started that itself."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator

import uvloop
from fastapi import FastAPI

from lightllm.cluster.app import answer_request_errors
from lightllm.cluster.fastchat_protocol import WorkerError
from lightllm.cluster.workers.base import BaseModelWorker
from lightllm.cluster.workers.config import WorkerConfig
from lightllm.cluster.workers.loads import vllm_load
from lightllm.cluster.workers.model_worker import ModelWorker
from lightllm.cluster.workers.openai_server import OpenAIServer
from lightllm.cluster.workers.routes import worker_routes
from lightllm.errors import InvalidOption, StartupError
from lightllm.http.error_middleware import ErrorMiddleware
from lightllm.http.server import HttpServer, make_config
from lightllm.ipc.cluster_secret import read_secret_file
from lightllm.server.listener import open_listener, url_of

_log = logging.getLogger(__name__)
_LOOK_SECONDS = 0.2
_STOP_SECONDS = 60.0


def serve(kind: str, config: WorkerConfig, behind: list[str]) -> int:
    """Returns the exit code. Raises `StartupError`."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    path = config.cluster_secret_file
    secret = b"" if path is None else read_secret_file(path)
    service = WorkerService(kind, config, behind)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        for number in (signal.SIGTERM, signal.SIGINT):
            runner.get_loop().add_signal_handler(number, service.stop)
        return runner.run(service.run(secret))


class WorkerService:
    def __init__(self, kind: str, config: WorkerConfig, behind: list[str]) -> None:
        """kind: one of `command.KINDS`; behind: options of the server that it starts. Raises `StartupError`."""
        if kind == "vllm" and not config.server_url and importlib.util.find_spec("vllm") is None:
            raise StartupError(
                "vLLM is not installed here.", "pip install vllm, or name a server: --server_url URL."
            )
        self._kind = kind
        self.config = config
        self._behind = behind
        self.listener = open_listener(config.host, config.port)
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        self._stopping.set()

    async def run(self, secret: bytes) -> int:
        """Until `stop`, or the end of the server behind it. Raises `StartupError`."""
        if self._kind == "huggingface":
            from lightllm.cluster.workers.huggingface import HuggingfaceApiWorker, read_model_infos

            infos = read_model_infos(self.config.model_info_file or "")
            return await self._serve(HuggingfaceApiWorker(self.config, self._url, infos), secret, None)
        async with self._server() as (url, process):
            server = OpenAIServer(url, self.config.server_api_key)
            try:
                worker = await self._worker(server, process)
                if worker is None:
                    return 0
                return await self._serve(worker, secret, process)
            finally:
                await server.close()

    @property
    def _url(self) -> str:
        """Where controllers reach it."""
        return (self.config.worker_address or url_of(self.listener)).rstrip("/")

    async def _worker(
        self, server: OpenAIServer, process: subprocess.Popen[bytes] | None
    ) -> ModelWorker | None:
        """As soon as the server says what it serves; None: stopped before that."""
        while not self._stopping.is_set():
            if process is not None and process.poll() is not None:
                raise StartupError(f"The server behind the worker ended with exit code {process.returncode}.")
            with contextlib.suppress(WorkerError):
                await server.get("/health")
                names = self.config.model_names or await server.model_names()
                if self._kind == "vllm":
                    worker = ModelWorker(self.config, self._url, names, server, "openai", vllm_load)
                else:
                    worker = ModelWorker(self.config, self._url, names, server)
                await worker.find_conversation()
                return worker
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), _LOOK_SECONDS)
        return None

    async def _serve(
        self, worker: BaseModelWorker, secret: bytes, process: subprocess.Popen[bytes] | None
    ) -> int:
        routes = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
        routes.include_router(worker_routes(worker))
        answer_request_errors(routes)
        app = ErrorMiddleware(routes, draining=self._stopping.is_set, overload_status=503)
        http = HttpServer(make_config(app, 75), lambda: worker.start(secret), lambda: None)
        serving = asyncio.ensure_future(http.serve(sockets=[self.listener]))
        _log.info("worker %s serves %s", worker.url, ", ".join(worker.model_names))
        code = 0
        while not self._stopping.is_set() and not code:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), _LOOK_SECONDS)
            if process is not None and process.poll() is not None:
                _log.error("the server behind the worker ended with exit code %s", process.returncode)
                code = 1
        await worker.close()
        http.drain()
        http.should_exit = True
        await serving
        return code

    @contextlib.asynccontextmanager
    async def _server(self) -> AsyncIterator[tuple[str, subprocess.Popen[bytes] | None]]:
        """The URL of the server, and its process if it is ours."""
        if self.config.server_url:
            yield self.config.server_url.rstrip("/"), None
            return
        if any(word.split("=")[0] in ("--port", "--host") for word in self._behind):
            raise InvalidOption(
                "The server behind a worker listens where the worker says.", "Leave out --host and --port."
            )
        port = _free_port(self.config.host)
        module = (
            "vllm.entrypoints.openai.api_server" if self._kind == "vllm" else "lightllm.server.api_server"
        )
        command = [sys.executable, "-m", module, "--host", self.config.host, "--port", str(port)]
        process = subprocess.Popen([*command, *self._behind])
        try:
            yield f"http://{self.config.host}:{port}", process
        finally:
            if process.poll() is None:
                process.terminate()
            try:
                await asyncio.to_thread(process.wait, _STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


def _free_port(host: str) -> int:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
