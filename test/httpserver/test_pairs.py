"""/classify, /score and /rerank before a scripted engine: how pairs are written, and what becomes of the numbers of a head."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from support.checkpoints import write_tokenizer
from support.fake_engine import FakeEngine

from lightllm.errors import InvalidOption, PromptTooLong
from lightllm.httpserver.pooling.pairs import PairForm, PairForms
from lightllm.httpserver.vector_model import VectorModel
from lightllm.model_folder.pooling import Classes
from lightllm.tokenizer import Tokenizer, load_tokenizer

TEMPLATE = (
    "{% for message in messages if message.role == 'system' %}I: {{ message.content }}\n{% endfor %}"
    'Q: {{ messages | selectattr("role", "eq", "query") | map(attribute="content") | first }}\n'
    'D: {{ messages | selectattr("role", "eq", "document") | map(attribute="content") | first }} ?'
)
QWEN3_RERANKER = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct provided. "
    'Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n<Instruct>: {instruction}\n<Query>: {query}\n'
    "<Document>: {document}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
)
LABELS = VectorModel(classes=Classes(("no", "maybe", "yes"), "softmax"))
ONE_LABEL = VectorModel(classes=Classes(("LABEL_0",), "sigmoid"))
Ask = Callable[..., httpx.Response]


def sigmoid(logit: float) -> float:
    return 1 / (1 + np.exp(-logit))


@pytest.fixture(scope="module")
def classifier(ask_of: Callable[..., Ask]) -> Ask:
    return ask_of(LABELS, task="classify")


@pytest.fixture(scope="module")
def scorer(ask_of: Callable[..., Ask]) -> Ask:
    return ask_of(ONE_LABEL, task="classify")


@pytest.fixture(scope="module")
def embedder(ask_of: Callable[..., Ask]) -> Ask:
    return ask_of(VectorModel(2), task="embed")


def answered(answer: httpx.Response) -> Any:
    assert answer.status_code == 200, answer.text
    return answer.json()


def folder(path: Path, template: str | None = None, qwen: bool = False) -> Tokenizer:
    write_tokenizer(path)
    settings = json.loads((path / "tokenizer_config.json").read_text())
    settings.pop("chat_template")
    if template is not None:
        settings["chat_template"] = template
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    if qwen:
        text = (path / "tokenizer.json").read_text().replace("<|user|>", "<|im_start|>")
        (path / "tokenizer.json").write_text(text.replace("<|assistant|>", "<|im_end|>"))
    return load_tokenizer(str(path))


# -- classes


@pytest.mark.parametrize("path", ["/classify", "/v1/classify"])
def test_classes_have_vllms_shape(classifier: Ask, engine: FakeEngine, path: str) -> None:
    engine.script.pool = lambda ids: [1.0, float(len(ids)), 0.5]
    answer = answered(classifier(path, model="m", input=[[5], [6, 7, 8]]))
    assert answer.pop("id").startswith("classify-") and answer.pop("created") > 0
    first, second = answer.pop("data")
    powers = np.exp([[1.0, 1.0, 0.5], [1.0, 3.0, 0.5]])
    np.testing.assert_allclose(
        [first.pop("probs"), second.pop("probs")], powers / powers.sum(1, keepdims=True)
    )
    assert first == {"index": 0, "label": "no", "num_classes": 3}
    assert second == {"index": 1, "label": "maybe", "num_classes": 3}
    usage = answer.pop("usage")
    assert usage["prompt_tokens"] == usage["total_tokens"] == 4 and answer == {"object": "list", "model": "m"}


def test_classes_may_be_wanted_as_they_are(classifier: Ask, engine: FakeEngine) -> None:
    engine.script.pool = lambda ids: [1.0, 2.0, -3.0]
    for field in ("use_activation", "activation"):
        assert answered(classifier("/classify", input="a", **{field: False}))["data"][0]["probs"] == [
            1,
            2,
            -3,
        ]
    assert answered(classifier("/classify", input="a", use_activation=True))["data"][0]["label"] == "maybe"


@pytest.mark.parametrize(
    ("activation", "expected"),
    [("sigmoid", [sigmoid(0.5), 0.0]), ("none", [0.5, -1000]), ("softmax", [1.0, 0.0])],
)
def test_an_activation_is_that_of_the_kind_of_problem(activation: Any, expected: list[float]) -> None:
    model = VectorModel(classes=Classes(("a", "b"), activation))
    logits = np.array([0.5, -1000], dtype=np.float32)
    np.testing.assert_allclose(model.probabilities(logits, None), expected, atol=1e-9)


# -- scores


@pytest.mark.parametrize("path", ["/score", "/v1/score"])
@pytest.mark.parametrize("names", [("queries", "documents"), ("text_1", "text_2")])
def test_scores_have_vllms_shape(scorer: Ask, engine: FakeEngine, path: str, names: tuple[str, str]) -> None:
    engine.script.pool = lambda ids: [len(ids) / 10]
    answer = answered(scorer(path, model="m", **{names[0]: "a b", names[1]: ["c", "d e f"]}))
    lengths = [len(message.prompt_ids) for message in engine.added[-2:]]
    assert [item.pop("score") for item in answer["data"]] == pytest.approx([sigmoid(n / 10) for n in lengths])
    assert answer["data"] == [{"index": n, "object": "score"} for n in range(2)]
    assert answer["id"].startswith("score-") and answer["model"] == "m" and answer["object"] == "list"
    raw = answered(scorer(path, queries="a b", documents="c", use_activation=False))
    assert raw["data"][0]["score"] == pytest.approx(lengths[0] / 10)


def test_a_query_belongs_to_all_documents_or_each_has_its_own(
    scorer: Ask, engine: FakeEngine, tokenizer: Tokenizer
) -> None:
    engine.script.pool = lambda ids: [0.0]
    for queries, documents in (("q", ["a", "b"]), (["q", "r"], ["a", "b"]), (["q"], "a")):
        answered(scorer("/score", queries=queries, documents=documents))
        several = documents if isinstance(documents, list) else [documents]
        asked = queries if isinstance(queries, list) else [queries]
        expected = [tokenizer.encode_pair(asked[n % len(asked)], text) for n, text in enumerate(several)]
        assert [message.prompt_ids.tolist() for message in engine.added[-len(several) :]] == expected
    assert tokenizer.encode_pair("q", "a") == [
        1,
        *tokenizer.encode("q", False),
        1,
        *tokenizer.encode("a", False),
    ]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"queries": "a"}, "documents"),
        ({"documents": "a"}, "queries"),
        ({"queries": "a", "text_1": "b", "documents": "c"}, "queries"),
        ({"queries": ["a", "b"], "documents": ["c"]}, "queries"),
        ({"queries": [], "documents": ["c"]}, "queries"),
        ({"queries": "a", "documents": "c", "instruction": "x"}, "instruction"),
        ({"queries": "a", "documents": "c", "use_activation": True, "activation": False}, "activation"),
        ({"queries": "a", "documents": "word " * 600}, "documents"),
        ({"queries": "word " * 20000, "documents": "a"}, "query"),
        ({"queries": "word " * 30, "documents": "a", "truncate_prompt_tokens": 20}, "truncate_prompt_tokens"),
    ],
)
def test_pairs_that_make_no_sense_are_refused(scorer: Ask, engine: FakeEngine, body: Any, field: str) -> None:
    answer = scorer("/v1/score", **body)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == field, answer.text


def test_an_embedding_model_compares(embedder: Ask, engine: FakeEngine) -> None:
    engine.script.pool = lambda ids: [3.0, 4.0] if len(ids) == 2 else [4.0, 3.0]
    scores = [
        item["score"]
        for item in answered(embedder("/score", queries="a", documents=["b", "a b c d"]))["data"]
    ]
    assert scores == pytest.approx([1.0, 0.96])
    each = answered(embedder("/score", queries=["a", "a b c"], documents=["a b c d", "b c d"]))["data"]
    assert [item["score"] for item in each] == pytest.approx([0.96, 1.0])
    assert embedder("/score", queries="a", documents="b", instruction="i").status_code == 400


def test_several_labels_are_no_score(classifier: Ask, engine: FakeEngine) -> None:
    answer = classifier("/score", queries="a", documents="b")
    assert answer.status_code == 400 and "3 labels, a score has one" in answer.text


# -- rankings


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_rankings_have_the_shape_of_jina_and_cohere(scorer: Ask, engine: FakeEngine, path: str) -> None:
    engine.script.pool = lambda ids: [len(ids) / 10]
    texts = ["c", "d e f g", "c", "d e"]
    answer = answered(scorer(path, model="m", query="q", documents=[{"text": texts[0]}, *texts[1:]]))
    lengths = [len(message.prompt_ids) for message in engine.added[-4:]]
    assert [item["index"] for item in answer["results"]] == [1, 3, 0, 2]
    for item in answer["results"]:
        assert item["document"] == {"text": texts[item["index"]]}
        assert item["relevance_score"] == pytest.approx(sigmoid(lengths[item["index"]] / 10))
    assert answer["id"].startswith("rerank-") and answer["model"] == "m"
    assert answer["usage"]["total_tokens"] == sum(lengths)
    best = answered(scorer(path, query="q", documents=texts, top_n=2, return_documents=False))["results"]
    assert [item["index"] for item in best] == [1, 3] and "document" not in best[0]
    assert len(answered(scorer(path, query="q", documents=texts, top_n=9))["results"]) == 4


def test_a_document_may_be_cut(scorer: Ask, engine: FakeEngine, tokenizer: Tokenizer) -> None:
    engine.script.pool = lambda ids: [0.0]
    answered(scorer("/rerank", query="q", documents=["one two three four"], max_tokens_per_doc=2))
    cut = tokenizer.decode(tokenizer.encode("one two three four", False)[:2])
    assert engine.added[-1].prompt_ids.tolist() == tokenizer.encode_pair("q", cut)
    answered(scorer("/rerank", query="q", documents=["one two " * 900], truncate_prompt_tokens=-1))
    assert len(engine.added[-1].prompt_ids) == 512


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"query": "q"}, "documents"),
        ({"query": "q", "documents": []}, "documents"),
        ({"query": ["q"], "documents": ["a"]}, "query"),
        ({"query": "q", "documents": [{"title": "a"}]}, "documents"),
        ({"query": "q", "documents": ["a"], "top_n": -1}, "top_n"),
        ({"query": "q", "documents": ["a"], "max_tokens_per_doc": 0}, "max_tokens_per_doc"),
        ({"query": "q", "documents": ["a"], "rank_fields": ["title"]}, "rank_fields"),
        ({"query": "q", "documents": ["a"] * 2049}, "documents"),
    ],
)
def test_rankings_that_make_no_sense_are_refused(
    scorer: Ask, engine: FakeEngine, body: Any, field: str
) -> None:
    answer = scorer("/v1/rerank", **body)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == field, answer.text


def test_a_model_that_generates_says_why_it_gives_none(client: httpx.Client) -> None:
    for path, body in (
        ("/classify", {"input": "a"}),
        ("/score", {"queries": "a", "documents": "b"}),
        ("/rerank", {"query": "a", "documents": ["b"]}),
    ):
        answer = client.post(path, json=body)
        assert answer.status_code == 400 and "its model generates texts" in answer.json()["message"], path


# -- forms of pairs


def test_a_models_template_writes_its_pairs(tmp_path: Path) -> None:
    tokenizer = folder(tmp_path, TEMPLATE)
    forms = PairForms(tokenizer, judges=True)
    try:
        plain, instructed = forms.form(None), forms.form("be kind")
    finally:
        tokenizer.close()
    assert plain.encode(tokenizer, "a {{b}}", "c\n", None) == tokenizer.encode("Q: a {{b}}\nD: c\n ?", False)
    expected = tokenizer.encode("I: be kind\nQ: a\nD: c ?", False)
    assert instructed.encode(tokenizer, "a", "c", None) == expected
    assert instructed.encode(tokenizer, "a", "c", True) == [1, *expected]


def test_qwen3_reranker_is_asked_as_it_was_trained(tmp_path: Path) -> None:
    tokenizer = folder(tmp_path, qwen=True)
    forms = PairForms(tokenizer, judges=True)
    web = "Given a web search query, retrieve relevant passages that answer the query"
    for given, instruction in ((None, web), ("be kind", "be kind")):
        text = QWEN3_RERANKER.format(instruction=instruction, query="a", document="b")
        ids = forms.form(given).encode(tokenizer, "a", "b", None)
        assert ids == tokenizer.encode(text, False) and ids[0] == 3
    tokenizer.close()


def test_a_model_that_nobody_knows_how_to_ask_is_refused(tmp_path: Path) -> None:
    tokenizer = folder(tmp_path)
    with pytest.raises(InvalidOption, match="roles"):
        PairForms(tokenizer, judges=True)
    PairForms(tokenizer, judges=False)
    tokenizer.close()


def test_a_long_pair_is_cut_at_its_document(tokenizer: Tokenizer) -> None:
    form = PairForm(("Q: ", "lightllmAQUERY", "\nD: ", "lightllmBDOCUMENT", " ?"))
    document = "Größe one two three four five, déjà vu " * 20
    for left in (False, True):
        ids = form.encode_cut(tokenizer, "who", document, None, 60, left)
        text = tokenizer.decode(ids, skip_special_tokens=False)
        assert 50 < len(ids) <= 60 and text.startswith("Q: who\nD: ") and text.endswith(" ?")
        kept = text.removeprefix("Q: who\nD: ").removesuffix(" ?")
        assert document.endswith(kept) if left else document.startswith(kept)
    assert form.encode_cut(tokenizer, "a", "b", None, 60, False) == form.encode(tokenizer, "a", "b", None)
    with pytest.raises(PromptTooLong, match="without its document"):
        form.encode_cut(tokenizer, "who are you", "b", None, 6, False)
