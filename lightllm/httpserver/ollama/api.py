"""Ollama's API: `/api/chat`, `/api/generate`, `/api/tags`, `/api/ps`, `/api/show`, `/api/version`. Its routes for vectors are in
`pooling`."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from lightllm.errors import InvalidParameter
from lightllm.http.body import parse_body
from lightllm.http.ollama import LOADED_UNTIL, version_answer
from lightllm.httpserver.ollama.models import (
    OllamaChatRequest,
    OllamaGenerateRequest,
    OllamaRequest,
    OllamaShowRequest,
)
from lightllm.httpserver.ollama.reading import chat_of, chat_of_prompt, completion_of
from lightllm.httpserver.ollama.rendering import NDJSON, OllamaRenderer
from lightllm.httpserver.openai.api import PreparedChat, prepare_chat, prepare_completion
from lightllm.httpserver.openapi import documented, plain
from lightllm.httpserver.preparing import hold_images
from lightllm.httpserver.reading.fill_in_middle import fim_tokens
from lightllm.httpserver.responses import respond
from lightllm.httpserver.state import ServerState
from lightllm.model_folder.json_files import read_json_object
from lightllm.parsers.chat_format import IDENTITY

_WEIGHTS = ("*.safetensors", "*.bin")


def ollama_routes(state: ServerState) -> APIRouter:
    """The routes of Ollama's API."""
    router = APIRouter(prefix="/api", tags=["Ollama"])
    folder = functools.cache(lambda: _Folder(state))

    @router.post("/chat", **documented(OllamaChatRequest, "The answer.", ollama=True))
    async def chat(request: Request) -> Response:
        """Answers a conversation."""
        state.require_admission()
        body = await parse_body(request, OllamaChatRequest, state.bodies)
        model = state.check_model(body.model)
        if not body.messages:
            return _loaded(body, model, chat=True)
        prepared = await prepare_chat(state, request, chat_of(body, _thinks(state)), clip=True)
        return await _answer(state, request, body, model, prepared, chat=True)

    @router.post("/generate", **documented(OllamaGenerateRequest, "The text.", ollama=True))
    async def generate(request: Request) -> Response:
        """Answers a prompt, or completes one that is raw or has a suffix."""
        state.require_admission()
        body = await parse_body(request, OllamaGenerateRequest, state.bodies)
        model = state.check_model(body.model)
        if not body.prompt:
            return _loaded(body, model, chat=False)
        if body.raw or body.suffix:
            default = state.config.default_max_tokens
            (record,) = await prepare_completion(state, completion_of(body), default, clip=True)
            prepared = PreparedChat(record, None, IDENTITY)
        else:
            prepared = await prepare_chat(state, request, chat_of_prompt(body, _thinks(state)), clip=True)
        return await _answer(state, request, body, model, prepared, chat=False)

    @router.get("/tags", **plain("The models."))
    async def tags() -> Response:
        """The names of the one model."""
        known = await asyncio.to_thread(folder)
        return JSONResponse({"models": [known.card(name) for name in state.model_names]})

    @router.get("/ps", **plain("The models that are loaded."))
    async def loaded() -> Response:
        """The same: it is loaded, and stays."""
        known = await asyncio.to_thread(folder)
        return JSONResponse({"models": [known.loaded_card(name, state) for name in state.model_names]})

    @router.post("/show", **documented(OllamaShowRequest, "The model.", ollama=True))
    async def show(request: Request) -> Response:
        """What the model is and can do."""
        body = await parse_body(request, OllamaShowRequest, state.bodies)
        state.check_model(body.model or body.name)
        return JSONResponse((await asyncio.to_thread(folder)).description(state))

    @router.get("/version", **plain("The version."))
    async def version() -> Response:
        """The version of the API, and the server's own."""
        return JSONResponse(version_answer())

    return router


async def _answer(
    state: ServerState, request: Request, body: OllamaRequest, model: str, prepared: PreparedChat, chat: bool
) -> Response:
    await hold_images(state.engine, request, prepared.prompt, prepared.images)
    renderer = OllamaRenderer(model, prepared.maker.make, chat)
    name = f"ollama-{secrets.token_hex(12)}"
    return respond(
        state.engine, request, [prepared.prompt], renderer, body.streamed, name, ping=renderer.ping, media_type=NDJSON
    )  # fmt: skip


def _loaded(body: OllamaRequest, model: str, chat: bool) -> Response:
    reason = "unload" if body.keep_alive in (0, "0", "0s") else "load"
    return JSONResponse(OllamaRenderer(model, IDENTITY.make, chat).loaded(reason))


def _thinks(state: ServerState) -> bool:
    return state.chat_format.reasoning is not None


def _fills_in(state: ServerState) -> bool:
    try:
        fim_tokens(state.encoder.tokenizer.token_id)
    except InvalidParameter:
        return False
    return True


class _Folder:
    """What the model folder says; it is read once."""

    def __init__(self, state: ServerState) -> None:
        folder = Path(state.config.model_dir or "")
        file = folder / "config.json"
        self._config = read_json_object(file)
        self._quant_type = None if state.config.quant_type == "none" else state.config.quant_type
        written = file.stat().st_mtime if file.exists() else 0.0
        self._modified = datetime.fromtimestamp(written, UTC).isoformat().replace("+00:00", "Z")
        sizes = [[weights.stat().st_size for weights in folder.glob(pattern)] for pattern in _WEIGHTS]
        self._size = sum(next(filter(None, sizes), []))
        self._digest = hashlib.sha256(file.read_bytes() if file.exists() else b"").hexdigest()

    def card(self, name: str) -> dict[str, Any]:
        return {
            "name": name,
            "model": name,
            "modified_at": self._modified,
            "size": self._size,
            "digest": self._digest,
            "details": self._details,
        }

    def loaded_card(self, name: str, state: ServerState) -> dict[str, Any]:
        loaded = {"expires_at": LOADED_UNTIL, "size_vram": self._size}
        return self.card(name) | loaded | {"context_length": state.limits.max_req_total_len}

    def description(self, state: ServerState) -> dict[str, Any]:
        kind = self._kind
        serves = state.config.serves
        able = {
            "completion": serves == "generate",
            "embedding": serves == "embed",
            "tools": state.chat_format.family is not None,
            "thinking": _thinks(state),
            "vision": state.images is not None,
            "insert": _fills_in(state),
        }
        return {
            "modelfile": "",
            "parameters": "",
            "template": state.encoder.tokenizer.chat_templates.source() or "",
            "details": self._details,
            "model_info": {
                "general.architecture": kind,
                f"{kind}.context_length": state.limits.max_req_total_len or None,
                f"{kind}.vocab_size": state.limits.vocab_size,
            },
            "capabilities": [name for name, can in able.items() if can],
            "modified_at": self._modified,
        }

    @property
    def _kind(self) -> str:
        return str(self._config.get("model_type") or "unknown")

    @property
    def _details(self) -> dict[str, Any]:
        quantized = self._config.get("quantization_config")
        kind = quantized.get("quant_method") if isinstance(quantized, dict) else self._quant_type
        return {
            "parent_model": "",
            "format": "safetensors",
            "family": self._kind,
            "families": [self._kind],
            "parameter_size": "",
            "quantization_level": str(
                kind or self._config.get("dtype") or self._config.get("torch_dtype") or ""
            ),
        }
