"""`LLM.embed`, `LLM.classify`, `LLM.score`: the numbers of transformers without a server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from support.checkpoints import make_checkpoint
from support.pooling_models import make_classifier, make_embedding_model, make_judge
from support.reward_models import make_reward_model

from lightllm import LLM
from lightllm.errors import InvalidOption, InvalidParameter, PromptTooLong

OPTIONS = {
    "device": "cpu",
    "data_type": "fp32",
    "max_total_token_num": 1000,
    "max_req_total_len": 128,
    "cpu_threads": 1,
}
TEXTS = ["one two three", "the lazy dog " * 9, "é"]
TEMPLATE = (
    '{{ messages | selectattr("role", "eq", "query") | map(attribute="content") | first }} and '
    '{{ messages | selectattr("role", "eq", "document") | map(attribute="content") | first }}?'
)


def close(actual: list[float], expected: torch.Tensor) -> None:
    torch.testing.assert_close(torch.tensor(actual), expected, rtol=0, atol=1e-4)


def unit(vector: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(vector, dim=0)


def test_embeddings_and_their_cosines(tmp_path: Path) -> None:
    reference = make_embedding_model(tmp_path, "mean", matryoshka_dimensions=[16])
    with LLM(tmp_path, **OPTIONS) as llm:
        vectors = [reference(llm.tokenizer.encode(text)) for text in TEXTS]
        for output, text, vector in zip(llm.embed(TEXTS, use_tqdm=False), TEXTS, vectors, strict=True):
            close(output.outputs.embedding, unit(vector))
            assert output.prompt_token_ids == llm.tokenizer.encode(text)
        (output,) = llm.embed(TEXTS[0], dimensions=16, use_tqdm=False)
        close(output.outputs.embedding, unit(vectors[0][:16]))
        (output,) = llm.embed([[5, 6, 7]], normalize=False, use_tqdm=False)
        close(output.outputs.embedding, reference([5, 6, 7]))
        scores = [one.outputs.score for one in llm.score(TEXTS[0], TEXTS, use_tqdm=False)]
        close(scores, torch.stack([unit(vectors[0]) @ unit(vector) for vector in vectors]))
        with pytest.raises(InvalidParameter, match="one of 16"):
            llm.embed("a", dimensions=8)
        with pytest.raises(InvalidParameter, match="is for embed"):
            llm.classify("a")
        with pytest.raises(PromptTooLong, match="129 tokens"):
            llm.embed([[5] * 129])
        for ask in (llm.generate, llm.chat, lambda text: next(llm.stream(text))):
            with pytest.raises(InvalidParameter, match="makes vectors"):
                ask("a")


def test_labels(tmp_path: Path) -> None:
    reference = make_classifier(tmp_path)
    with LLM(tmp_path, **OPTIONS) as llm:
        for output, text in zip(llm.classify(TEXTS, use_tqdm=False), TEXTS, strict=True):
            logits = reference(llm.tokenizer.encode(text))
            close(output.outputs.probs, torch.softmax(logits, 0))
            assert output.outputs.label == f"LABEL_{int(logits.argmax())}"
        with pytest.raises(InvalidParameter, match="several labels"):
            llm.score("a", "b")


def test_a_judges_scores(tmp_path: Path) -> None:
    reference = make_judge(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": TEMPLATE}))
    with LLM(tmp_path, **OPTIONS) as llm:
        scores = [one.outputs.score for one in llm.score("who", TEXTS, use_tqdm=False)]
        prompts = [llm.tokenizer.encode(f"who and {text}?", False) for text in TEXTS]
        close(scores, torch.stack([torch.softmax(reference(ids), 0)[1] for ids in prompts]))
        each = [one.outputs.score for one in llm.score(["who"] * 3, TEXTS, use_tqdm=False)]
        assert each == pytest.approx(scores, abs=1e-6)
        with pytest.raises(InvalidParameter, match="2 queries for 3 documents"):
            llm.score(["a", "b"], TEXTS)


def test_a_model_that_generates_gives_vectors_only_if_asked(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, "qwen3")
    with LLM(tmp_path, **OPTIONS) as llm, pytest.raises(InvalidParameter, match='task="embed"'):
        llm.embed("a")
    with LLM(tmp_path, task="embed", **OPTIONS) as llm:
        assert len(llm.embed("a", use_tqdm=False)[0].outputs.embedding) == 64


def test_a_reward_model_needs_a_server(tmp_path: Path) -> None:
    make_reward_model(tmp_path, "Qwen2ForRewardModel")
    with pytest.raises(InvalidOption, match="/get_score"):
        LLM(tmp_path, use_reward_model=True, **OPTIONS)
