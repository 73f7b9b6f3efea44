"""Every sampling parameter, declared once: names, default, range, message, and what the APIs and the backend make of it.

`SamplingParams` is the one validated form. The HTTP routes and the offline `LLM` build it, and it travels to the
router (lengths, stop tokens), the backend (sampling) and the detokenizer (stop strings) unchanged. Both request bodies
(`httpserver/reading/sampling_fields.py`), the defaults of generation_config.json, the backend's arrays and the table of
docs/api.md follow from it; docs/adding_a_parameter.md shows how.
Names are LightLLM's; `min_p`, `seed`, `stop_token_ids`, `logit_bias`, `include_stop_str_in_output` are vLLM's.
"""

from __future__ import annotations

import functools
from typing import Annotated, Any

import msgspec

from lightllm.errors import InvalidParameter
from lightllm.foreign_options import advice
from lightllm.parameter_spec import MAX_INT, Parameter, Range, shown, spec_of

MAX_BEST_OF = 128
MAX_STOP_SEQUENCES = 64
MAX_STOP_SEQUENCE_LENGTH = 1024
"""Characters of one stop string, or tokens of one stop token sequence."""
MAX_TOKEN_LIST = 1024
"""Entries of `stop_token_ids`, `allowed_token_ids` and `logit_bias`."""
CONSTRAINTS = {"regular_constraint": 1 << 14, "guided_grammar": 1 << 15, "guided_json": 1 << 16}
"""The fields of `SamplingParams` of which one request has at most one, and the bytes (UTF-8) that each may have."""
MAX_CALL_GRAMMAR = 1 << 19
"""Bytes of a grammar of tool calls: it holds the schemas of all tools."""
MAX_LOGPROBS = 20
GREEDY_TEMPERATURE = 1e-5
"""Temperatures below this mean greedy decoding."""
MAX_SEED = 2**63 - 1
MAX_TIMEOUT = 1e9
"""Seconds: thirty years."""

_REPETITION_PENALTIES = Range(0.01, 100.0)
"""Beyond these a logit times or divided by the penalty leaves the range of its type."""
_COUNTED_PENALTY: dict[str, Any] = {
    "ranges": (Range(-2.0, 2.0),), "native_ranges": (Range(0.0, 100.0),), "native_least": 0.0,
    "values": "0 to 100", "row_dtype": "float32",
}  # fmt: skip
_LOGPROBS = Range(-1, MAX_LOGPROBS)


class _Answering(type(msgspec.Struct)):  # type: ignore[misc]
    """Says what a parameter is called here. Only Python's callers pass here; decoded messages do not."""

    def __call__(cls, *args: Any, **given: Any) -> Any:
        try:
            return super().__call__(*args, **given)
        except TypeError as error:
            known = cls.__struct_fields__
            unknown = [name for name in given if name not in known]
            if not unknown:
                raise
            answers = [
                f"{cls.__name__} has no {name}. {advice(name, known, other_names(), '')}".strip()
                for name in unknown
            ]
            raise TypeError(" ".join(answers)) from error


class SamplingParams(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True, metaclass=_Answering):
    """How one request is sampled. Immutable; `verify()` raises `InvalidParameter` naming the field and the limit.

    Penalties follow LightLLM / OpenAI: with `c` the count of a token among the counted tokens, logits > 0 are divided
    by `repetition_penalty` (others multiplied), then `c * frequency_penalty` and `(c > 0) * presence_penalty` are
    subtracted. Presence and frequency count generated tokens (plus the prompt if `input_penalty`); repetition counts
    generated tokens plus the prompt if `input_penalty` or `repetition_counts_prompt` (the /v1 routes set it, as vLLM).
    """

    # fmt: off
    n: Annotated[int, Parameter(
        "this many answers", values=f"≤ {MAX_BEST_OF}", description="Answers to generate; all are returned. Streams: 1.",
        ranges=(Range(0, MAX_BEST_OF, above=True, text=f"need 0 < best_of <= {MAX_BEST_OF}, but got {{value}}"),),
        native="best_of", native_too=("n",), neutral=(1,),
    )] = 1
    do_sample: Annotated[bool, Parameter(
        "false: greedy, whatever the other parameters say", shown_default="false; /v1: true", in_generation_config=True,
    )] = True
    temperature: Annotated[float, Parameter(
        "below 1e-5: greedy", ranges=(Range(0.0, 100.0, below="{name} must >= 0.0, got {value}"),),
        in_generation_config=True,
    )] = 1.0
    top_p: Annotated[float, Parameter(
        "nucleus", ranges=(Range(0.0, 1.0, above=True),), in_generation_config=True, row_dtype="float64",
    )] = 1.0
    top_k: Annotated[int, Parameter(
        "-1: all; /v1: 0 too", ranges=(Range(1, MAX_INT, besides=-1, text=(
            "top_k must be -1 (disable), or at least 1, got {value}.{at_most}")),),
        zero_means=-1, in_generation_config=True,
    )] = -1
    min_p: Annotated[float, Parameter(
        "drop tokens below this share of the most likely one", ranges=(Range(0.0, 1.0),), in_generation_config=True,
        row_dtype="float64",
    )] = 0.0
    seed: Annotated[int | None, Parameter(
        "the same seed gives the same tokens ([how exactly](architecture.md#random-numbers)); /v1: negative ones too, but -1 is none",
        shown_default="drawn", ranges=(Range(0, MAX_SEED),),
    )] = None
    """Random numbers depend on (seed, choice index, output position) only. None: the Http Server draws one."""
    presence_penalty: Annotated[float, Parameter("over generated tokens; /v1: -2 to 2", **_COUNTED_PENALTY)] = 0.0
    frequency_penalty: Annotated[float, Parameter("over generated tokens; /v1: -2 to 2", **_COUNTED_PENALTY)] = 0.0
    repetition_penalty: Annotated[float, Parameter(
        "over generated tokens; /v1: prompt too, from 0.01", values="1 to 100", ranges=(_REPETITION_PENALTIES,),
        native_least=1.0, in_generation_config=True, row_dtype="float32",
    )] = 1.0
    input_penalty: Annotated[bool, Parameter(
        "penalties count the prompt too", description="Penalties count the prompt's tokens too.", openai=None,
    )] = False
    repetition_counts_prompt: Annotated[bool, Parameter(native=None, openai=None)] = False
    exponential_decay_length_penalty: Annotated[tuple[int, float], Parameter(
        "[start, factor]: raises EOS after `start` tokens by `factor`", values="0 to 2^31-1; 1 to 100", description="[start, factor]",
        ranges=(
            Range(0, MAX_INT, text=f"{{name}}: item 0, the first token that counts, must be in [0, {MAX_INT}], got {{value}}"),
            Range(1.0, 100.0, text="{name}: item 1, the factor, must be in [1.0, 100.0], got {value}"),
        ),
        openai=None,
    )] = (1, 1.0)
    """(start, factor): after `start` generated tokens the EOS logit grows by |logit| * (factor^(len - start) - 1)."""
    logit_bias: Annotated[dict[int, float], Parameter("token id → added to its logit", values="-100 to 100")] = {}
    allowed_token_ids: Annotated[list[int], Parameter("nothing else may be sampled", values=f"≤ {MAX_TOKEN_LIST}")] = []
    ignore_eos: Annotated[bool, Parameter("go on after EOS")] = False
    max_new_tokens: Annotated[int, Parameter(
        "longest output", ranges=(Range(1, MAX_INT, text="{name} must be at least 1, got {value}.{at_most}"),),
        openai="max_tokens", elsewhere=("max_completion_tokens",),
    )] = 16
    min_new_tokens: Annotated[int, Parameter(
        "EOS and stop tokens are impossible before", values="≤ `max_new_tokens`",
        ranges=(Range(1, text="{name} must be at least 1, got {value}."),),
        openai="min_tokens", neutral=(0, 1), row_dtype="int64",
    )] = 1
    stop_sequences: Annotated[list[str | list[int]], Parameter(
        "text or token id lists, matched on text, across token borders, special tokens included even where they are not shown; not part of the output",
        values=f"≤ {MAX_STOP_SEQUENCES} of ≤ {MAX_STOP_SEQUENCE_LENGTH}",
        description="Strings, or token id sequences, that end the text; they are not part of it.", native_too=("stop",), openai="stop",
    )] = []
    stop_token_ids: Annotated[list[int], Parameter("end like EOS", values=f"≤ {MAX_TOKEN_LIST}")] = []
    include_stop_str_in_output: Annotated[bool, Parameter(
        "stop sequences are part of the output, as they are written, like the stop token that ended it",
    )] = False
    skip_special_tokens: Annotated[bool, Parameter(
        "leave special tokens out of the text; false shows them, but for the EOS at the end",
    )] = True
    add_spaces_between_special_tokens: Annotated[bool, Parameter(
        "a space between special tokens that follow one another, where they are shown", openai="spaces_between_special_tokens",
        foreign_name_refused=False,
    )] = True
    print_eos_token: Annotated[bool, Parameter("show EOS in the text", openai=None, foreign_name_refused=False)] = False
    logprobs: Annotated[int, Parameter(ranges=(_LOGPROBS,), native=None, openai=None)] = 0
    """How many alternatives with their log-probabilities to report a position. 0: only the chosen token's; -1: not even
    that, it is reported as 0 (a pass over the whole vocabulary is saved)."""
    raw_logprobs: Annotated[bool, Parameter(native=None, openai=None)] = False
    """True (/v1): log-softmax of the untouched logits. False (native): after penalties and temperature."""
    prompt_logprobs: Annotated[int, Parameter(ranges=(_LOGPROBS,), native=None, openai=None)] = -1
    """-1: none; k >= 0: log-probability of every prompt token, with k alternatives."""
    priority: Annotated[int, Parameter(
        "lower ones are admitted first, and the highest is paused first", ranges=(Range(-MAX_INT, MAX_INT),),
    )] = 0
    timeout: Annotated[float | None, Parameter(
        "seconds until the request is aborted", values="above 0, to 1e9", shown_default="server's",
        description="Seconds after which the request is aborted.",
        ranges=(Range(0, MAX_TIMEOUT, above=True, text=(
            f"timeout must be a number of seconds in (0, {MAX_TIMEOUT:.0f}], got {{value}}")),),
    )] = None
    """Seconds from acceptance; None: the server's `--request_timeout`."""
    regular_constraint: Annotated[str, Parameter(
        "a regular expression that the whole output matches ([constrained output](#constrained-output)); at most one of the three",
        values="≤ 16 KiB", description="A regular expression that the whole output matches.", native_too=("regex",), openai="guided_regex",
    )] = ""
    guided_grammar: Annotated[str, Parameter(
        "a grammar (GBNF / EBNF as llama.cpp has it, or Lark) that the output is a sentence of", values="≤ 32 KiB",
        description="A grammar (GBNF, or Lark) that the output is a sentence of.", native_too=("ebnf",),
    )] = ""
    guided_json: Annotated[str, Parameter(
        "a JSON schema, an object or its text, that the output fits", values="≤ 64 KiB",
        description="A JSON schema, or its text; the output is a value that it describes.", native_too=("json_schema",),
        elsewhere=("structured_outputs",),
    )] = ""
    call_grammar: Annotated[str, Parameter(native=None, openai=None)] = ""
    """A grammar in Lark that the Http Server has made of a request's tools; then there is no other constraint."""
    constraint_prefix: Annotated[str, Parameter(native=None, openai=None)] = ""
    """A grammar in Lark, made by the Http Server, that has the constrained output as `@body`: reasoning may come before it."""
    # fmt: on

    @property
    def greedy(self) -> bool:
        if not self.do_sample or self.temperature < GREEDY_TEMPERATURE:
            return True
        # The most likely token as well; but its log-probability may have to be that after temperature.
        return self.top_k == 1 and (self.temperature == 1.0 or self.raw_logprobs)

    @property
    def constrained(self) -> bool:
        """Whether the tokens that may come are known only from those that came before."""
        return bool(self.regular_constraint or self.guided_grammar or self.guided_json or self.call_grammar)

    def verify(self, vocab_size: int | None = None, native: bool = False) -> "SamplingParams":
        """Checks every range and returns self. `native` adds the narrower ranges of LightLLM's own API."""
        for name, spec in _CHECKED:
            # Some texts are LightLLM's own, which its clients match on.
            if native and spec.native_least is not None and not getattr(self, name) >= spec.native_least:
                value = shown(getattr(self, name))
                raise InvalidParameter(f"{name} must >= {spec.native_least}, got {value}", param=name)
        for name, spec in _CHECKED:
            value = getattr(self, name)
            ranges = spec.native_ranges if native and spec.native_ranges else spec.ranges
            for item, one in zip(value if len(ranges) > 1 else (value,), ranges, strict=True):
                if item is not None:
                    one.require(name, item, spec.native or name)
        _require(
            self.min_new_tokens <= self.max_new_tokens,
            "min_new_tokens",
            f"min_new_tokens must <= max_new_tokens, but got min {shown(self.min_new_tokens)}, "
            f"max {self.max_new_tokens}.",
        )
        self._verify_stops()
        self._verify_tokens(vocab_size)
        self._verify_constraints()
        return self

    def _verify_stops(self) -> None:
        _require(
            len(self.stop_sequences) <= MAX_STOP_SEQUENCES,
            "stop",
            f"Too many stop sequence groups: {len(self.stop_sequences)}, at most {MAX_STOP_SEQUENCES}.",
        )
        for stop in self.stop_sequences:
            _require(len(stop) > 0, "stop", "a stop sequence must not be empty")
            _require(
                len(stop) <= MAX_STOP_SEQUENCE_LENGTH,
                "stop",
                f"stop token length too long: {len(stop)}, at most {MAX_STOP_SEQUENCE_LENGTH}.",
            )

    def _verify_tokens(self, vocab_size: int | None) -> None:
        high = vocab_size if vocab_size is not None else MAX_INT + 1
        stop_ids = [i for stop in self.stop_sequences if isinstance(stop, list) for i in stop]
        for name, ids in (
            ("stop_token_ids", self.stop_token_ids),
            ("allowed_token_ids", self.allowed_token_ids),
            ("logit_bias", list(self.logit_bias)),
            ("stop", stop_ids),
        ):
            if name != "stop":
                _require(
                    len(ids) <= MAX_TOKEN_LIST,
                    name,
                    f"Too many entries in {name}: {len(ids)}, at most {MAX_TOKEN_LIST}.",
                )
            for i in ids:
                _require(
                    0 <= i < high, name, f"{name} contains token id {shown(i)}, which is not in [0, {high})"
                )
        for i, bias in self.logit_bias.items():
            _require(
                -100.0 <= bias <= 100.0,
                "logit_bias",
                f"logit_bias of token {i} must be in [-100, 100], got {shown(bias)}",
            )

    def _verify_constraints(self) -> None:
        """What a constraint says is checked by `constraints.check.check_constraint`."""
        given = [name for name in CONSTRAINTS if getattr(self, name)]
        for name in given:
            length = len(getattr(self, name).encode(errors="replace"))
            _require(
                length <= CONSTRAINTS[name], name, f"{name} has {length} bytes, at most {CONSTRAINTS[name]}"
            )
        length = len(self.call_grammar.encode(errors="replace"))
        _require(
            length <= MAX_CALL_GRAMMAR, "tools",
            f"the tools' schemas make a grammar of {length} bytes, at most {MAX_CALL_GRAMMAR}",
        )  # fmt: skip
        given += ["tool_choice"] * bool(self.call_grammar)
        if given and self.allowed_token_ids:
            given.append("allowed_token_ids")
        _require(
            len(given) <= 1, given[0] if given else "", f"{' and '.join(given)} can not be used in same time"
        )


def _require(condition: bool, param: str, message: str) -> None:
    if not condition:
        raise InvalidParameter(message, param=param)


PARAMETERS: dict[str, Parameter] = {
    field.name: spec_of(field.type) for field in msgspec.structs.fields(SamplingParams)
}
"""Field of `SamplingParams` -> what it declares of itself."""
_CHECKED_FIRST = (
    "n", "presence_penalty", "frequency_penalty", "repetition_penalty", "temperature", "min_p", "top_p", "top_k", "seed",
    "logprobs", "prompt_logprobs", "priority", "timeout",
)  # fmt: skip
"""Of several parameters out of range a client is told of the first in this order; the others follow as declared."""
_CHECKED = [
    (name, PARAMETERS[name])
    for name in dict.fromkeys((*_CHECKED_FIRST, *PARAMETERS))
    if PARAMETERS[name].ranges
]


@functools.cache
def other_names() -> dict[str, str]:
    """Names that the APIs and other servers have for a parameter -> ours."""
    return {
        other: name
        for name, spec in PARAMETERS.items()
        for other in (spec.native, spec.openai, *spec.native_too, *spec.elsewhere)
        if other and other != name
    }
