"""Bodies of LightLLM's own API. Names, defaults and ranges are LightLLM's; null means the default."""

from __future__ import annotations

import functools
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, WithJsonSchema

from lightllm.errors import InvalidParameter
from lightllm.httpserver.reading import constraints, other_fields
from lightllm.httpserver.reading.field_types import BadWords, Body, Bool, Int, StopTexts, Text, TokenIds
from lightllm.httpserver.reading.sampling_fields import Encode, sampling_fields, stated
from lightllm.images.source import ImageSource, native_sources
from lightllm.parameter_spec import MAX_INT, Range
from lightllm.sampling_params import CONSTRAINTS, MAX_BEST_OF, SamplingParams

_LAX_INT: TypeAdapter[int] = TypeAdapter(int)
_LAX_FLOAT: TypeAdapter[float] = TypeAdapter(float)


class Grammar(Body):
    """TGI's way to ask for a constraint."""

    type: Literal["json", "json_schema", "regex"]
    value: constraints.JsonSchema


_Sampling: Any = sampling_fields(
    "native",
    placed={
        "best_of": ("n",),
        "include_stop_str_in_output": ("add_special_tokens",),
        "print_eos_token": ("return_details", "details"),
    },
)


class Parameters(_Sampling):
    """Sampling parameters of `/generate`; `other_fields` judges what is not here."""

    model_config = ConfigDict(extra="allow")

    n: Int | None = Field(default=None, description="The same as best_of.")
    add_special_tokens: Bool | None = None
    return_details: Bool | None = None
    details: Bool | None = Field(default=None, description="return_details, as TGI calls it.")
    return_full_text: Bool | None = Field(default=None, description="The prompt before the answer (TGI).")
    stop: Text | StopTexts | None = Field(default=None, description="stop_sequences, as TGI calls them.")
    truncate: Int | None = Field(
        default=None, description="So many tokens at the prompt's end are kept (TGI)."
    )
    grammar: Grammar | None = Field(
        default=None, description="guided_json or regular_constraint, as TGI has them."
    )
    regex: Text | None = Field(default=None, description="regular_constraint, as SGLang calls it.")
    ebnf: Text | None = Field(default=None, description="guided_grammar, as SGLang calls it.")
    json_schema: constraints.JsonSchema | None = Field(
        default=None, description="guided_json, as SGLang calls it."
    )
    prompt_logprobs: Int | None = Field(
        default=None,
        description="How likely each token of the prompt was, and so many alternatives to it; -1: none.",
    )
    bad_words: BadWords | None = Field(
        default=None, description="Texts that the output does not hold; a constraint."
    )
    return_timings: Bool | None = Field(default=None, description="How long the request took.")
    timings_per_token: Bool | None = Field(default=None, description="return_timings, as llama.cpp calls it.")

    @property
    def wants_details(self) -> bool:
        return bool(self.return_details or self.details)

    def sampling(self, defaults: dict[str, Any], encode: Encode, tgi: bool = False) -> SamplingParams:
        """As `SamplingParams`, not verified. `defaults` are the model's (generation_config.json); tgi: asked for as TGI is.
        Without a limit it is the highest there is: `PromptEncoder.fit` says what the prompt leaves."""
        other_fields.check(
            self, self.model_extra, other_fields.NATIVE_REFUSED, other_fields.NATIVE_HARMLESS, "/generate"
        )
        values = {"do_sample": False, "max_new_tokens": MAX_INT, **defaults}
        values |= stated(self, "native", encode)
        if self.seed == -1:  # none, since LightLLM 1.2
            del values["seed"]
        if tgi and not self.do_sample and self._has_sampler():
            values["do_sample"] = True
        if self.stop is not None and self.stop_sequences is not None:
            raise InvalidParameter("stop and stop_sequences can not be used in same time", param="stop")
        stop = self.stop_sequences if self.stop is None else self.stop
        if stop is not None:
            values["stop_sequences"] = [stop] if isinstance(stop, str) else stop
        if self.guided_json is not None:
            values["guided_json"] = constraints.schema_text(self.guided_json)
        if self.asked.field:
            given = [name for name in CONSTRAINTS if values.get(name)]
            constraints.the_one_of(self.asked, *(constraints.ConstraintRequest(name, {}) for name in given))
            values |= self.asked.values
        if self.exponential_decay_length_penalty is not None:
            values["exponential_decay_length_penalty"] = self._decay()
        values["n"] = self._best_of()
        if self.prompt_logprobs is not None:
            values["prompt_logprobs"] = self.prompt_logprobs
        return SamplingParams(**values)

    def _has_sampler(self) -> bool:
        """TGI samples if any of these says something, whatever `do_sample` is."""
        return self.temperature not in (None, 1) or self.top_p not in (None, 1) or bool(self.top_k)

    @functools.cached_property
    def asked(self) -> constraints.ConstraintRequest:
        """A constraint under another server's name."""
        grammar = constraints.NO_CONSTRAINT
        if self.grammar is not None:
            value = self.grammar.value
            if self.grammar.type == "json_schema" and isinstance(value, dict) and "schema" in value:
                value = value["schema"]  # beside its name
            if self.grammar.type == "regex" and not isinstance(value, str):
                raise InvalidParameter("grammar: a regex is a text", param="grammar")
            kind = "regular_constraint" if self.grammar.type == "regex" else "guided_json"
            grammar = constraints.asked("grammar", kind, value)
        return constraints.the_one_of(
            grammar,
            constraints.asked("regex", "regular_constraint", self.regex),
            constraints.asked("ebnf", "guided_grammar", self.ebnf),
            constraints.asked("json_schema", "guided_json", self.json_schema),
            constraints.of_bad_words("bad_words", self.bad_words),
        )

    def kept_prompt(self, limit: int) -> int | None:
        """How many tokens at the prompt's end are kept; None: all."""
        if self.truncate is not None:
            Range(1, limit).require("truncate", self.truncate, "truncate")
        return self.truncate

    def _best_of(self) -> int:
        best_of = self.best_of if self.best_of is not None else self.n
        if best_of is None:
            return 1
        if not 0 < best_of <= MAX_BEST_OF:
            raise InvalidParameter(f"need 0 < best_of <= {MAX_BEST_OF}, but got {best_of}", param="best_of")
        if self.n is not None and self.n != best_of:
            raise InvalidParameter("current only supported n == best_of", param="n")
        return best_of

    def _decay(self) -> tuple[int, float]:
        name = "exponential_decay_length_penalty"
        start, factor = self.exponential_decay_length_penalty or (1, 1.0)
        wanted = "item 0 must be an integer of at least 0"
        try:
            start = _LAX_INT.validate_python(start)
            wanted = "item 1 must be a number of at least 1.0"
            # Beyond these it is out of range in any case.
            return start, max(-MAX_INT, min(_LAX_FLOAT.validate_python(factor), MAX_INT))
        except ValidationError as error:
            raise InvalidParameter(f"{name}: {wanted}", param=name) from error


_NoItems = Annotated[list[Any], WithJsonSchema({"type": "array", "maxItems": 0})]
"""The schema demands what every model takes; the error is our own."""


class MultimodalParams(Body):
    images: _NoItems | None = Field(
        default=None,
        description="Of a model that sees: objects with type (base64, url or image_size) and data.",
    )
    audios: _NoItems | None = None


def image_sources(params: MultimodalParams | None, sees: bool) -> list[ImageSource]:
    """sees: whether the model takes images. Raises `InvalidParameter` for what it does not take."""
    if params is None:
        return []
    if params.audios:
        raise InvalidParameter("audios are not supported yet", param="multimodal_params")
    if params.images and not sees:
        raise InvalidParameter("this model takes no images", param="multimodal_params")
    return native_sources(params.images)


class GenerateRequest(Body):
    """Body of `/generate` and `/generate_stream`."""

    model_config = ConfigDict(extra="allow")

    inputs: Text | TokenIds = Field(description="A text, or its token ids.")
    parameters: Parameters | None = None
    multimodal_params: MultimodalParams | None = None
    stream: Bool | None = Field(default=None, description="Of POST / only.")

    def refuse_others(self, stream: bool) -> None:
        """Raises `InvalidParameter` for what stands beside `inputs` and would have an effect elsewhere."""
        if self.stream and not stream:
            raise InvalidParameter("stream is not supported: use /generate_stream", param="stream")
        others = dict(self.model_extra or {})
        for name, value in others.items():
            if name in Parameters.model_fields and value is not None:
                raise InvalidParameter(f"{name} belongs into parameters", param=name)
        other_fields.check(
            self, others, other_fields.NATIVE_BESIDE, other_fields.NATIVE_HARMLESS, "/generate"
        )


class ScoreRequest(Body):
    """Body of `/get_score`."""

    chat: Text | list[dict[str, Any]] = Field(
        description="A conversation: messages, or its text as the model's chat template has it."
    )
    multimodal_params: MultimodalParams | None = None


class TokensRequest(Body):
    """Body of `/tokens`."""

    text: Text
    parameters: Parameters | None = None
    multimodal_params: MultimodalParams | None = None


class AbortBody(Body):
    """Body of `/abort_request`."""

    request_id: Annotated[str, Field(strict=True, min_length=1, max_length=256)] = Field(
        description="The X-Request-Id, or the id in the answer, of the request to end."
    )
