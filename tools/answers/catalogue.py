"""Which servers are asked, and what. A name says what a case is about; cases of one server share nothing but its cache."""

from __future__ import annotations

from dataclasses import dataclass

from answers.exchange import Case
from answers.http import connection_cases, status_cases
from answers.native import native_cases
from answers.openai import openai_cases
from answers.requests import post
from answers.scripted import ADMIN, TEMPLATE, scripted_cases


@dataclass(frozen=True)
class Server:
    name: str
    options: tuple[str, ...]
    cases: tuple[Case, ...]
    flush: bytes
    """The request that empties the prefix cache."""
    chat_template: str = ""


SERVERS = (
    Server(
        "demo",
        (
            "--model_name", "demo", "--max_total_token_num", "20000", "--max_req_total_len", "2048", "--data_type", "fp32",
            "--max_body_mb", "1",
        ),
        (*native_cases(), *openai_cases(), *status_cases(), *connection_cases()),
        post("/flush_cache", None),
    ),
    Server(
        "scripted",
        (
            "--mock_backend", "step_ms=8", "--model_name", "scripted", "--max_total_token_num", "20000",
            "--max_req_total_len", "2048", "--api_key", "key-one", "key-two", "--admin_api_key", "key-admin",
            "--allowed_origins", "http://a.example", "--long_truncation_mode", "center",
        ),
        tuple(scripted_cases()),
        post("/flush_cache", None, ADMIN),
        TEMPLATE,
    ),
)  # fmt: skip
