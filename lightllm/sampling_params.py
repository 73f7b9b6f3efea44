"""What a client may ask of sampling: names, defaults, ranges, messages.

`SamplingParams` is the one validated form. The HTTP routes and the offline `LLM` build it, and it travels to the
router (lengths, stop tokens), the backend (sampling) and the detokenizer (stop strings) unchanged.
Names are LightLLM's; `min_p`, `seed`, `stop_token_ids`, `logit_bias`, `include_stop_str_in_output` are vLLM's.
"""

from __future__ import annotations

import math

import msgspec

from lightllm.errors import InvalidParameter

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


class SamplingParams(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
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
        _require(0 < self.n <= MAX_BEST_OF, "best_of", f"need 0 < best_of <= {MAX_BEST_OF}, but got {self.n}")
        self._verify_numbers(native)
        self._verify_lengths()
        self._verify_stops()
        self._verify_tokens(vocab_size)
        self._verify_constraints()
        return self

    def _verify_numbers(self, native: bool) -> None:
        # long because: one check a parameter, each with its own message
        for name in (
            "temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty"
        ):  # fmt: skip
            _require(
                math.isfinite(getattr(self, name)),
                name,
                f"{name} must be a finite number, got {getattr(self, name)}",
            )
        if native:
            for name in ("presence_penalty", "frequency_penalty"):
                _require(getattr(self, name) >= 0.0, name, f"{name} must >= 0.0, got {getattr(self, name)}")
            _require(
                self.repetition_penalty >= 1.0,
                "repetition_penalty",
                f"repetition_penalty must >= 1.0, got {self.repetition_penalty}",
            )
        for name in ("presence_penalty", "frequency_penalty"):
            value = getattr(self, name)
            low, high = (0.0, 100.0) if native else (-2.0, 2.0)
            _require(low <= value <= high, name, f"{name} must be in [{low}, {high}], got {value}")
        _require(
            0.0 < self.repetition_penalty <= 100.0,
            "repetition_penalty",
            f"repetition_penalty must be in (0.0, 100.0], got {self.repetition_penalty}",
        )
        _require(self.temperature >= 0.0, "temperature", f"temperature must > 0.0, got {self.temperature}")
        _require(
            self.temperature <= 100.0,
            "temperature",
            f"temperature must be at most 100.0, got {self.temperature}",
        )
        _require(0.0 < self.top_p <= 1.0, "top_p", f"top_p must be in (0.0, 1.0], got {self.top_p}")
        _require(0.0 <= self.min_p <= 1.0, "min_p", f"min_p must be in [0.0, 1.0], got {self.min_p}")
        _require(
            self.top_k == -1 or 1 <= self.top_k < 2**31,
            "top_k",
            f"top_k must be -1 (disable), or at least 1, got {self.top_k}.",
        )
        _require(
            self.seed is None or 0 <= self.seed <= MAX_SEED,
            "seed",
            f"seed must be in [0, {MAX_SEED}], got {self.seed}",
        )
        start, factor = self.exponential_decay_length_penalty
        _require(
            start >= 0,
            "exponential_decay_length_penalty",
            f"ExponentialDecayLengthPenalty item0 must be int >= 0, got {start}",
        )
        _require(
            math.isfinite(factor) and 1.0 <= factor <= 100.0,
            "exponential_decay_length_penalty",
            f"ExponentialDecayLengthPenalty item1 must be float >= 1.0 and <= 100.0, got {factor}",
        )
        _require(
            -1 <= self.logprobs <= MAX_LOGPROBS,
            "logprobs",
            f"logprobs must be in [-1, {MAX_LOGPROBS}], got {self.logprobs}",
        )
        _require(
            -1 <= self.prompt_logprobs <= MAX_LOGPROBS,
            "prompt_logprobs",
            f"prompt_logprobs must be in [-1, {MAX_LOGPROBS}], got {self.prompt_logprobs}",
        )
        _require(
            abs(self.priority) <= 2**31, "priority", f"priority must be within 32 bits, got {self.priority}"
        )
        _require(
            self.timeout is None or (math.isfinite(self.timeout) and self.timeout > 0),
            "timeout",
            f"timeout must be a number of seconds > 0, got {self.timeout}",
        )

    def _verify_lengths(self) -> None:
        _require(
            1 <= self.max_new_tokens < 2**31,
            "max_new_tokens",
            f"max_new_tokens must be at least 1, got {self.max_new_tokens}.",
        )
        _require(
            self.min_new_tokens >= 1,
            "min_new_tokens",
            f"min_new_tokens must be at least 1, got {self.min_new_tokens}.",
        )
        _require(
            self.min_new_tokens <= self.max_new_tokens,
            "min_new_tokens",
            f"min_new_tokens must <= max_new_tokens, but got min {self.min_new_tokens}, max {self.max_new_tokens}.",
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
        high = vocab_size if vocab_size is not None else 2**31
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
                _require(0 <= i < high, name, f"{name} contains token id {i}, which is not in [0, {high})")
        for i, bias in self.logit_bias.items():
            _require(
                math.isfinite(bias) and -100.0 <= bias <= 100.0,
                "logit_bias",
                f"logit_bias of token {i} must be in [-100, 100], got {bias}",
            )

    def _verify_constraints(self) -> None:
        """What a constraint says is checked by `tokenizer.constraints.check_constraint`."""
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


def _require(condition: bool, param: str, message: str) -> None:
    if not condition:
        raise InvalidParameter(message, param=param)
