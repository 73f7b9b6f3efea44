"""The controller's ASGI application: the layers that every server of ours has, then one table: what goes to a worker, and what is
answered here.

ErrorMiddleware > RequestForms > CORS > BrowserGuard > ApiKeys > WORKER_PATHS: Proxy, what no policy places: PlacedRoutes, else the routes
"""

from __future__ import annotations

from collections.abc import Callable

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from lightllm import __version__
from lightllm.cluster.access import ACCESS, REGISTRATION_PATHS, Access
from lightllm.cluster.config import ControllerConfig
from lightllm.cluster.paths import WORKER_PATHS
from lightllm.cluster.placed_routes import PlacedRoutes
from lightllm.errors import RequestError
from lightllm.http.auth import ApiKeys, caller
from lightllm.http.browser_guard import BrowserGuard
from lightllm.http.error_middleware import ErrorMiddleware
from lightllm.http.error_responses import error_response, http_exception_response
from lightllm.http.key_ring import KeyRing
from lightllm.http.request_forms import RequestForms
from lightllm.httpserver.page_routes import page_paths


class _WorkersFirst:
    """ASGI: requests of a model never pass the web framework's routing, and operators' none without their key."""

    def __init__(self, proxy: ASGIApp, placed: PlacedRoutes, routes: ASGIApp) -> None:
        self._proxy = proxy
        self._placed = placed
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._routes
        if scope["type"] == "http":
            if ACCESS.get(scope["path"]) is Access.OPERATOR:
                caller(Request(scope)).require_operator()
            if scope["method"] == "POST" and scope["path"] in WORKER_PATHS:
                app = self._proxy
            elif self._placed.takes(scope):
                app = self._placed
        await app(scope, receive, send)


def create_app(
    config: ControllerConfig,
    keys: KeyRing,
    proxy: ASGIApp,
    placed: PlacedRoutes,
    routes: FastAPI,
    stopping: Callable[[], bool],
) -> ASGIApp:
    """stopping: whether connections end with their answers."""
    answer_request_errors(routes)
    app: ASGIApp = _WorkersFirst(proxy, placed, routes)
    if keys.needed or keys.admin_needed:
        pages = frozenset() if config.disable_page else page_paths(controller=True)
        app = ApiKeys(app, keys, pages, REGISTRATION_PATHS)
    app = BrowserGuard(app, config)
    if config.allowed_origins:
        app = CORSMiddleware(
            app, config.allowed_origins, allow_methods=["GET", "POST", "HEAD", "DELETE"], allow_headers=["*"],
            expose_headers=["X-Request-Id", "Retry-After"],
        )  # fmt: skip
    return ErrorMiddleware(RequestForms(app), draining=stopping, overload_status=503)


def new_routes() -> FastAPI:
    return FastAPI(
        title="LightLLM controller",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )


def answer_request_errors(routes: FastAPI) -> None:
    """In the shape of the path's API."""
    routes.add_exception_handler(HTTPException, http_exception_response)
    routes.add_exception_handler(RequestError, _request_error)


async def _request_error(request: Request, error: Exception) -> Response:
    """Else the framework would take it for a defect."""
    assert isinstance(error, RequestError)
    return error_response(request.scope["path"], error)
