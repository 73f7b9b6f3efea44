"""The Model Backend's work: `ModeBackend` owns one device with the weights, the KV memory and the sampler.

`backend/process.py` and the offline `LLM` drive it: `init_model` once, then `execute` for every round, in order.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec
import numpy as np
import torch

from lightllm.backend.batch_builder import Prepared, PromptSpan, prepare
from lightllm.backend.kv_memory import GpuMemory, KvMemory, KvShape, choose_slots
from lightllm.backend.machine import compute_threads
from lightllm.backend.row_state import RowState
from lightllm.backend.sampler import Sampler, list_top
from lightllm.backend.warm_up import run_hold_row, warm_up
from lightllm.config import ServerConfig, round_sizes
from lightllm.distributed.tp_group import TpGroup
from lightllm.errors import DeviceError, InvalidModel, InvalidOption
from lightllm.models.registry import load_model
from lightllm.ops.sample import token_logprobs
from lightllm.protocol.arrays import EMPTY_INT32
from lightllm.protocol.control import ModelReady
from lightllm.protocol.rounds import Round, RoundResult, RowPromptLogprobs
from lightllm.tokenizer.model_files import context_length

logger = logging.getLogger(__name__)

DEFAULT_MAX_LEN = 16384
_ONE_THREAD_BYTES = 32 << 20
"""Weights below which one CPU thread is faster: a parallel region takes longer to start than to compute."""
_NO_LOGPROB = -9999.0
"""Reported where a broken checkpoint makes logits that are not numbers."""


class ModeBackend:
    """One tensor parallel rank. Not thread-safe: one thread calls it."""

    def __init__(
        self,
        config: ServerConfig,
        rank: int,
        world_size: int,
        progress: Callable[[str], None] = lambda _: None,
    ) -> None:
        if world_size != 1:
            raise InvalidOption(f"--tp {world_size} is not supported yet.", "Leave it out.")
        if config.model_dir is None:
            raise InvalidModel("The backend needs a model folder.", "Give --model_dir.")
        self._config = config
        self._model_dir = config.model_dir
        self._rank = rank
        self._world_size = world_size
        self._progress = progress
        self._seconds: dict[str, float] = {}

    def init_model(self, show_bar: bool = False) -> ModelReady:
        """Loads the model, reserves the KV memory and warms up. Raises `StartupError`s."""
        config = self._config
        self.device = resolve_device(config.device)
        if self.device.type == "cpu":
            torch.set_num_threads(config.cpu_threads or compute_threads())
        with torch.inference_mode():
            with self._phase("weights", "loading weights"):
                self.model = load_model(
                    self._model_dir, data_type=config.data_type, device=self.device, load_way=config.load_way,
                    group=TpGroup(self._rank, self._world_size), progress=self._progress, show_bar=show_bar,
                )  # fmt: skip
            if (
                self.device.type == "cpu"
                and not config.cpu_threads
                and self.model.weight_bytes < _ONE_THREAD_BYTES
            ):
                torch.set_num_threads(1)
            with self._phase("kv memory", "reserving KV memory"):
                self._reserve()
            with self._phase("warm-up", "warming up"):
                warm_up(self.model, self.memory, self.device)
        return ModelReady(
            max_total_token_num=self.memory.slots,
            vocab_size=self.model.config.vocab_size,
            kv_bytes_per_token=self._kv_shape.bytes_per_token,
            weight_bytes=self.model.weight_bytes,
            dtype=str(self.model.dtype).removeprefix("torch."),
            device=str(self.device),
            seconds=dict(self._seconds),
        )

    def execute(self, round: Round) -> RoundResult:
        """Runs one round. Raises `ValueError` for one that cannot be executed, and whatever the model raises; then neither
        last tokens nor token counts have changed, and the round may be planned anew."""
        started = time.perf_counter()
        with torch.inference_mode():
            for row in round.leaves:
                self.rows.leave(self._checked_row(row))
            for join in round.joins:
                self._join(join.row, join.prefix_slots)
                self.rows.join(join)
            result = self.prefill_batch(round) if len(round.token_ids) else self.decode_batch(round)
        return msgspec.structs.replace(result, seconds=time.perf_counter() - started)

    def prefill_batch(self, round: Round) -> RoundResult:
        """A round with prefill chunks, decode rows beside them."""
        prepared = prepare(round, self.memory, self.rows)
        return self._sample(round, prepared, self.model.forward(prepared.batch))

    def decode_batch(self, round: Round) -> RoundResult:
        """A round of decode rows only."""
        if len(round.rows) == 0:
            return RoundResult(seq=round.seq, token_ids=EMPTY_INT32, logprobs=np.zeros(0, dtype=np.float32))
        prepared = prepare(round, self.memory, self.rows)
        return self._sample(round, prepared, self.model.forward(prepared.batch))

    def resync(self, seq: int) -> None:
        """After a failed round; the next one is `seq`. Rows are joined anew or go on from their last token, so all that
        is left to do is to give cached memory back to the device."""
        logger.info("rounds go on from number %d", seq)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _sample(self, round: Round, prepared: Prepared, logits: torch.Tensor) -> RoundResult:
        count = len(prepared.sampled_rows)
        prompt_logprobs = _prompt_logprobs(prepared.prompt_spans, logits[count:])
        sampled = self.sampler.sample(logits[:count], prepared.sampled_rows, prepared.positions)
        self.rows.keep_tokens(prepared.sampled_rows, sampled.token_ids)
        logprobs = sampled.logprobs.cpu().numpy()
        if not np.isfinite(logprobs).all():
            logger.warning("round %d: the model returned logits that are not numbers", round.seq)
            logprobs = np.nan_to_num(logprobs, nan=_NO_LOGPROB, neginf=_NO_LOGPROB)
        return RoundResult(
            seq=round.seq,
            token_ids=sampled.token_ids.to(torch.int32).cpu().numpy(),
            logprobs=logprobs,
            top=sampled.top,
            prompt_logprobs=prompt_logprobs,
        )

    def _join(self, row: int, prefix_slots: np.ndarray) -> None:
        self._checked_row(row)
        if len(prefix_slots) > self.memory.max_len:
            raise ValueError(f"row {row}: {len(prefix_slots)} prefix slots, at most {self.memory.max_len}")
        if len(prefix_slots):
            if prefix_slots.min() < 0 or prefix_slots.max() >= self.memory.slots:
                raise ValueError(f"row {row}: a prefix slot is outside [0, {self.memory.slots})")
            slots = torch.from_numpy(prefix_slots.astype(np.int32))
            self.memory.req_to_token[row, : len(prefix_slots)] = slots.to(self.device)

    def _checked_row(self, row: int) -> int:
        if not 0 <= row < self.memory.max_rows:
            raise ValueError(f"row {row} is outside [0, {self.memory.max_rows})")
        return row

    def _reserve(self) -> None:
        config, model = self._config, self.model.config
        self._kv_shape = KvShape(model.num_layers, model.num_kv_heads, model.head_dim, self.model.kv_dtype)
        max_len = config.max_req_total_len or min(context_length(self._model_dir), DEFAULT_MAX_LEN)
        _, round_tokens = round_sizes(config, self.device.type, max_len)
        # One layer's activations and the logits of every row, which the sampler may hold three times over.
        activation_bytes = round_tokens * (12 * model.hidden_size + 4 * model.intermediate_size) * 4
        activation_bytes += 3 * min(round_tokens, config.running_max_req_size) * model.vocab_size * 4
        measure = (lambda: self._measure_gpu(round_tokens)) if self.device.type == "cuda" else None
        slots = choose_slots(config, self._kv_shape, activation_bytes, measure)
        max_len = min(max_len, slots)
        self.memory = KvMemory(self._kv_shape, slots, config.running_max_req_size, max_len, self.device)
        self.rows = RowState(config.running_max_req_size, model.vocab_size, self.device)
        self.sampler = Sampler(self.rows, self.device)

    def _measure_gpu(self, round_tokens: int) -> GpuMemory:
        """The activation peak: one prefill of the largest size, in a KV memory of its own that is given back."""
        torch.cuda.synchronize()
        free, total = torch.cuda.mem_get_info(self.device)
        memory = KvMemory(self._kv_shape, 1, 1, round_tokens, self.device)
        before = torch.cuda.memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        run_hold_row(self.model, memory, round_tokens, round_tokens, num_decode=0)
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated(self.device) - before
        del memory
        torch.cuda.empty_cache()
        return GpuMemory(total=total, free=free, activation_peak=peak)

    @contextmanager
    def _phase(self, name: str, detail: str) -> Iterator[None]:
        self._progress(detail)
        started = time.perf_counter()
        yield
        self._seconds[name] = time.perf_counter() - started


def resolve_device(name: str) -> torch.device:
    """auto: a GPU if there is one. Raises `DeviceError` if the asked for device is not there."""
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise DeviceError(
            "--device cuda: torch finds no usable GPU.", "Use --device cpu, or a CUDA build of torch."
        )
    return torch.device("cuda", torch.cuda.current_device())


def _prompt_logprobs(spans: list[PromptSpan], logits: torch.Tensor) -> list[RowPromptLogprobs]:
    """logits float32 [all positions of all spans, V]."""
    results = []
    first = 0
    for span in spans:
        part = logits[first : first + len(span.token_ids)]
        first += len(span.token_ids)
        logprobs = token_logprobs(part, torch.from_numpy(span.token_ids).to(part.device))
        top = list_top(part, np.full(len(part), span.alternatives)) if span.alternatives else []
        results.append(RowPromptLogprobs(span.entry, span.start, logprobs.cpu().numpy(), top))
    return results
