"""What /openapi.json says. Handlers read their bodies themselves, so the models are described here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

_REF = "#/components/schemas/{model}"
_TEXT = {"type": "string"}
_TEXT_OR_NULL = {"type": ["string", "null"]}


def _object(properties: dict[str, Any], *optional: str) -> dict[str, Any]:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required}


_NATIVE_ERROR = _object(
    {
        "message": _TEXT,
        "param": _TEXT,
        "error": _object(
            {"message": _TEXT, "type": _TEXT, "param": _TEXT_OR_NULL, "code": {"type": "integer"}}
        ),
    },
    "param",
)
_TGI_ERROR = _object({"error": _TEXT, "error_type": _TEXT})
_ANTHROPIC_ERROR = _object({"type": _TEXT, "error": _object({"type": _TEXT, "message": _TEXT})})
_OLLAMA_ERROR = _object({"error": _TEXT})
_OPENAI_ERROR = _object(
    {"error": _object({"message": _TEXT, "type": _TEXT, "param": _TEXT_OR_NULL, "code": _TEXT_OR_NULL})}
)
_ERRORS = {
    400: "A value out of range, or a prompt that is too long.",
    401: "No valid API key.",
    403: "Not for this caller.",
    404: "No such model or route.",
    408: "The request took longer than its time limit, or its body came too slowly.",
    413: "The body is too large.",
    415: "The body has a type or an encoding that is not taken.",
    422: "The body is malformed.",
    500: "The server failed.",
    503: "Overloaded, starting or stopping; try again after Retry-After seconds.",
}


def documented(
    model: type[BaseModel],
    answer: str,
    *,
    openai: bool = False,
    tgi: bool = False,
    anthropic: bool = False,
    ollama: bool = False,
    kind: str = "object",
    media_type: str = "application/json",
    required: bool = True,
) -> dict[str, Any]:
    """Arguments of a route whose body is `model`; openai, tgi, anthropic, ollama: whose errors it has; kind: of its answer, in JSON."""
    reference = {"$ref": _REF.format(model=model.__name__)}
    schema = {"type": kind} if media_type == "application/json" else {}
    contents: dict[str, Any] = {media_type: {"schema": schema}}
    if (openai or tgi or anthropic) and media_type == "application/json":
        contents["text/event-stream"] = {"schema": {}}
    if ollama:
        contents["application/x-ndjson"] = {"schema": {}}
    responses: dict[str, Any] = {"200": {"description": answer, "content": contents}}
    shape = (
        _ANTHROPIC_ERROR if anthropic else _OLLAMA_ERROR if ollama else _TGI_ERROR if tgi else _shape(openai)
    )
    return {
        "openapi_extra": {
            "requestBody": {"required": required, "content": {"application/json": {"schema": reference}}},
            "responses": responses
            | _errors(tuple(_ERRORS.keys() - ({422} if openai or anthropic or ollama else set())), shape),
        }
    }


def plain(
    answer: str, *statuses: int, openai: bool = False, media_type: str = "application/json"
) -> dict[str, Any]:
    """Arguments of a route without a body."""
    kind = "object" if media_type == "application/json" else "string"
    responses: dict[str, Any] = {
        "200": {"description": answer, "content": {media_type: {"schema": {"type": kind}}}}
    }
    statuses = (401, *statuses)
    schema = (
        {"type": "object"} if 503 in statuses else _shape(openai)
    )  # the 503 of health routes has a body of its own
    return {"openapi_extra": {"responses": responses | _errors(statuses, schema)}}


def install(app: FastAPI, models: Sequence[type[BaseModel]]) -> None:
    """Lets `app.openapi()` describe the bodies: `models` are those given to `documented`."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
            _, definitions = models_json_schema(
                [(model, "validation") for model in models], ref_template=_REF
            )
            schema.setdefault("components", {}).setdefault("schemas", {}).update(definitions["$defs"])
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _shape(openai: bool) -> dict[str, Any]:
    return _OPENAI_ERROR if openai else _NATIVE_ERROR


def _errors(statuses: tuple[int, ...], schema: dict[str, Any]) -> dict[str, Any]:
    return {
        str(status): {"description": _ERRORS[status], "content": {"application/json": {"schema": schema}}}
        for status in statuses
    }
