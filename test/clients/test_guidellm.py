"""guidellm, a load generator, as it is published: every request is answered, with as many tokens as it asked for."""

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


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_a_load_is_answered(servers: Servers, path: str, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    backend = f"kind=openai_http,target={servers.demo.url},request_format={path},api_key={KEY}"
    data = f"kind=synthetic_text,prompt_tokens={PROMPT},output_tokens={OUTPUT}"
    done = subprocess.run(
        [
            sys.executable, "-m", "guidellm", "run", "--backend", backend, "--profile", "kind=concurrent,streams=4",
            "--constraint", f"kind=max_requests,count={REQUESTS}", "--data", data, "--tokenizer", f"kind=hf_auto,model={TOKENIZER}",
            "--output", f"kind=json,path={report}", "--disable-progress",
        ],
        env=os.environ | {"PYTHONPATH": str(Path(CLIENTS).absolute() / "guidellm-alone"), "HF_HUB_OFFLINE": "1"},
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    (benchmark,) = json.loads(report.read_text())["benchmarks"]
    assert benchmark["metrics"]["request_totals"] == {
        "successful": REQUESTS, "errored": 0, "incomplete": 0, "total": REQUESTS,
    }  # fmt: skip
    counts = benchmark["metrics"]["output_token_count"]["successful"]
    assert (counts["min"], counts["max"]) == (OUTPUT, OUTPUT), counts
