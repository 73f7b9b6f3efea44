"""What the scheduler must keep to, and how it follows from the options and the model."""

from __future__ import annotations

import dataclasses

from lightllm.config import ServerConfig, round_sizes
from lightllm.errors import InvalidOption

LONGEST_DEFAULT = 16384
"""Default cap of --max_req_total_len, whatever the model's context length."""


@dataclasses.dataclass(frozen=True)
class SchedulerLimits:
    max_total_token_num: int
    """KV slots."""
    max_req_total_len: int
    """Longest prompt + output of one request, tokens."""
    running_max_req_size: int
    """Rows: requests that run at once."""
    batch_max_tokens: int
    """Tokens computed in one round; also bounds the rows, so that a round has room for all that decode."""
    chunked_prefill_size: int
    """Tokens of one request's prefill in one round. Equal to `batch_max_tokens` when whole prompts fit in: then no
    prompt is split."""
    max_waiting_requests: int
    eos_token_ids: list[int]
    prompt_cache: bool = True
    """Requests share the KV of common prefixes."""
    schedule_policy: str = "past_future"
    """How long outputs are expected to be when requests are admitted: a name that `schedule_policy.make_policy` knows."""
    router_token_ratio: float = 0.0
    """Above 0: LightLLM's own rule instead. Share of the memory in use from which on it is conservative."""
    router_max_new_token_len: int = 1024
    """With that rule: tokens of an output, as it is expected before."""
    round_policy: str = "mixed"
    """Which rounds prefill: a name that `RoundPolicy` knows."""
    router_max_wait_tokens: int = 6
    """With decode_first: decode rounds between two rounds of prefill."""
    disable_aggressive_schedule: bool = False
    """While somebody decodes, requests enter only every `router_max_wait_tokens` rounds."""
    max_overtakes: int = 8
    """How many others may enter before a waiting request that does not fit yet."""
    max_req_input_len: int | None = None
    """Longest prompt, tokens; None: whatever `max_req_total_len` leaves room for."""
    ttft_slo: float = 0.0
    """Seconds to the first token; who would wait longer is refused. 0: everybody is accepted."""
    tpot_slo: float = 0.0
    """Seconds between two tokens that rounds and admission keep to; 0: any."""
    worth_waiting: int = 32
    """Prompt tokens that a request must save to wait a round for another one that is computing them."""

    @property
    def max_rows(self) -> int:
        return min(self.running_max_req_size, self.batch_max_tokens)

    @property
    def whole_prompts(self) -> bool:
        return self.chunked_prefill_size >= self.batch_max_tokens >= self.max_req_total_len


def resolve_limits(
    config: ServerConfig, max_total_token_num: int, device: str, context_length: int, eos_token_ids: list[int]
) -> SchedulerLimits:
    """Limits from the options, the KV slots and device of the backends, and the model's context length.

    Raises `InvalidOption` for options that contradict each other or the memory.
    """
    longest = config.max_req_total_len or min(context_length, LONGEST_DEFAULT)
    longest = min(longest, max_total_token_num)
    chunk, batch = round_sizes(config, device, longest)
    if config.disable_chunked_prefill and batch < longest:
        raise InvalidOption(
            f"--batch_max_tokens {batch} is below the longest request of {longest} tokens.",
            "With --disable_chunked_prefill a whole prompt must fit: raise it or lower --max_req_total_len.",
        )
    if batch < chunk:
        raise InvalidOption(f"--batch_max_tokens {batch} is below the prefill chunk of {chunk} tokens.")
    return SchedulerLimits(
        max_total_token_num=max_total_token_num,
        max_req_total_len=longest,
        running_max_req_size=config.running_max_req_size,
        batch_max_tokens=batch,
        chunked_prefill_size=chunk,
        max_waiting_requests=config.max_waiting_requests,
        eos_token_ids=list(eos_token_ids),
        prompt_cache=not config.disable_dynamic_prompt_cache,
        schedule_policy=config.schedule_policy,
        router_token_ratio=config.router_token_ratio,
        router_max_new_token_len=config.router_max_new_token_len,
        round_policy=config.round_policy,
        router_max_wait_tokens=config.router_max_wait_tokens,
        disable_aggressive_schedule=config.disable_aggressive_schedule,
        max_overtakes=config.max_overtakes,
        max_req_input_len=config.max_req_input_len,
        ttft_slo=config.ttft_slo,
        tpot_slo=config.tpot_slo,
    )
