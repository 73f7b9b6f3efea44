"""A server behind a worker, one that it starts, or one that runs already: of ours, or vLLM's."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from lightllm.cluster.fastchat_protocol import WorkerError
from lightllm.cluster.probing import events_port
from lightllm.cluster.worker_messages import Beat
from lightllm.cluster.workers.base import BaseModelWorker
from lightllm.cluster.workers.config import WorkerConfig
from lightllm.cluster.workers.conversations import CONVERSATIONS, conversation_of
from lightllm.cluster.workers.loads import Load, lightllm_load
from lightllm.cluster.workers.openai_server import OpenAIServer


class ModelWorker(BaseModelWorker):
    """Clients' own APIs go to the server itself (`server_url`); FastChat's are turned into `/v1/completions`."""

    def __init__(
        self,
        config: WorkerConfig,
        url: str,
        model_names: list[str],
        server: OpenAIServer,
        kind: str = "lightllm",
        load: Callable[[OpenAIServer], Awaitable[Load]] = lightllm_load,
    ) -> None:
        """kind: the API that the server speaks; load: asks it for its load."""
        super().__init__(config, url, model_names)
        self.kind = kind
        self._load = load
        self.server_url = server.url
        self._server = server
        self._kv_tokens = 0
        self._conversation = config.conv_template or ""
        self._context_length = 0

    async def generate_stream_gate(self, params: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        async for chunk in self._server.complete(self._model(params), params):
            yield chunk

    async def get_embeddings(self, params: dict[str, Any]) -> dict[str, Any]:
        body = {"model": self._model(params), "input": params.get("input", [])}
        if params.get("encoding_format"):
            body["encoding_format"] = params["encoding_format"]
        answer = await self._server.post("/v1/embeddings", body)
        vectors = [entry["embedding"] for entry in answer.get("data", ())]
        return {"embedding": vectors, "token_num": answer.get("usage", {}).get("prompt_tokens", 0)}

    async def count_token(self, params: dict[str, Any]) -> dict[str, Any]:
        body = {"model": self._model(params), "prompt": params.get("prompt", "")}
        return {"count": (await self._server.post("/tokenize", body))["count"], "error_code": 0}

    def get_conv_template(self, params: dict[str, Any] | None = None) -> dict[str, Any]:
        return CONVERSATIONS[self._conversation or "chatml"]

    async def model_details(self, params: dict[str, Any] | None = None) -> dict[str, Any]:
        if not self._context_length:
            self._context_length = await self._server.context_length() or self.config.context_length
        return {"context_length": self._context_length}

    async def beat(self) -> Beat:
        """The server's own load: all that reaches it counts, through whatever door."""
        beat = await super().beat()
        try:
            load = await self._load(self._server)
        except (WorkerError, ValueError):
            return beat
        beat.running, beat.waiting, beat.kv_use = load.running, load.waiting, load.kv_use
        beat.queue_length = load.running + load.waiting
        self._kv_tokens = load.kv_tokens
        return beat

    async def kv_tokens(self) -> int:
        if not self._kv_tokens:
            await self.beat()
        return self._kv_tokens

    async def kv_events_port(self) -> int:
        if self.kind != "lightllm":
            return 0
        try:
            return events_port(await self._server.get("/get_server_info"))
        except (WorkerError, ValueError):
            return 0

    async def find_conversation(self) -> None:
        """By the model's chat template, unless an option says which."""
        if self._conversation:
            return
        try:
            info = await self._server.get("/tokenizer_info")
        except WorkerError:
            return
        self._conversation = conversation_of(str(info.get("chat_template") or ""))

    def _model(self, params: dict[str, Any]) -> str:
        model = params.get("model")
        return model if isinstance(model, str) and model else self.model_names[0]
