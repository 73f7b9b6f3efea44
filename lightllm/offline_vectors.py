"""Vectors without a server: what `LLM.embed`, `LLM.classify` and `LLM.score` do, in the shapes that vLLM's have."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np
from tqdm import tqdm

from lightllm.config import ServerConfig
from lightllm.errors import REQUEST_ERRORS, InvalidOption, InvalidParameter
from lightllm.httpserver.pooling.pairs import PairForms
from lightllm.httpserver.vector_model import VectorModel
from lightllm.images.prompt import MarkedPrompt
from lightllm.offline_prompts import AskedPrompt
from lightllm.sampling_params import SamplingParams
from lightllm.tokenizer import Tokenizer

if TYPE_CHECKING:
    from lightllm.engine import Engine

_PARAMS = SamplingParams(do_sample=False, max_new_tokens=1, ignore_eos=True, seed=0, logprobs=-1)
_Output = TypeVar("_Output")


@dataclasses.dataclass
class EmbeddingOutput:
    embedding: list[float]


@dataclasses.dataclass
class ClassificationOutput:
    probs: list[float]
    label: str


@dataclasses.dataclass
class ScoringOutput:
    score: float


@dataclasses.dataclass
class PoolingOutput(Generic[_Output]):
    """What became of one prompt."""

    outputs: _Output
    prompt_token_ids: list[int]


class OfflineVectors:
    """Of one `LLM` whose model makes vectors."""

    def __init__(self, config: ServerConfig, tokenizer: Tokenizer) -> None:
        """config: with its model folder and its task. Raises `StartupError`."""
        model = VectorModel.of(config)
        if model is None:
            raise InvalidOption("A reward model needs a server.", "It answers POST /get_score.")
        self._model, self._tokenizer = model, tokenizer
        self._task, self._name = config.serves, config.model_dir or ""
        self._forms = None if self._task == "embed" else PairForms(tokenizer, self._task == "score")

    def embed(
        self,
        engine: Engine,
        prompts: Sequence[AskedPrompt],
        dimensions: int | None,
        normalize: bool | None,
        show_bar: bool,
    ) -> list[PoolingOutput[EmbeddingOutput]]:
        self._require("embed")
        dimensions = self._model.checked_dimensions(dimensions, self._name)

        def output(vector: np.ndarray) -> EmbeddingOutput:
            return EmbeddingOutput(self._model.embedding(vector, dimensions, normalize).tolist())

        return _outputs(prompts, self._pooled(engine, prompts, show_bar), output)

    def classify(
        self, engine: Engine, prompts: Sequence[AskedPrompt], show_bar: bool
    ) -> list[PoolingOutput[ClassificationOutput]]:
        self._require("classify")

        def output(logits: np.ndarray) -> ClassificationOutput:
            label = self._model.classes.names[int(logits.argmax())]
            return ClassificationOutput(self._model.probabilities(logits, None).tolist(), label)

        return _outputs(prompts, self._pooled(engine, prompts, show_bar), output)

    def score(
        self,
        engine: Engine,
        queries: Sequence[str],
        documents: Sequence[str],
        instruction: str | None,
        show_bar: bool,
    ) -> list[PoolingOutput[ScoringOutput]]:
        """queries: one, or one for each document."""
        if len(queries) not in (1, len(documents)):
            raise InvalidParameter(f"{len(queries)} queries for {len(documents)} documents", "queries")
        pairs = [(queries[index % len(queries)], document) for index, document in enumerate(documents)]
        if self._forms is None:
            return self._similarities(engine, pairs, show_bar)
        if len(self._model.classes.names) > 1:
            raise InvalidParameter("a model of several labels gives no scores: use classify")
        form = self._forms.form(instruction)
        prompts = [_asked(form.encode(self._tokenizer, *pair, None)) for pair in pairs]

        def output(pooled: np.ndarray) -> ScoringOutput:
            return ScoringOutput(self._model.score(pooled, None))

        return _outputs(prompts, self._pooled(engine, prompts, show_bar), output)

    def _similarities(
        self, engine: Engine, pairs: Sequence[tuple[str, str]], show_bar: bool
    ) -> list[PoolingOutput[ScoringOutput]]:
        texts = list(dict.fromkeys(text for pair in pairs for text in pair))
        prompts = [_asked(self._tokenizer.encode(text)) for text in texts]
        vectors = [self._model.embedding(one, None, True) for one in self._pooled(engine, prompts, show_bar)]
        of = dict(zip(texts, zip(prompts, vectors, strict=True), strict=True))
        return [
            PoolingOutput(
                ScoringOutput(float(of[query][1] @ of[document][1])),
                of[query][0].text_ids + of[document][0].text_ids,
            )
            for query, document in pairs
        ]

    def _pooled(self, engine: Engine, prompts: Sequence[AskedPrompt], show_bar: bool) -> list[np.ndarray]:
        """float32 [size] of each prompt. Raises `RequestError`."""
        ids = [one for (one,) in engine.add([(prompt, _PARAMS) for prompt in prompts])]
        found: dict[int, np.ndarray] = {}
        try:
            with tqdm(total=len(ids), desc="Pooling", unit="prompt", disable=not show_bar) as bar:
                for deltas in engine.run():
                    found |= deltas.pooled
                    for finish in deltas.finished:
                        if finish.reason == "error":
                            raise REQUEST_ERRORS[finish.error_type](finish.error)
                    bar.update(len(deltas.finished))
        finally:
            engine.abort(ids)
        return [found[one] for one in ids]

    def _require(self, task: str) -> None:
        if self._task != task:
            raise InvalidParameter(f"this model is for {self._task}, not for {task}")


def _asked(ids: list[int]) -> AskedPrompt:
    return AskedPrompt(None, MarkedPrompt(ids, [], "prompt"))


def _outputs(
    prompts: Sequence[AskedPrompt], pooled: list[np.ndarray], output: Callable[[np.ndarray], _Output]
) -> list[PoolingOutput[_Output]]:
    return [
        PoolingOutput(output(vector), prompt.text_ids) for prompt, vector in zip(prompts, pooled, strict=True)
    ]
