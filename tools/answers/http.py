"""What the connection itself answers, and the routes that tell how the server is."""

from __future__ import annotations

from answers.exchange import Case
from answers.requests import get, post

_PATHS = (
    "/", "/health", "/healthz", "/readiness", "/liveness", "/ping", "/token_load", "/metrics", "/version",
    "/get_model_name", "/openapi.json", "/docs",
)  # fmt: skip
_GENERATE = {"inputs": "2+3=", "parameters": {"max_new_tokens": 4}}
_STREAM = {"prompt": "2+3=", "max_tokens": 6, "temperature": 0, "stream": True}


def _name(path: str) -> str:
    return path.strip("/").replace("/", "_").replace(".", "_") or "root"


def status_cases() -> list[Case]:
    """GET and HEAD of every route that tells something."""
    return [
        *(Case(f"get_{_name(path)}", get(path)) for path in _PATHS),
        *(
            Case(f"head_{_name(path)}", get(path, method="HEAD"), head=True)
            for path in _PATHS
            if path != "/metrics"  # its length changes
        ),
        Case("post_ping", post("/ping", None)),
        Case("post_model_name", post("/get_model_name", None)),
    ]


def connection_cases() -> list[Case]:
    """Framing, methods, paths and headers."""
    half = b'{"inputs": "2+3=", '
    rest = b'"parameters": {"max_new_tokens": 4}}'
    chunked = b"%x\r\n%b\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(half), half, len(rest), rest)
    return [
        Case("unknown_path", get("/nowhere")),
        Case("unknown_v1_path", get("/v1/nowhere")),
        Case("unknown_post", post("/v1/embeddings", {"input": "a"})),
        Case("wrong_method", get("/health", method="DELETE")),
        Case("wrong_method_v1", get("/v1/completions")),
        Case("options", get("/generate", method="OPTIONS")),
        Case("odd_method", get("/generate", method="BREW")),
        Case("slash_at_the_end", get("/health/")),
        Case("query", get("/health?a=b")),
        Case("own_request_id", get("/health", "X-Request-Id: mine-1")),
        Case("bad_request_id", get("/health", "X-Request-Id: a b<>")),
        Case("http_1_0", get("/health", version="1.0"), answers=0),
        Case("http_1_0_keep_alive", get("/health", "Connection: keep-alive", version="1.0")),
        Case("http_1_0_stream", post("/v1/completions", _STREAM, version="1.0"), answers=0, streamed=True),
        Case("http_1_0_native", post("/generate_stream", _GENERATE, version="1.0"), answers=0),
        Case("http_2_0", get("/health", version="2.0"), answers=0),
        Case("connection_close", get("/health", "Connection: close"), answers=0),
        Case("pipelined", get("/health") + get("/version") + post("/generate", _GENERATE), answers=3),
        Case("chunked_body", post("/generate", chunked, "Transfer-Encoding: chunked")),
        Case("bad_chunk", post("/generate", b"zz\r\n", "Transfer-Encoding: chunked"), answers=0),
        Case("other_coding", post("/generate", b"x", "Transfer-Encoding: gzip"), answers=0),
        Case(
            "two_lengths",
            post("/generate", b"{}", "Content-Length: 2", "Transfer-Encoding: chunked"),
            answers=0,
        ),
        Case("bad_length", post("/generate", b"{}", "Content-Length: x"), answers=0),
        Case("expect_continue", post("/generate", _GENERATE, "Expect: 100-continue"), answers=2),
        Case("expect_other", post("/generate", _GENERATE, "Expect: a-miracle")),
        Case("encoded_body", post("/generate", b"x", "Content-Encoding: gzip")),
        Case("form_body", post("/generate", b"a=b", "Content-Type: application/x-www-form-urlencoded")),
        Case("text_body", post("/v1/completions", _STREAM, "Content-Type: text/plain")),
        Case("foreign_origin", post("/generate", _GENERATE, "Origin: http://evil.example")),
        Case("own_origin", post("/generate", _GENERATE, "Origin: http://127.0.0.1:1")),
        Case("foreign_host", b"GET /v1/models HTTP/1.1\r\nHost: evil.example\r\n\r\n"),
        Case("no_host", b"GET /v1/models HTTP/1.1\r\n\r\n"),
        Case("two_hosts", b"GET /v1/models HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"),
        Case(
            "preflight",
            get(
                "/generate",
                "Origin: http://a.example",
                "Access-Control-Request-Method: POST",
                method="OPTIONS",
            ),
        ),
        Case("many_headers", get("/health", *(f"X-{number}: a" for number in range(300))), answers=0),
        Case("long_header", get("/health", "X-Long: " + "a" * 70000), answers=0),
        Case("no_http", b"hello\r\n\r\n", answers=0),
        Case("odd_path", get("/%00%ff/..")),
        Case("connect", get("a:1", method="CONNECT"), answers=0),
        Case("upgrade", get("/health", "Connection: Upgrade", "Upgrade: websocket")),
        Case("body_too_large", post("/generate", b"", "Content-Length: 999999999"), answers=0),
    ]
