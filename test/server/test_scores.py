"""/classify, /score and /rerank of real servers: the numbers of transformers, on one rank and on two."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from support.checkpoints import CHAT_TEMPLATE
from support.pooling_models import make_classifier, make_judge
from support.server import LightLLMServer

from lightllm.tokenizer import load_tokenizer

OPTIONS = (
    "--device", "cpu", "--data_type", "fp32", "--max_total_token_num", "2000", "--max_req_total_len", "256",
    "--chunked_prefill_size", "16",
)  # fmt: skip
PAIRS = (
    '{{ messages | selectattr("role", "eq", "query") | map(attribute="content") | first }} and '
    '{{ messages | selectattr("role", "eq", "document") | map(attribute="content") | first }}?'
)
DOCUMENTS = ["one two three", "the lazy dog " * 9, "é", "a reader reads"]

pytestmark = pytest.mark.slow


def post(server: LightLLMServer, path: str, **body: Any) -> Any:
    answer = httpx.post(server.url + path, json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()


def set_template(path: Path, template: str) -> None:
    settings = json.loads((path / "tokenizer_config.json").read_text())
    assert settings["chat_template"] == CHAT_TEMPLATE
    (path / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": template}))


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_classifiers_labels(tmp_path: Path, ranks: int) -> None:
    path = tmp_path / "model"
    reference = make_classifier(path, id2label={"0": "bad", "1": "fair", "2": "good"})
    tokenizer = load_tokenizer(str(path))
    with LightLLMServer(["--model_dir", str(path), *OPTIONS, "--tp", str(ranks)]) as server:
        answer = post(server, "/classify", input=DOCUMENTS)
        for text, item in zip(DOCUMENTS, answer["data"], strict=True):
            expected = torch.softmax(reference(tokenizer.encode(text)), 0)
            torch.testing.assert_close(torch.tensor(item["probs"]), expected, rtol=0, atol=1e-4)
            assert item["label"] == ["bad", "fair", "good"][int(expected.argmax())]
        refused = httpx.post(server.url + "/v1/embeddings", json={"input": "a"})
        assert refused.status_code == 400 and "use /classify" in refused.text


@pytest.mark.parametrize(("ranks", "tied"), [(1, True), (2, True), (2, False)])
def test_a_judges_yes_against_no(tmp_path: Path, ranks: int, tied: bool) -> None:
    path = tmp_path / "model"
    reference = make_judge(path, tied)
    set_template(path, PAIRS)
    tokenizer = load_tokenizer(str(path))
    with LightLLMServer(["--model_dir", str(path), *OPTIONS, "--tp", str(ranks)]) as server:
        texts = [f"who and {document}?" for document in DOCUMENTS]
        logits = [reference(tokenizer.encode(text, False)) for text in texts]
        expected = torch.stack([torch.softmax(pair, 0)[1] for pair in logits])
        scores = [
            item["score"] for item in post(server, "/score", queries="who", documents=DOCUMENTS)["data"]
        ]
        torch.testing.assert_close(torch.tensor(scores), expected, rtol=0, atol=1e-4)
        ranking = post(server, "/rerank", query="who", documents=DOCUMENTS)["results"]
        assert [item["index"] for item in ranking] == expected.argsort(descending=True).tolist()


def test_a_judge_without_a_template_ends_the_launch(tmp_path: Path) -> None:
    make_judge(tmp_path / "model")
    server = LightLLMServer(["--model_dir", str(tmp_path / "model"), *OPTIONS])
    server.wait_for("Nothing says how this model is asked whether a document fits a query")
    assert server.wait() != 0
