"""Scheduler, Model Backend and Detokenizer in one process and one thread: what the offline `LLM` runs on.

With `tp` above 1 the ranks are processes of their own (`offline_ranks`). A model that sees has its images in `offline_images`.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import weakref
from collections.abc import Iterator, Sequence

import msgspec

from lightllm.backend.encoders_beside import encoders_beside
from lightllm.backend.image_embeddings import ImageEmbeddings
from lightllm.backend.mode_backend import ModeBackend
from lightllm.backend.process import RoundRunner, failed_result
from lightllm.config import ServerConfig
from lightllm.detokenizer.detokenizer import Detokenizer
from lightllm.errors import InvalidOption, InvalidParameter, RequestError
from lightllm.images.counted import CountedImages, PlacedPrompt
from lightllm.images.serving import serves_images
from lightllm.ipc.runtime_dir import RuntimeDir
from lightllm.model_folder.config import eos_token_ids
from lightllm.model_folder.lengths import context_length
from lightllm.models.hf_configs import load_config
from lightllm.offline_images import OfflineImages
from lightllm.offline_prompts import AskedPrompt
from lightllm.offline_ranks import OfflineRanks
from lightllm.protocol.arrays import int32
from lightllm.protocol.control import ModelReady
from lightllm.protocol.messages import AddRequest, Choice, RoundTokens, TextDeltas
from lightllm.router.intake import check_request
from lightllm.router.round_pump import RoundPump
from lightllm.router.scheduler import MAX_IN_FLIGHT, Scheduler
from lightllm.router.scheduler_config import resolve
from lightllm.sampling_params import SamplingParams
from lightllm.tokenizer import Tokenizer

_UNBOUNDED = 1 << 40
"""Requests of an offline engine are all its caller's: the waiting list has no limit, and none is refused for its wait."""


@dataclasses.dataclass
class _HeldImages:
    """Of one request, until its last choice has ended."""

    item_ids: list[int]
    choices: int
    """That have not ended."""


class Engine:
    """The processes of the server as plain objects. Requests go in together; text comes out round by round."""

    def __init__(self, config: ServerConfig, model_dir: str, tokenizer: Tokenizer, show_bar: bool) -> None:
        if config.nnodes > 1:
            raise InvalidOption("--nnodes needs a server.", "Without one a model runs on one machine.")
        # The one encoder is in this process, whatever the options of Visual Servers say.
        config = dataclasses.replace(config, model_dir=model_dir, visual_dp=1, visual_tp=1)
        self.images: OfflineImages | None = None
        """None: the model takes no images."""
        sees = serves_images(config)
        with contextlib.ExitStack() as opened:
            runtime = RuntimeDir.create() if config.tp > 1 or sees else None
            if runtime:
                opened.callback(runtime.remove)
            if runtime and sees:
                # Before the language model, which measures how much memory is left for KV.
                self.images = OfflineImages(config, runtime, tokenizer)
                opened.callback(self.images.close)
            self._runner, self.ready = _start(config, show_bar, runtime)
            if isinstance(self._runner, OfflineRanks):
                opened.callback(self._runner.close)
            eos = eos_token_ids(model_dir, config.eos_id)
            scheduling = resolve(
                config, self.ready.max_total_token_num, self.ready.device, context_length(model_dir), eos
            )
            self.close = weakref.finalize(self, opened.pop_all().close)
            """Also called when the interpreter ends."""
        self.scheduling = scheduling.with_options(max_waiting_requests=_UNBOUNDED, max_waiting_seconds=0.0)
        self._scheduler = Scheduler(self.scheduling)
        # A GPU gets its next round while it computes one. A CPU would only compute a token too many of every answer.
        depth = 1 if self.ready.device == "cpu" else MAX_IN_FLIGHT
        self._pump = RoundPump(self._scheduler, self._runner.submit, depth)
        self._detokenizer = Detokenizer(tokenizer, eos, workers=1)
        self._serial = 0
        self._waiting: collections.deque[tuple[AddRequest, CountedImages]] = collections.deque()
        """Checked requests whose images the image cache has had no room for."""
        self._held: dict[int, _HeldImages] = {}
        """By choice; the choices of a request share one."""

    @property
    def has_work(self) -> bool:
        return bool(self._waiting) or self._scheduler.has_work

    def add(self, requests: Sequence[tuple[AskedPrompt, SamplingParams]]) -> list[list[int]]:
        """Accepts every request, or raises a `RequestError` and keeps none of them.
        Returns the ids of each request's choices. What was added before must have ended."""
        if self.has_work:
            raise RuntimeError("another generation is still running: read it to its end, or close it, first")
        accepted: list[list[int]] = []
        try:
            for prompt, params in requests:
                largest = max(prompt.marked.ids, default=0)
                if largest >= self.ready.vocab_size:
                    raise InvalidParameter(
                        f"the prompt holds token id {largest}, the model has {self.ready.vocab_size}",
                        "prompt",
                    )
                choices = [Choice(self._serial + index, index) for index in range(params.n)]
                self._serial += params.n
                message = AddRequest(int32(prompt.marked.ids), params, choices)
                if prompt.images is None:
                    self._accept(message)
                else:
                    self._wait(message, prompt.images)
                accepted.append([choice.request_id for choice in choices])
        except RequestError:
            self.abort([request_id for ids in accepted for request_id in ids])
            raise
        return accepted

    def run(self) -> Iterator[TextDeltas]:
        """What each round made, until nothing is left to do. Raises `BackendFailed` for an image that cannot be encoded."""
        while self.has_work:
            self._have_images()
            yield from self._text(self._next_result())

    def abort(self, request_ids: Sequence[int]) -> None:
        """Ends requests, whatever their state; their remaining text is dropped."""
        ended = set(request_ids)
        waiting = [entry for entry in self._waiting if entry[0].choices[0].request_id not in ended]
        self._waiting = collections.deque(waiting)
        if self._scheduler.has_work:
            for request_id in request_ids:
                self._scheduler.abort(request_id)
            if tokens := self._scheduler.drain_outputs():
                self._detokenizer.apply(tokens)
        for request_id in request_ids:
            self._release(request_id)

    def _accept(self, message: AddRequest) -> None:
        self._scheduler.add(message)
        self._detokenizer.add(message)

    # -- requests with images

    def _wait(self, message: AddRequest, images: CountedImages) -> None:
        """Its images are held when there is room for them; that it can run then is checked now. Raises `RequestError`."""
        assert self.images is not None
        check_request(_placed(message, self.images.provisional(images)), self.scheduling, ())
        self._waiting.append((message, images))

    def _have_images(self) -> None:
        """Accepts waiting requests, as many as the image cache has room for, all their new images encoded together."""
        if self.images is None:
            return
        ready: list[AddRequest] = []
        encodes = []
        while self._waiting:
            message, images = self._waiting[0]
            held = self.images.hold(images, self._scheduler.flush_cache)
            if held is None:
                break
            self._waiting.popleft()
            shared = _HeldImages([item.item_id for item in held], len(message.choices))
            self._held |= {choice.request_id: shared for choice in message.choices}
            encodes.append((images, held))
            ready.append(_placed(message, images.place(held)))
        self.images.encode(encodes)
        for message in ready:
            self._accept(message)

    def _release(self, request_id: int) -> None:
        held = self._held.pop(request_id, None)
        if held is not None and self.images is not None:
            held.choices -= 1
            if not held.choices:
                self.images.release(held.item_ids)

    # -- rounds

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
            for deltas in output.deltas.values():
                for finish in deltas.finished:
                    self._release(finish.request_id)
                yield deltas
            for abort in output.aborts:
                self._scheduler.abort(abort.request_id, abort.reason)
            tokens = self._scheduler.drain_outputs()


def _placed(message: AddRequest, prompt: PlacedPrompt) -> AddRequest:
    return msgspec.structs.replace(
        message, prompt_ids=int32(prompt.ids), images=prompt.images, uncut=prompt.uncut
    )


def _start(
    config: ServerConfig, show_bar: bool, runtime: RuntimeDir | None
) -> tuple[RoundRunner | OfflineRanks, ModelReady]:
    """Loads the model: here, or in a process for each rank."""
    if config.tp > 1:
        assert runtime is not None
        load_config(config.model_dir or "").for_rank(config.tp)  # says at once if it cannot be split
        ranks = OfflineRanks(config, runtime, show_bar)
        return ranks, ranks.ready
    if runtime is None:
        backend = ModeBackend(config, rank=0, world_size=1)
    else:
        embeddings = ImageEmbeddings(runtime.images_dir)
        encoders = functools.partial(encoders_beside, config, runtime)
        backend = ModeBackend(config, rank=0, world_size=1, embeddings=embeddings, encoders=encoders)
    ready = backend.init_model(show_bar)
    return RoundRunner(backend), ready
