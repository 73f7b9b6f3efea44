"""What a client may ask of sampling: names, defaults, ranges, messages.

`SamplingParams` is the one validated form. The HTTP routes and the offline `LLM` build it, and it travels to the
router (lengths, stop tokens), the backend (sampling) and the detokenizer (stop strings) unchanged.
Names are LightLLM's; `min_p`, `seed`, `stop_token_ids`, `logit_bias`, `include_stop_str_in_output` are vLLM's.
"""

from __future__ import annotations

from typing import Any

import msgspec

from lightllm.errors import InvalidParameter
from lightllm.foreign_options import OUR_PARAMETERS, advice

MAX_BEST_OF = 128
MAX_STOP_SEQUENCES = 64
MAX_STOP_SEQUENCE_LENGTH = 1024
"""Characters of one stop string, or tokens of one stop token sequence."""
MAX_TOKEN_LIST = 1024
"""Entries of `stop_token_ids`, `allowed_token_ids` and `logit_bias`."""
CONSTRAINTS = {"regular_constraint": 1 << 14, "guided_grammar": 1 << 15, "guided_json": 1 << 16}
"""The fields of `SamplingParams` of which one request has at most one, and the bytes (UTF-8) that each may have."""
MAX_LOGPROBS = 20
GREEDY_TEMPERATURE = 1e-5
"""Temperatures below this mean greedy decoding."""
MAX_SEED = 2**63 - 1
MAX_INT = 2**31 - 1
"""Of counts, positions and priorities: they are 32 bits wide somewhere on their way."""
MIN_REPETITION_PENALTY, MAX_REPETITION_PENALTY = 0.01, 100.0
"""Beyond these a logit times or divided by the penalty leaves the range of its type."""
MAX_TIMEOUT = 1e9
"""Seconds: thirty years."""


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
                f"{cls.__name__} has no {name}. {advice(name, known, OUR_PARAMETERS, '')}".strip()
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

    n: int = 1
    """Number of answers to one prompt. The native API calls it `best_of` and returns all of them."""
    do_sample: bool = True
    """False means greedy, whatever the temperature."""
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    min_p: float = 0.0
    seed: int | None = None
    """Random numbers depend on (seed, choice index, output position) only. None: the Http Server draws one."""
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    input_penalty: bool = False
    repetition_counts_prompt: bool = False
    exponential_decay_length_penalty: tuple[int, float] = (1, 1.0)
    """(start, factor): after `start` generated tokens the EOS logit grows by |logit| * (factor^(len - start) - 1)."""
    logit_bias: dict[int, float] = {}
    allowed_token_ids: list[int] = []
    regular_constraint: str = ""
    """A regular expression that the whole output matches. At most one of the three constraints may be given."""
    guided_grammar: str = ""
    """A context-free grammar (GBNF / EBNF as llama.cpp has it, or Lark) that the output is a sentence of."""
    guided_json: str = ""
    """A JSON schema, as JSON text; the output is a value that it describes."""
    ignore_eos: bool = False
    max_new_tokens: int = 16
    min_new_tokens: int = 1
    """EOS and stop token ids cannot be sampled before this many tokens exist."""
    stop_sequences: list[str | list[int]] = []
    """Strings, matched on text; or token id sequences, which are decoded and matched on text as well."""
    stop_token_ids: list[int] = []
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    add_spaces_between_special_tokens: bool = True
    print_eos_token: bool = False
    logprobs: int = 0
    """How many alternatives with their log-probabilities to report a position. 0: only the chosen token's; -1: not even
    that, it is reported as 0 (a pass over the whole vocabulary is saved)."""
    raw_logprobs: bool = False
    """True (/v1): log-softmax of the untouched logits. False (native): after penalties and temperature."""
    prompt_logprobs: int = -1
    """-1: none; k >= 0: log-probability of every prompt token, with k alternatives."""
    priority: int = 0
    timeout: float | None = None
    """Seconds from acceptance; None: the server's `--request_timeout`."""

    @property
    def greedy(self) -> bool:
        if not self.do_sample or self.temperature < GREEDY_TEMPERATURE:
            return True
        # The most likely token as well; but its log-probability may have to be that after temperature.
        return self.top_k == 1 and (self.temperature == 1.0 or self.raw_logprobs)

    @property
    def constrained(self) -> bool:
        """Whether the tokens that may come are known only from those that came before."""
        return bool(self.regular_constraint or self.guided_grammar or self.guided_json)

    def verify(self, vocab_size: int | None = None, native: bool = False) -> "SamplingParams":
        """Checks every range and returns self. `native` adds the narrower ranges of LightLLM's own API."""
        _require(
            0 < self.n <= MAX_BEST_OF,
            "best_of",
            f"need 0 < best_of <= {MAX_BEST_OF}, but got {_shown(self.n)}",
        )
        self._verify_numbers(native)
        self._verify_lengths()
        self._verify_stops()
        self._verify_tokens(vocab_size)
        self._verify_constraints()
        return self

    def _verify_numbers(self, native: bool) -> None:
        # Some texts are LightLLM's own, which its clients match on.
        if native:
            for name in ("presence_penalty", "frequency_penalty"):
                value = getattr(self, name)
                _require(value >= 0.0, name, f"{name} must >= 0.0, got {_shown(value)}")
            value = self.repetition_penalty
            _require(
                value >= 1.0, "repetition_penalty", f"repetition_penalty must >= 1.0, got {_shown(value)}"
            )
        low, high = (0.0, 100.0) if native else (-2.0, 2.0)
        self._verify_range("presence_penalty", low, high)
        self._verify_range("frequency_penalty", low, high)
        self._verify_range("repetition_penalty", MIN_REPETITION_PENALTY, MAX_REPETITION_PENALTY)
        value = self.temperature
        _require(value >= 0.0, "temperature", f"temperature must >= 0.0, got {_shown(value)}")
        self._verify_range("temperature", 0.0, 100.0)
        self._verify_range("min_p", 0.0, 1.0)
        _require(0.0 < self.top_p <= 1.0, "top_p", f"top_p must be in (0.0, 1.0], got {_shown(self.top_p)}")
        _require(
            self.top_k == -1 or 1 <= self.top_k <= MAX_INT,
            "top_k",
            f"top_k must be -1 (disable), or at least 1, got {_shown(self.top_k)}.{_at_most(self.top_k)}",
        )
        if self.seed is not None:
            self._verify_range("seed", 0, MAX_SEED)
        self._verify_range("logprobs", -1, MAX_LOGPROBS)
        self._verify_range("prompt_logprobs", -1, MAX_LOGPROBS)
        self._verify_range("priority", -MAX_INT, MAX_INT)
        _require(
            self.timeout is None or 0 < self.timeout <= MAX_TIMEOUT,
            "timeout",
            f"timeout must be a number of seconds in (0, {MAX_TIMEOUT:.0f}], got {_shown(self.timeout)}",
        )
        start, factor = self.exponential_decay_length_penalty
        name = "exponential_decay_length_penalty"
        _require(
            0 <= start <= MAX_INT,
            name,
            f"{name}: item 0, the first token that counts, must be in [0, {MAX_INT}], got {_shown(start)}",
        )
        _require(
            1.0 <= factor <= 100.0,
            name,
            f"{name}: item 1, the factor, must be in [1.0, 100.0], got {_shown(factor)}",
        )

    def _verify_range(self, name: str, low: float, high: float) -> None:
        """NaN is in no range."""
        value = getattr(self, name)
        _require(low <= value <= high, name, f"{name} must be in [{low}, {high}], got {_shown(value)}")

    def _verify_lengths(self) -> None:
        _require(
            1 <= self.max_new_tokens <= MAX_INT,
            "max_new_tokens",
            f"max_new_tokens must be at least 1, got {_shown(self.max_new_tokens)}."
            f"{_at_most(self.max_new_tokens)}",
        )
        _require(
            self.min_new_tokens >= 1,
            "min_new_tokens",
            f"min_new_tokens must be at least 1, got {_shown(self.min_new_tokens)}.",
        )
        _require(
            self.min_new_tokens <= self.max_new_tokens,
            "min_new_tokens",
            f"min_new_tokens must <= max_new_tokens, but got min {_shown(self.min_new_tokens)}, "
            f"max {self.max_new_tokens}.",
        )

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
                    0 <= i < high, name, f"{name} contains token id {_shown(i)}, which is not in [0, {high})"
                )
        for i, bias in self.logit_bias.items():
            _require(
                -100.0 <= bias <= 100.0,
                "logit_bias",
                f"logit_bias of token {i} must be in [-100, 100], got {_shown(bias)}",
            )

    def _verify_constraints(self) -> None:
        """What a constraint says is checked by `constraints.check.check_constraint`."""
        given = [name for name in CONSTRAINTS if getattr(self, name)]
        for name in given:
            length = len(getattr(self, name).encode(errors="replace"))
            _require(
                length <= CONSTRAINTS[name], name, f"{name} has {length} bytes, at most {CONSTRAINTS[name]}"
            )
        if given and self.allowed_token_ids:
            given.append("allowed_token_ids")
        _require(
            len(given) <= 1, given[0] if given else "", f"{' and '.join(given)} can not be used in same time"
        )


def _shown(number: float | None) -> str:
    """A number in an error message, however many digits it has."""
    if isinstance(number, int) and number.bit_length() > 64:
        return f"an integer of {number.bit_length()} bits"
    return str(number)


def _at_most(number: int) -> str:
    return f" It is at most {MAX_INT}." if number > MAX_INT else ""


def _require(condition: bool, param: str, message: str) -> None:
    if not condition:
        raise InvalidParameter(message, param=param)
