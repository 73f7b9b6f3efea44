"""The ASGI application of an Http worker: routes, and the layers that every request passes.

ErrorMiddleware  request id, errors in the shape of the API
  RequestForms  a slash at the end of the path, and HEAD
    CORS        only with --allowed_origins; answers preflights
      BrowserGuard  keeps pages of other sites away where no key does; says what preflights lack without CORS
        ApiKeys     only with --api_key, --admin_api_key or --api_key_file
          ResumeRoute  requests whose answer has begun on another server
            routes
"""

from __future__ import annotations

from fastapi import APIRouter, FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, Response

from lightllm import __version__
from lightllm.http.auth import ApiKeys
from lightllm.http.browser_guard import BrowserGuard
from lightllm.http.error_middleware import ErrorMiddleware
from lightllm.http.error_responses import http_exception_response
from lightllm.http.request_forms import RequestForms
from lightllm.httpserver import openapi
from lightllm.httpserver.anthropic.api import messages_routes
from lightllm.httpserver.anthropic.models import CountTokensRequest, MessagesRequest
from lightllm.httpserver.native.api import native_routes
from lightllm.httpserver.native.models import AbortBody, GenerateRequest, ScoreRequest, TokensRequest
from lightllm.httpserver.ollama.api import ollama_routes
from lightllm.httpserver.ollama.models import OllamaChatRequest, OllamaGenerateRequest, OllamaShowRequest
from lightllm.httpserver.openai.api import openai_routes
from lightllm.httpserver.openai.models import ChatRequest, CompletionRequest
from lightllm.httpserver.openai_responses.api import responses_routes
from lightllm.httpserver.openai_responses.models import ResponsesRequest
from lightllm.httpserver.operating.health_routes import health_routes, info_routes
from lightllm.httpserver.operating.metric_routes import metric_routes
from lightllm.httpserver.operating.profile_routes import StartProfileBody, profile_routes
from lightllm.httpserver.page_routes import page_paths, page_routes
from lightllm.httpserver.pooling.api import pooling_routes
from lightllm.httpserver.pooling.models import (
    ClassifyRequest,
    EmbeddingsRequest,
    PairScoresRequest,
    RerankRequest,
)
from lightllm.httpserver.pooling.ollama import (
    OllamaEmbeddingsRequest,
    OllamaEmbedRequest,
    ollama_vector_routes,
)
from lightllm.httpserver.resuming import ResumeRoute
from lightllm.httpserver.state import ServerState
from lightllm.httpserver.tokenizer_routes import DetokenizeRequest, TokenizeRequest, tokenizer_routes

_BODIES = (
    GenerateRequest,
    ScoreRequest,
    TokensRequest,
    AbortBody,
    CompletionRequest,
    ChatRequest,
    MessagesRequest,
    CountTokensRequest,
    ResponsesRequest,
    OllamaChatRequest,
    OllamaGenerateRequest,
    OllamaShowRequest,
    OllamaEmbedRequest,
    OllamaEmbeddingsRequest,
    EmbeddingsRequest,
    ClassifyRequest,
    PairScoresRequest,
    RerankRequest,
    StartProfileBody,
    TokenizeRequest,
    DetokenizeRequest,
)


def create_app(state: ServerState) -> FastAPI:
    """The application; its engine must be connected before the first request."""
    app = FastAPI(
        title="LightLLM", version=__version__, docs_url=None, redoc_url=None, redirect_slashes=False
    )
    app.include_router(native_routes(state))
    app.include_router(openai_routes(state))
    app.include_router(messages_routes(state))
    app.include_router(responses_routes(state))
    app.include_router(ollama_routes(state))
    app.include_router(pooling_routes(state))
    app.include_router(ollama_vector_routes(state))
    app.include_router(tokenizer_routes(state))
    app.include_router(health_routes(state))
    app.include_router(info_routes(state))
    app.include_router(metric_routes(state))
    app.include_router(profile_routes(state))

    config = state.config
    app.include_router(_where_to_look(state) if config.disable_page else page_routes())
    app.add_exception_handler(HTTPException, http_exception_response)
    app.add_middleware(
        ResumeRoute, max_body=config.max_body_mb << 20, vocab_size=lambda: state.limits.vocab_size
    )
    if state.keys.needed or state.keys.admin_needed:
        open_pages = frozenset() if config.disable_page else page_paths()
        app.add_middleware(ApiKeys, keys=state.keys, open_pages=open_pages)
    app.add_middleware(BrowserGuard, config=config)
    if config.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=config.allowed_origins,
            allow_methods=["GET", "POST", "HEAD", "DELETE"],
            allow_headers=["*"],
            expose_headers=["X-Request-Id", "Retry-After"],
        )
    app.add_middleware(RequestForms)
    app.add_middleware(  # added last: outermost
        ErrorMiddleware, draining=lambda: state.view.draining, overload_status=int(config.overload_status)
    )
    openapi.install(app, _BODIES)
    return app


def _where_to_look(state: ServerState) -> APIRouter:
    """For the address of a server without the page, opened in a browser."""
    router = APIRouter()

    @router.get("/", include_in_schema=False)
    async def where_to_look() -> Response:
        message = (
            f"LightLLM {__version__} serves {state.model_name}. OpenAI's API is under /v1, LightLLM's own at "
            "/generate; /openapi.json describes all routes."
        )
        return JSONResponse({"message": message})

    return router
