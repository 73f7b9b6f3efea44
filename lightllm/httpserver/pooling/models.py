"""Bodies of the routes for vectors: OpenAI's embeddings, with extensions of vLLM; vLLM's classes and scores; Jina's and Cohere's
rankings. Null means the default."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from lightllm.errors import InvalidParameter
from lightllm.httpserver.reading import other_fields
from lightllm.httpserver.reading.field_types import MAX_STRINGS, Body, Bool, Float, Int, Text, TokenIds
from lightllm.httpserver.reading.other_fields import Refused
from lightllm.sampling_params import SamplingParams

Texts = Annotated[list[Text], Field(fail_fast=True, min_length=1, max_length=MAX_STRINGS)]
_Lists = Annotated[list[TokenIds], Field(fail_fast=True, min_length=1, max_length=MAX_STRINGS)]
Input = Text | Texts | TokenIds | _Lists
"""A text, its token ids, or several of either."""

_NO = Refused()
_CUT = Refused("truncate_prompt_tokens", ("NONE",))
POOLING_REFUSED = {
    "messages": Refused("input"), "prompt_name": Refused("input"), "prompt": Refused("input"), "task": _NO,
    "input_type": Refused("input"), "embed_dtype": Refused(neutral=("float32",)),
    "endianness": Refused(neutral=("native", "little")), "embedding_type": Refused("encoding_format", ("float",)),
    "embedding_types": Refused("encoding_format", (["float"],)), "output_dimension": Refused("dimensions"),
    "late_chunking": _NO, "chat_template": _NO, "chat_template_kwargs": _NO, "mm_processor_kwargs": _NO, "images": _NO,
    "truncate": _CUT, "max_tokens_per_doc": Refused("truncate_prompt_tokens"), "max_chunks_per_doc": _NO,
    "rank_fields": _NO, "raw_scores": Refused("use_activation"), "cache_salt": _NO, "step_tag_id": _NO,
    "returned_token_ids": _NO,
}  # fmt: skip
"""On all routes for vectors, but what one of them has. Instructions are part of the text: its author writes them there."""
POOLING_HARMLESS = frozenset({"user", "request_id", "rid", "metadata", "safety_identifier", "client_name"})


class PoolingRequest(Body):
    """What all these bodies have."""

    model_config = ConfigDict(extra="allow")

    model: Text | None = None
    user: Any = None
    add_special_tokens: Bool | None = Field(
        default=None,
        description="BOS, EOS and the like around each text; by default as the tokenizer has them.",
    )
    truncate_prompt_tokens: Int | None = Field(
        default=None, description="So many tokens of each input are kept; -1: as many as the model takes."
    )
    truncation_side: Literal["left", "right"] | None = Field(
        default=None, description="Where tokens are dropped; by default at the end."
    )
    priority: Int | None = None
    timeout: Float | None = None

    def sampling(self, vocab_size: int, where: str) -> SamplingParams:
        """What travels with each input. Raises `InvalidParameter`, also for fields that would change the answer."""
        other_fields.check(self, self.model_extra, POOLING_REFUSED, POOLING_HARMLESS, where)
        params = SamplingParams(
            do_sample=False, max_new_tokens=1, ignore_eos=True, seed=0, logprobs=-1, priority=self.priority or 0,
            timeout=self.timeout,
        )  # fmt: skip
        return params.verify(vocab_size)

    def kept(self, limit: int) -> int | None:
        """How many tokens of each input are kept; None: all. Raises `InvalidParameter`."""
        keep = self.truncate_prompt_tokens
        if keep is not None and keep != -1 and not 1 <= keep <= limit:
            raise InvalidParameter(
                f"truncate_prompt_tokens must be -1 or in [1, {limit}], got {keep}",
                param="truncate_prompt_tokens",
            )
        return limit if keep == -1 else keep


class EmbeddingsRequest(PoolingRequest):
    """Body of `/v1/embeddings`."""

    input: Input
    encoding_format: Literal["float", "base64"] | None = Field(
        default=None, description="base64: of the float32 numbers, little-endian."
    )
    dimensions: Int | None = Field(
        default=None, description="The first so many numbers alone, of a model that was trained for it."
    )
    normalize: Bool | None = Field(
        default=None, description="Vectors of length 1; by default as the model folder says."
    )
    use_activation: Bool | None = Field(default=None, description="The same, as vLLM calls it.")

    @property
    def normalizes(self) -> bool | None:
        """None: as the model folder says."""
        if None not in (self.normalize, self.use_activation) and self.normalize != self.use_activation:
            raise InvalidParameter("normalize and use_activation contradict each other", param="normalize")
        return self.use_activation if self.normalize is None else self.normalize


class ActivatedRequest(PoolingRequest):
    """What is asked of a head."""

    use_activation: Bool | None = Field(
        default=None, description="false: the model's numbers as they are, instead of probabilities."
    )
    activation: Bool | None = Field(default=None, description="The same, as vLLM called it before.")
    softmax: Bool | None = Field(default=None, description="The same, as vLLM called it first.")

    @property
    def activates(self) -> bool | None:
        """None: as it is by default."""
        given = {name: getattr(self, name) for name in ("use_activation", "activation", "softmax")}
        stated = {name: value for name, value in given.items() if value is not None}
        if len(set(stated.values())) > 1:
            raise InvalidParameter(f"{' and '.join(stated)} contradict each other", param=list(stated)[-1])
        return next(iter(stated.values()), None)


class ClassifyRequest(ActivatedRequest):
    """Body of `/classify`."""

    input: Input


class PairsRequest(ActivatedRequest):
    """What is asked of queries and documents."""

    instruction: Text | None = Field(
        default=None, description="What makes a document fit, for models whose template has a place for it."
    )


class PairScoresRequest(PairsRequest):
    """Body of `/score`."""

    queries: Text | Texts | None = Field(
        default=None, description="A text, or several: one for all documents, or one for each."
    )
    documents: Text | Texts | None = None
    text_1: Text | Texts | None = Field(default=None, description="queries, as vLLM called them before.")
    text_2: Text | Texts | None = Field(default=None, description="documents, as vLLM called them before.")

    def pairs(self) -> tuple[list[str], list[str]]:
        """Queries, one or as many as documents, and documents. Raises `InvalidParameter`."""
        sides = []
        for name, old in (("queries", "text_1"), ("documents", "text_2")):
            given = [value for value in (getattr(self, name), getattr(self, old)) if value is not None]
            if len(given) != 1:
                raise InvalidParameter(f"give {name} (or {old}, one of them)", param=name)
            sides.append([given[0]] if isinstance(given[0], str) else given[0])
        queries, documents = sides
        if len(queries) not in (1, len(documents)):
            raise InvalidParameter(
                f"{len(queries)} queries for {len(documents)} documents: there must be one, or one for each",
                param="queries",
            )
        return queries, documents


class Document(Body):
    text: Text


class RerankRequest(PairsRequest):
    """Body of `/rerank`."""

    query: Text
    documents: Annotated[list[Text | Document], Field(fail_fast=True, min_length=1, max_length=MAX_STRINGS)]
    top_n: Int | None = Field(default=None, description="So many documents, the best; by default all.")
    return_documents: Bool | None = Field(default=None, description="With their texts (true).")
    max_tokens_per_doc: Int | None = Field(
        default=None, description="So many tokens at the beginning of each document count."
    )

    def texts(self) -> list[str]:
        return [item if isinstance(item, str) else item.text for item in self.documents]

    def checked_top(self) -> int | None:
        """How many documents are wanted; None: all."""
        if self.top_n is not None and self.top_n < 0:
            raise InvalidParameter(f"top_n must be at least 0, got {self.top_n}", param="top_n")
        return self.top_n or None
