"""Bodies of the OpenAI API, with extensions of vLLM and SGLang; null means the default. `other_fields` judges what is not here."""

from __future__ import annotations

import functools
from typing import Annotated, Any

from pydantic import ConfigDict, Field
from pydantic.json_schema import SkipJsonSchema

from lightllm.errors import InvalidParameter
from lightllm.httpserver.reading import constraints, other_fields
from lightllm.httpserver.reading.field_types import (
    MAX_STRINGS,
    BadWords,
    Body,
    Bool,
    Int,
    Scalar,
    Text,
    TokenIds,
)
from lightllm.httpserver.reading.sampling_fields import Encode, sampling_fields, stated
from lightllm.parameter_spec import Range
from lightllm.sampling_params import MAX_BEST_OF, MAX_LOGPROBS, MAX_SEED, SamplingParams


class StreamOptions(Body):
    include_usage: Bool | None = None
    continuous_usage_stats: Bool | None = None
    """vLLM's: every chunk has the usage so far, if there is one at the end."""


_Sampling: Any = sampling_fields(
    "openai",
    first=(
        "n", "stop", "max_tokens", "temperature", "top_p", "seed", "presence_penalty", "frequency_penalty", "logit_bias",
    ),
    placed={
        "": ("model",),
        "n": ("stream", "stream_options"),
        "logit_bias": ("user", "response_format"),
        "skip_special_tokens": ("add_special_tokens",),
        "timeout": (
            "guided_json", "guided_regex", "guided_choice", "guided_grammar", "structured_outputs", "regex", "ebnf",
            "json_schema", "bad_words", "no_stop_trim", "spaces_between_special_tokens",
        ),
    },
)  # fmt: skip
"""OpenAI's own come first, extensions after them."""


class OpenAIRequest(_Sampling):
    """What chat and completions have in common."""

    model_config = ConfigDict(extra="allow")

    model: Text | None = None
    stream: Bool | None = None
    stream_options: StreamOptions | None = None
    user: Any = None
    response_format: constraints.ResponseFormat | None = None
    add_special_tokens: Bool | None = None
    guided_choice: constraints.Choices | None = None
    structured_outputs: constraints.StructuredOutputs | None = None
    regex: Text | None = None
    ebnf: Text | None = None
    json_schema: constraints.JsonSchema | None = None
    bad_words: BadWords | None = None
    prompt_logprobs: Int | None = None
    no_stop_trim: Bool | None = None
    truncate_prompt_tokens: Int | None = None
    return_token_ids: Bool | None = None
    return_tokens_as_token_ids: Bool | None = None
    return_timings: Bool | None = None
    timings_per_token: Bool | None = None

    @property
    def streamed(self) -> bool:
        return bool(self.stream)

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def sampling(
        self,
        defaults: dict[str, Any],
        encode: Encode,
        max_new_tokens: int,
        logprobs: int,
        prompt_logprobs: int = -1,
    ) -> SamplingParams:
        """As `SamplingParams`, not verified; a limit that is wrong is named as this API names it. Raises `InvalidParameter`
        for fields that are not supported too."""
        other_fields.check(
            self, self.model_extra, other_fields.OPENAI_REFUSED, other_fields.OPENAI_HARMLESS, "/v1"
        )
        if self.stream_options is not None and not self.streamed:
            raise InvalidParameter(
                "stream_options is only allowed when stream is true", param="stream_options"
            )
        values = {**defaults, "do_sample": True, **stated(self, "openai", encode)}
        if self.no_stop_trim is not None:
            values.setdefault("include_stop_str_in_output", self.no_stop_trim)
        values |= self._seed()
        values |= self.constraint.values
        if self.stop is not None:
            values["stop_sequences"] = [self.stop] if isinstance(self.stop, str) else self.stop
        n = 1 if self.n is None else self.n
        Range(1, MAX_BEST_OF).require("n", n, "n")
        values |= {"n": n, "max_new_tokens": max_new_tokens}
        values |= {"min_new_tokens": self._min_new_tokens(max_new_tokens)}
        return SamplingParams(
            raw_logprobs=True,
            repetition_counts_prompt=True,
            logprobs=logprobs,
            prompt_logprobs=max(prompt_logprobs, self._prompt_logprobs()),
            **values,
        )

    def _prompt_logprobs(self) -> int:
        """-1: none."""
        if self.prompt_logprobs is None:
            return -1
        Range(0, MAX_LOGPROBS).require("prompt_logprobs", self.prompt_logprobs, "prompt_logprobs")
        if self.streamed:
            raise InvalidParameter("prompt_logprobs are not available in streams", param="prompt_logprobs")
        return self.prompt_logprobs

    def _seed(self) -> dict[str, int | None]:
        """OpenAI's seeds are signed; -1 is none, as in vLLM. Raises `InvalidParameter`."""
        if self.seed is None or self.seed >= 0:
            return {}  # too large ones are found with the other limits
        Range(-MAX_SEED - 1, MAX_SEED).require("seed", self.seed, "seed")
        return {"seed": None if self.seed == -1 else self.seed & MAX_SEED}

    @functools.cached_property
    def constraint(self) -> constraints.ConstraintRequest:
        """Raises `InvalidParameter` for more than one, and for what is not supported."""
        return constraints.the_one_of(
            constraints.of_response_format(self.response_format),
            constraints.of_structured_outputs(self.structured_outputs),
            constraints.asked("guided_json", "guided_json", self.guided_json),
            constraints.asked("guided_regex", "regular_constraint", self.guided_regex),
            constraints.of_choice("guided_choice", self.guided_choice),
            constraints.asked("guided_grammar", "guided_grammar", self.guided_grammar),
            constraints.asked("json_schema", "guided_json", self.json_schema),
            constraints.asked("regex", "regular_constraint", self.regex),
            constraints.asked("ebnf", "guided_grammar", self.ebnf),
            constraints.of_bad_words("bad_words", self.bad_words),
            constraints.ConstraintRequest("allowed_token_ids" if self.allowed_token_ids else "", {}),
        )

    def kept_prompt(self, output: int | None, limit: int) -> int | None:
        """How many tokens at the prompt's end are kept; None: all. As vLLM has it, -1 keeps what fits beside the output."""
        keep = self.truncate_prompt_tokens
        if keep is None:
            return None
        if keep != -1 and not 1 <= keep <= limit:
            raise InvalidParameter(
                f"truncate_prompt_tokens must be -1 or in [1, {limit}], got {keep}",
                param="truncate_prompt_tokens",
            )
        return max(1, limit - (output or 1)) if keep == -1 else keep

    def _min_new_tokens(self, max_new_tokens: int) -> int:
        """OpenAI's world counts from 0, which is the same as 1 here: some token is always made."""
        if self.min_tokens is None or self.min_tokens == 0:
            return 1
        if not 0 < self.min_tokens <= max_new_tokens:
            raise InvalidParameter(
                f"min_tokens must be in [0, max_tokens = {max_new_tokens}], got {self.min_tokens}",
                param="min_tokens",
            )
        return self.min_tokens

    def checked_max_tokens(self, value: int | None, name: str = "max_tokens") -> int | None:
        if value is not None and not 1 <= value < 2**31:
            raise InvalidParameter(f"{name} must be at least 1 and below 2**31, got {value}", param=name)
        return value


class CompletionRequest(OpenAIRequest):
    """Body of `/v1/completions`."""

    prompt: (
        Text
        | TokenIds
        | Annotated[list[Text], Field(fail_fast=True, max_length=MAX_STRINGS)]
        | Annotated[list[TokenIds], Field(fail_fast=True, max_length=MAX_STRINGS)]
    )
    best_of: Int | None = None
    echo: Bool | None = None
    logprobs: Int | None = None
    suffix: Text | None = None

    @property
    def echo_only(self) -> bool:
        """The prompt is wanted back, maybe with its log-probabilities, and nothing else."""
        return self.max_tokens == 0 and bool(self.echo)

    def output_limit(self) -> int | None:
        """Tokens to generate at most; None: the default. One is made, and not shown, if only the prompt is wanted."""
        if self.max_tokens == 0 and not self.echo:
            raise InvalidParameter(
                "max_tokens must be at least 1; 0 needs echo to be true", param="max_tokens"
            )
        return 1 if self.echo_only else self.checked_max_tokens(self.max_tokens)

    def checked_logprobs(self) -> int | None:
        if self.logprobs is not None:
            Range(0, MAX_LOGPROBS).require("logprobs", self.logprobs, "logprobs")
        return self.logprobs


_Source = SkipJsonSchema[Any]
"""What is heard or seen, in the form that its type has. The schema does not promise it."""


class ContentPart(Body):
    """A part of a content. Its text stands in `text`, that of a refusal or of thinking in the field of that name."""

    type: Text
    text: Text | None = None
    refusal: Text | None = None
    thinking: Text | None = None
    # What is no text stands in the field of its type (`chat_messages.MEDIA_PARTS`).
    image: _Source = None
    image_url: _Source = None
    video: _Source = None
    video_url: _Source = None
    audio_url: _Source = None
    input_audio: _Source = None


class CalledFunction(Body):
    name: Text
    arguments: Text | dict[str, Any] | None = None


class ToolCall(Body):
    id: Text | None = None
    type: Text | None = None
    function: CalledFunction


class Message(Body):
    """One turn of a conversation; roles are free, the chat template judges them."""

    role: Annotated[str, Field(strict=True, min_length=1, max_length=64)]
    content: (
        Text | Annotated[list[ContentPart | Text], Field(fail_fast=True, max_length=MAX_STRINGS)] | None
    ) = None
    name: Text | None = None
    tool_call_id: Text | None = None
    tool_calls: Annotated[list[ToolCall], Field(fail_fast=True, max_length=1024)] | None = None
    function_call: CalledFunction | None = None
    reasoning_content: Text | None = None
    reasoning: Text | None = None
    thinking: Text | None = None
    refusal: Text | None = None
    audio: Any = None
    prefix: Bool | None = None
    """Mistral's and DeepSeek's way to leave the last message open; Qwen's is `partial`."""
    partial: Bool | None = None


class ToolFunction(Body):
    name: Text
    description: Text | None = None
    parameters: dict[str, Any] | None = None
    strict: Bool | None = None
    """Calls fit the parameters' schema also where the model need not call."""


class Tool(Body):
    type: Text
    function: ToolFunction


class ChatRequest(OpenAIRequest):
    """Body of `/v1/chat/completions`."""

    messages: Annotated[list[Message], Field(fail_fast=True, min_length=1, max_length=MAX_STRINGS)]
    max_completion_tokens: Int | None = None
    logprobs: Bool | None = None
    top_logprobs: Int | None = None
    tools: Annotated[list[Tool], Field(fail_fast=True, max_length=1024)] | None = None
    tool_choice: Any = None
    functions: Annotated[list[ToolFunction], Field(fail_fast=True, max_length=1024)] | None = None
    function_call: Any = None
    parallel_tool_calls: Bool | None = None
    separate_reasoning: Bool | None = None
    """LightLLM's and SGLang's: false leaves the reasoning in the content, with its markers."""
    include_reasoning: Bool | None = None
    """vLLM's: false leaves the reasoning out."""
    reasoning_effort: Text | None = None
    enable_thinking: Bool | None = None
    """Qwen's; the same as a template variable."""
    thinking: Any = None
    """DeepSeek's and GLM's: {"type": "enabled"} or {"type": "disabled"}."""
    add_generation_prompt: Bool | None = None
    continue_final_message: Bool | None = None
    chat_template_kwargs: dict[str, Scalar | None] | None = None

    def limit(self) -> int | None:
        """The output limit that the client set, if any."""
        if self.max_completion_tokens is not None:
            return self.checked_max_tokens(self.max_completion_tokens, "max_completion_tokens")
        return self.checked_max_tokens(self.max_tokens)

    def checked_logprobs(self) -> int | None:
        """How many alternatives a position; None: no log-probabilities at all."""
        if not self.top_logprobs:
            return 0 if self.logprobs else None
        if not self.logprobs:
            raise InvalidParameter("top_logprobs needs logprobs to be true", param="top_logprobs")
        Range(0, MAX_LOGPROBS).require("top_logprobs", self.top_logprobs, "top_logprobs")
        return self.top_logprobs
