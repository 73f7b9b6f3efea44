"""Fuzz of the routes for vectors, labels, scores and rankings where there is a model that has them, so that cases get past the refusal
that a model for texts gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import schemathesis
from schemathesis import GenerationMode
from support.api_fuzz import fuzz
from support.pooling_models import make_classifier, make_embedding_model
from support.reward_models import make_reward_model
from support.server import LightLLMServer

pytestmark = pytest.mark.slow
CASES = 160
"""A route and mode."""
OPTIONS = (
    "--device", "cpu", "--data_type", "fp32", "--max_total_token_num", "2000", "--max_req_total_len", "256",
    "--chunked_prefill_size", "64",
)  # fmt: skip
MAKERS: dict[str, Callable[[Path], object]] = {
    "embeddings": make_embedding_model, "labels": make_classifier,
    "reward": lambda path: make_reward_model(path, "InternLM2ForRewardModel"),
}  # fmt: skip
ROUTES = {
    "embeddings": ("/v1/embeddings", "/score", "/v1/score", "/rerank", "/v1/rerank", "/v2/rerank"),
    "labels": ("/classify", "/v1/classify"),
    "reward": ("/get_score",),
}
"""By what the model has."""


@pytest.fixture(scope="module", params=list(ROUTES))
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, LightLLMServer]]:
    folder = tmp_path_factory.mktemp(request.param) / "model"
    MAKERS[request.param](folder)
    options = ["--use_reward_model"] if request.param == "reward" else []
    with LightLLMServer(["--model_dir", str(folder), *OPTIONS, *options]) as server:
        yield request.param, server


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_fuzz_of_vectors_long(served: tuple[str, LightLLMServer], mode: GenerationMode) -> None:
    has, server = served
    api = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    for path in ROUTES[has]:
        statuses = fuzz(api, "POST", path, mode, CASES)
        print(f"{path} {mode.value}: {statuses}", flush=True)
        if mode is GenerationMode.POSITIVE:
            assert statuses.get(200, 0), f"no case of {path} reaches the model"
    assert "Traceback" not in server.log and "error id" not in server.log
