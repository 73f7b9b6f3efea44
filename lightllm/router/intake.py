"""What the Router checks before it accepts a request: the last word on lengths."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import numpy as np

from lightllm.errors import InvalidParameter, PromptTooLong
from lightllm.protocol.messages import AddRequest, ImageSpan
from lightllm.router.admission.demand import Demand
from lightllm.router.admission.forecast import Forecast
from lightllm.router.admission.output_lengths import OutputLengths
from lightllm.router.admission.schedule_policy import Conservative
from lightllm.router.scheduler_config import SchedulerConfig


def check_request(message: AddRequest, config: SchedulerConfig, known_ids: Collection[int]) -> None:
    """Raises `InvalidParameter` or `PromptTooLong`; what passes can run, at the latest alone."""
    ids = [choice.request_id for choice in message.choices]
    if not len(message.prompt_ids):
        raise InvalidParameter("the prompt must have at least one token", param="prompt")
    if not ids or len(set(ids)) < len(ids) or any(i in known_ids for i in ids):
        raise InvalidParameter("a request needs choices with ids of their own")
    _check_lengths(message, config)


def _check_lengths(message: AddRequest, config: SchedulerConfig) -> None:
    prompt, new, n = len(message.prompt_ids), message.params.max_new_tokens, len(message.choices)
    _check_uncut(message.uncut, prompt, config.batch_max_tokens)
    _check_images(message.images, prompt)
    if config.options.pools:  # the one token that it is asked for is never computed further
        if prompt > config.max_req_total_len:
            raise PromptTooLong(
                f"the input has {prompt} tokens, but it may have at most {config.max_req_total_len} (max_req_total_len)",
                param="input",
            )
    elif prompt + new > config.max_req_total_len:
        raise PromptTooLong(
            f"the prompt has {prompt} tokens; with max_new_tokens {new} that is {prompt + new}, but a request may have "
            f"at most {config.max_req_total_len} (max_req_total_len)",
            param="max_new_tokens",
        )
    if config.options.max_req_input_len is not None and prompt > config.options.max_req_input_len:
        raise PromptTooLong(
            f"the prompt has {prompt} tokens, but it may have at most {config.options.max_req_input_len} (max_req_input_len)",
            param="prompt",
        )
    rows = config.max_rows
    if n > rows:
        raise InvalidParameter(f"{n} answers at once are more than this server can run: {rows}", param="n")
    if n == 1:
        return
    # Whatever the policy expects, full length must fit an empty server: then no request waits for ever. A token budget that
    # is reduced for a while does not count: requests can pause meanwhile.
    restored = [len(choice.output_ids) for choice in message.choices]
    demand = Demand.of(
        [
            (prompt + g, g, new, False, prompt + g, config.prompt_cache and i > 0)
            for i, g in enumerate(restored)
        ]
    )
    if not Forecast(Conservative(), OutputLengths(), config, config.max_total_token_num).admit(demand):
        raise PromptTooLong(
            f"{n} answers of up to {prompt + new} tokens each need more than the {config.max_total_token_num} tokens "
            "that this server holds (max_total_token_num)",
            param="n",
        )


def _check_uncut(uncut: np.ndarray, prompt: int, most: int) -> None:
    """Spans that chunks must not cut lie in the prompt, one behind the other, and each fits into a round."""
    if not len(uncut):
        return
    bounds = uncut.astype(np.int64)
    if len(bounds) % 2 or bounds[0] < 0 or bounds[-1] > prompt or (np.diff(bounds) < 0).any():
        raise InvalidParameter(
            "spans that must not be cut are no ascending spans of the prompt", param="prompt"
        )
    longest = int((bounds[1::2] - bounds[::2]).max())
    if longest > most:
        raise PromptTooLong(
            f"{longest} tokens of the prompt have to be computed together, but a round has at most {most} (batch_max_tokens)",
            param="prompt",
        )


def _check_images(images: Sequence[ImageSpan], prompt: int) -> None:
    """Images lie in the prompt, one behind the other; a grid has as many places as its image has tokens."""
    end = 0
    for image in images:
        grid = (image.tokens,) if image.grid is None else image.grid
        if image.start < end or image.tokens < 1 or min(grid) < 1 or math.prod(grid) != image.tokens:
            raise InvalidParameter("images are no ascending spans of the prompt", param="prompt")
        end = image.start + image.tokens
    if end > prompt:
        raise InvalidParameter(f"an image ends behind the prompt of {prompt} tokens", param="prompt")
