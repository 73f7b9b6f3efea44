"""The page at `/`, a chat and a dashboard, and the documentation of the API at `/docs`: files of this package, which any browser gets
without a key. They hold nothing of the server's; all that they show they ask its other routes for, with the user's key."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

from fastapi import APIRouter, Request
from starlette.responses import Response

_FOLDER = Path(__file__).with_name("page")
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_DOCUMENTS = {"/": "index.html", "/docs": "docs.html"}
_HEADERS = {
    # All of the page is its own: no text that a model or another client wrote becomes markup, script or a request.
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    # Asked for each time, answered with 304 unless the server is another one: files of two versions never meet.
    "cache-control": "no-cache",
}


@dataclasses.dataclass(frozen=True)
class _File:
    body: bytes
    headers: dict[str, str]


def page_paths(controller: bool = False) -> frozenset[str]:
    """All paths of the page, which a GET reaches without a key."""
    return frozenset(_read_files(controller))


def page_routes(controller: bool = False) -> APIRouter:
    """One route for each file: a path that is none of them is unknown, and no path is looked up in the file system.
    controller: the page shows workers, and has no documentation."""
    router = APIRouter()
    for path, file in _read_files(controller).items():
        _add(router, path, file)
    return router


def _add(router: APIRouter, path: str, file: _File) -> None:
    @router.get(path, include_in_schema=False)
    async def get(request: Request) -> Response:
        if file.headers["etag"] in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=file.headers)
        return Response(file.body, headers=file.headers)


def _read_files(controller: bool) -> dict[str, _File]:
    if controller:
        page = (_FOLDER / _DOCUMENTS["/"]).read_bytes()
        found = {"/": _file(page.replace(b"<body>", b'<body data-server="controller">'), ".html")}
    else:
        found = {path: _read(_FOLDER / name) for path, name in _DOCUMENTS.items()}
    assets = sorted(path for path in _FOLDER.iterdir() if path.name not in _DOCUMENTS.values())
    return found | {f"/page/{path.name}": _read(path) for path in assets}


def _read(path: Path) -> _File:
    return _file(path.read_bytes(), path.suffix)


def _file(body: bytes, suffix: str) -> _File:
    tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    return _File(body, {**_HEADERS, "content-type": _TYPES[suffix], "etag": tag})
