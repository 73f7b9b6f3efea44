"""A server on a machine without the package of constrained decoding: it starts, serves, and says what is missing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.http_client import http_client
from support.server import LightLLMServer

HIDE = """
import importlib.machinery
found = importlib.machinery.PathFinder.find_spec
def find_spec(name, path=None, target=None):
    return None if name.partition(".")[0] == "llguidance" else found(name, path, target)
importlib.machinery.PathFinder.find_spec = find_spec
"""


@pytest.mark.parametrize(
    ("hidden", "options", "words"),
    [
        (True, [], "pip install 'lightllm[constraints]'"),
        # The Http Server alone: test/httpserver/test_constraints.py.
        pytest.param(False, ["--output_constraint_mode", "none"], "--output_constraint_mode none", marks=pytest.mark.slow),
    ],
    ids=["no package", "switched off"],
)  # fmt: skip
def test_constraints_get_400_and_the_rest_is_served(
    tmp_path: Path, hidden: bool, options: list[str], words: str
) -> None:
    (tmp_path / "sitecustomize.py").write_text(HIDE if hidden else "")
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    options = ["--model_name", "demo", "--max_total_token_num", "2000", *options]
    with (
        LightLLMServer(options, environment={"PYTHONPATH": paths}) as server,
        http_client(server.url, timeout=60) as client,
    ):
        parameters = {"max_new_tokens": 4, "regular_constraint": "[a-z]+"}
        for path in ("/generate", "/generate_stream"):
            refused = client.post(path, json={"inputs": "2+3=", "parameters": parameters})
            assert refused.status_code == 400 and words in refused.json()["message"]
        body = {"prompt": "2+3=", "response_format": {"type": "json_object"}, "stream": True}
        refused = client.post("/v1/completions", json=body)
        assert refused.status_code == 400 and words in refused.json()["error"]["message"]
        body = {"prompt": "2+3=", "response_format": {"type": "text"}, "temperature": 0, "max_tokens": 4}
        assert client.post("/v1/completions", json=body).json()["choices"][0]["text"] == "5"
