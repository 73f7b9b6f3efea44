"""aiperf, NVIDIA's load generator, as it is published: every request of every API is answered, with as many tokens as it asked
for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.unmodified_clients import CLIENTS, KEY, Servers, needs_clients

import lightllm

pytestmark = needs_clients

TOKENIZER = Path(lightllm.__file__).parent / "demo"
REQUESTS, PROMPT, OUTPUT = 20, 64, 16


def report(url: str, endpoint: str, folder: Path, *more: str) -> dict[str, dict[str, float]]:
    """What it has measured of requests that have all been answered."""
    online = {
        name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"
    }  # it takes folders for names there
    done = subprocess.run(
        [
            sys.executable, "-m", "aiperf", "profile", "--model", "lightllm-demo", "--tokenizer", str(TOKENIZER), "--url", url,
            "--api-key", KEY, "--endpoint-type", endpoint, "--concurrency", "4", "--request-count", str(REQUESTS),
            "--isl", str(PROMPT), "--random-seed", "1", "--ui", "none", "--artifact-dir", str(folder), *more,
        ],
        env={**online, "PYTHONPATH": str(Path(CLIENTS).absolute() / "aiperf-alone")},
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    measured = json.loads((folder / "profile_export_aiperf.json").read_text())
    assert measured["error_summary"] == [], measured["error_summary"]
    assert measured["request_count"]["avg"] == measured["completed_request_count"]["avg"] == REQUESTS
    assert measured["request_error_rate"]["avg"] == 0
    return measured


@pytest.mark.parametrize("endpoint", ["chat", "completions", "responses", "messages"])
def test_a_load_of_streams_is_answered(servers: Servers, endpoint: str, tmp_path: Path) -> None:
    words = ["--streaming", "--osl", str(OUTPUT), "--extra-inputs", "ignore_eos:true"]
    least = OUTPUT
    if (
        endpoint == "responses"
    ):  # of which it reads no usage where they end by their length, and counts the text's tokens
        least = OUTPUT // 2
    else:
        words.append("--use-server-token-count")
    measured = report(servers.demo.url, endpoint, tmp_path, *words)
    lengths = measured["output_sequence_length"]
    assert least <= lengths["min"] and lengths["max"] <= OUTPUT, lengths
    assert measured["time_to_first_token"]["count"] == measured["inter_token_latency"]["count"] == REQUESTS


def test_a_load_of_vectors_is_answered(servers: Servers, tmp_path: Path) -> None:
    report(servers.embedder.url, "embeddings", tmp_path)
