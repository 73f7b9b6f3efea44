"""What the scheduler must keep to: the options, and the numbers that follow from them, the model and the memory."""

from __future__ import annotations

import dataclasses

from lightllm.config import ServerConfig
from lightllm.errors import InvalidOption
from lightllm.model_folder.lengths import longest_request
from lightllm.model_folder.pooling import pooling_method
from lightllm.round_sizes import round_sizes


@dataclasses.dataclass(frozen=True)
class SchedulerConfig:
    max_total_token_num: int
    """KV slots."""
    max_req_total_len: int
    """Longest prompt + output of one request, tokens."""
    batch_max_tokens: int
    """Tokens computed in one round; also bounds the rows, so that a round has room for all that decode."""
    chunked_prefill_size: int
    """Tokens of one request's prefill in one round. Equal to `batch_max_tokens` when whole prompts fit in: then no
    prompt is split."""
    eos_token_ids: list[int]
    options: ServerConfig
    """Policies and bounds, as the user gave them. What stands above is resolved: read it there."""
    neighbouring_slots: bool = False
    """Whether the backends gain where the slots of a context are neighbours: a CPU reads such a context in place."""
    decode_tokens: int = 1
    """Most tokens that a decode row brings in one round. Above 1 a round is planned when the one before has returned, for how
    long contexts are is not known earlier; and `conservative` may have to pause too, as rows do not grow side by side."""
    whole_prompts_read: bool = False
    """Every token of every prompt has to be computed: a mean over all of them is wanted, or what the first one gives."""
    worth_waiting: int = 32
    """Prompt tokens that a request must save to wait a round for another one that is computing them."""

    @property
    def max_rows(self) -> int:
        return min(self.options.running_max_req_size, self.batch_max_tokens)

    @property
    def prompt_cache(self) -> bool:
        """Requests share the KV of common prefixes."""
        return not self.options.disable_dynamic_prompt_cache and not self.whole_prompts_read

    @property
    def whole_prompts(self) -> bool:
        return self.chunked_prefill_size >= self.batch_max_tokens >= self.max_req_total_len

    @property
    def mixes(self) -> bool:
        """Decode rows and prefill chunks share rounds: no stream stalls. Otherwise prompts have rounds of their own: their first
        tokens come early, streams stall."""
        return self.options.round_policy == "mixed"

    @property
    def decode_rounds(self) -> int:
        """Rounds without prefill, while any request decodes, between two of prompts alone."""
        return self.options.router_max_wait_tokens if self.options.round_policy == "decode_first" else 0

    def with_options(self, **changes: object) -> SchedulerConfig:
        """The same numbers under other options."""
        return dataclasses.replace(self, options=dataclasses.replace(self.options, **changes))  # type: ignore[arg-type]


def resolve(
    options: ServerConfig,
    max_total_token_num: int,
    device: str,
    context_length: int,
    eos_token_ids: list[int],
    decode_tokens: int = 1,
) -> SchedulerConfig:
    """From the options, what the backends say of themselves, and the model's context length.

    Raises `InvalidOption` for options that contradict each other or the memory.
    """
    longest = min(longest_request(options.max_req_total_len, context_length), max_total_token_num)
    chunk, batch = round_sizes(options, device, longest)
    if options.disable_chunked_prefill and batch < longest:
        raise InvalidOption(
            f"--batch_max_tokens {batch} is below the longest request of {longest} tokens.",
            "With --disable_chunked_prefill a whole prompt must fit: raise it or lower --max_req_total_len.",
        )
    if batch < chunk:
        raise InvalidOption(f"--batch_max_tokens {batch} is below the prefill chunk of {chunk} tokens.")
    return SchedulerConfig(
        max_total_token_num, longest, batch, chunk, list(eos_token_ids), options,
        neighbouring_slots=device == "cpu", decode_tokens=decode_tokens,
        whole_prompts_read=pooling_method(options) not in (None, "last"),
    )  # fmt: skip
