"""Scheduler, Model Backend and Detokenizer in one process and one thread: what the offline `LLM` runs on.

With `tp` above 1 the ranks are processes of their own (`offline_ranks`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from lightllm.backend.mode_backend import ModeBackend
from lightllm.backend.process import RoundRunner, failed_result
from lightllm.config import ServerConfig
from lightllm.detokenizer.detokenizer import Detokenizer
from lightllm.errors import InvalidOption, InvalidParameter, RequestError
from lightllm.model_folder.config import eos_token_ids
from lightllm.model_folder.lengths import context_length
from lightllm.models.hf_configs import load_config
from lightllm.offline_ranks import OfflineRanks
from lightllm.protocol.arrays import int32
from lightllm.protocol.control import ModelReady
from lightllm.protocol.messages import AddRequest, Choice, RoundTokens, TextDeltas
from lightllm.router.round_pump import RoundPump
from lightllm.router.scheduler import MAX_IN_FLIGHT, Scheduler
from lightllm.router.scheduler_config import resolve
from lightllm.sampling_params import SamplingParams
from lightllm.tokenizer import Tokenizer

_UNBOUNDED = 1 << 40
"""Requests of an offline engine are all its caller's: the waiting list has no limit."""


class Engine:
    """The processes of the server as plain objects. Requests go in together; text comes out round by round."""

    def __init__(self, config: ServerConfig, model_dir: str, tokenizer: Tokenizer, show_bar: bool) -> None:
        if config.nnodes > 1:
            raise InvalidOption("--nnodes needs a server.", "Without one a model runs on one machine.")
        config = dataclasses.replace(config, model_dir=model_dir)
        self._runner, self.ready = _start(config, show_bar)
        eos = eos_token_ids(model_dir, config.eos_id)
        scheduling = resolve(
            config, self.ready.max_total_token_num, self.ready.device, context_length(model_dir), eos
        )
        self.scheduling = scheduling.with_options(max_waiting_requests=_UNBOUNDED)
        self._scheduler = Scheduler(self.scheduling)
        # A GPU gets its next round while it computes one. A CPU would only compute a token too many of every answer.
        depth = 1 if self.ready.device == "cpu" else MAX_IN_FLIGHT
        self._pump = RoundPump(self._scheduler, self._runner.submit, depth)
        self._detokenizer = Detokenizer(tokenizer, eos, workers=1)
        self._serial = 0

    def close(self) -> None:
        if isinstance(self._runner, OfflineRanks):
            self._runner.close()

    def add(self, requests: list[tuple[list[int], SamplingParams]]) -> list[list[int]]:
        """Accepts (prompt ids, parameters) of every request, or raises a `RequestError` and keeps none of them.
        Returns the ids of each request's choices. What was added before must have ended."""
        if self._scheduler.has_work:
            raise RuntimeError("another generation is still running: read it to its end, or close it, first")
        accepted: list[list[int]] = []
        try:
            for prompt_ids, params in requests:
                if max(prompt_ids, default=0) >= self.ready.vocab_size:
                    raise InvalidParameter(
                        f"the prompt holds token id {max(prompt_ids)}, the model has {self.ready.vocab_size}",
                        "prompt",
                    )
                choices = [Choice(self._serial + index, index) for index in range(params.n)]
                self._serial += params.n
                message = AddRequest(int32(prompt_ids), params, choices)
                self._scheduler.add(message)
                accepted.append([choice.request_id for choice in choices])
                self._detokenizer.add(message)
        except RequestError:
            self.abort([request_id for ids in accepted for request_id in ids])
            raise
        return accepted

    def run(self) -> Iterator[TextDeltas]:
        """What each round made, until nothing is left to do."""
        while self._scheduler.has_work:
            yield from self._text(self._next_result())

    def abort(self, request_ids: list[int]) -> None:
        """Ends requests, whatever their state; their remaining text is dropped."""
        if not self._scheduler.has_work:
            return
        for request_id in request_ids:
            self._scheduler.abort(request_id)
        if tokens := self._scheduler.drain_outputs():
            self._detokenizer.apply(tokens)

    def _next_result(self) -> RoundTokens | None:
        """Submits what may be in flight and waits for the oldest round. One that fails is undone by the scheduler and
        planned anew, as in the server."""
        try:
            self._pump.fill()
            if not self._scheduler.in_flight:
                raise RuntimeError("the scheduler has work, but plans no round")
            result = self._runner.take()
        except KeyboardInterrupt:
            seq = self._scheduler.oldest_in_flight
            if seq is not None:
                self._pump.take(failed_result(seq, InterruptedError("interrupted")))
            raise
        return self._pump.take(result)

    def _text(self, tokens: RoundTokens | None) -> Iterator[TextDeltas]:
        while tokens is not None:
            output = self._detokenizer.apply(tokens)
            yield from output.deltas.values()
            for abort in output.aborts:
                self._scheduler.abort(abort.request_id, abort.reason)
            tokens = self._scheduler.drain_outputs()


def _start(config: ServerConfig, show_bar: bool) -> tuple[RoundRunner | OfflineRanks, ModelReady]:
    """Loads the model: here, or in a process for each rank."""
    if config.tp > 1:
        load_config(config.model_dir or "").for_rank(config.tp)  # says at once if it cannot be split
        ranks = OfflineRanks(config, show_bar)
        return ranks, ranks.ready
    backend = ModeBackend(config, rank=0, world_size=1)
    ready = backend.init_model(show_bar)
    return RoundRunner(backend), ready
