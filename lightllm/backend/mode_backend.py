"""The Model Backend's work: `ModeBackend` owns one device with the weights, the KV memory and the sampler.

`backend/process.py` and the offline `LLM` drive it: `init_model` once, then `submit` for every round, in order; `attach`
when another Router gives the rounds. A round that is submitted is enqueued on the device, its inputs behind the tokens of the
round before it; nothing waits for it until its result is asked for.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch

from lightllm.backend import cpu_rounds
from lightllm.backend.constraint_masks import ConstraintMasks, load_matchers
from lightllm.backend.device import Device, computing, open_device, upload
from lightllm.backend.graphs import DecodeGraphs, graph_sizes
from lightllm.backend.kv_memory import KvMemory, KvShape, Rows, choose_slots
from lightllm.backend.out_of_memory import explained, is_out_of_memory
from lightllm.backend.pending import Computed, PendingResult
from lightllm.backend.pooling import pool_round
from lightllm.backend.pooling_task import pooled_head
from lightllm.backend.profiler import Profiler
from lightllm.backend.ranks import Ranks
from lightllm.backend.round_images import EmbeddingSource, NoEmbeddings, RoundImages
from lightllm.backend.round_inputs import Prepared, RoundInputs
from lightllm.backend.row_state import RowState
from lightllm.backend.sampler import Sampler
from lightllm.backend.sampling_plan import SamplingPlan
from lightllm.backend.shape_caches import bound_shape_caches
from lightllm.backend.sizing import activation_bytes, measure_gpu, warm_up
from lightllm.backend.start_phases import PHASES
from lightllm.backend.submitted_round import FollowedRound, SubmittedRound, prompt_logprobs_of
from lightllm.backend.warmup_rounds import ROWS, SLOTS, warmup_rounds
from lightllm.config import ServerConfig
from lightllm.constraints.grammars import Constraint
from lightllm.distributed.rendezvous import Rendezvous
from lightllm.distributed.tp_group import agree_on_slots
from lightllm.errors import InvalidModel
from lightllm.ipc.encoder_memory import EncoderMemory
from lightllm.machine import available_memory, rank_threads
from lightllm.model_folder.lengths import context_length, longest_request
from lightllm.model_folder.pooling import pooling_method
from lightllm.models.registry import load_model
from lightllm.ops.attention_backends.choice import make_attention_backends
from lightllm.ops.kv_codes import FORMATS
from lightllm.protocol.control import ModelReady
from lightllm.protocol.rounds import JoinRow, Round, RoundResult, RowError
from lightllm.quantization.kv_types import check_kv_type
from lightllm.quantization.quant_plan import read_plan
from lightllm.round_sizes import round_sizes

logger = logging.getLogger(__name__)

_UNPREPARED = "the model backend could not prepare this request; its log says why"
_UNREAD = "the embedding of an image could not be read; the model backend's log says why"


class ModeBackend:
    """One tensor parallel rank. Not thread-safe: one thread calls it."""

    def __init__(
        self,
        config: ServerConfig,
        rank: int,
        world_size: int,
        progress: Callable[[str], None] = lambda _: None,
        rendezvous: Rendezvous | None = None,
        open_device: Callable[[str, int], Device] = open_device,
        embeddings: EmbeddingSource | None = None,
        encoders: Callable[[int | None], EncoderMemory] = lambda gpu: EncoderMemory(),
    ) -> None:
        """rendezvous: where the ranks meet, if there are several. open_device: makes the device of a name and a number; tests
        bring their own. embeddings: of images; None: rows with images are refused. encoders: what vision encoders take
        of the GPU of this number, of a CPU's memory (None)."""
        self.ranks = Ranks(config, rank, world_size, rendezvous)
        if config.model_dir is None:
            raise InvalidModel("The backend needs a model folder.", "Give --model_dir.")
        self._config = config
        self._model_dir = config.model_dir
        self._progress = progress
        self._open_device = open_device
        self._embeddings = embeddings or NoEmbeddings()
        self._encoders = encoders
        self._seconds: dict[str, float] = {}
        self._shape_cache_bytes = 0
        self._last_done = 0.0
        self._profiler = Profiler(rank, config.profile_dir)

    def init_model(self, show_bar: bool = False) -> ModelReady:
        """Loads the model, reserves the KV memory and warms up. Raises `StartupError`s."""
        config = self._config
        self.device = self._open_device(config.device, self.ranks.rank - config.node_ranks.start)
        where = self.device.torch_device
        if where.type == "cpu":
            self._shape_cache_bytes = bound_shape_caches(available_memory() // len(config.node_ranks))
            torch.set_num_threads(config.cpu_threads or rank_threads(len(config.node_ranks)))
        backends = make_attention_backends(config.attention_backend, where, bool(self._graph_sizes()))
        self.constraints = ConstraintMasks(functools.partial(load_matchers, config, self.ranks.rank))
        with computing(self.device):
            if self.ranks.world_size > 1:
                with self._phase("other ranks"):
                    self.ranks.join(where)
            with self._phase("weights"):
                self.model = load_model(
                    self._model_dir, data_type=config.data_type, device=where, load_way=config.load_way,
                    group=self.ranks.group, attention_backends=backends, max_len=self._longest_context(), pooled=pooled_head(config),
                    memory=self.device.memory().free, progress=self._progress, show_bar=show_bar, quant_plan=read_plan(config.quant_type, config.quant_cfg),
                )  # fmt: skip
                self.device.synchronize()  # threads of the loader have streams of their own
            self._thread_share = cpu_rounds.set_up(self.model, config, self.ranks.world_size)
            if self.ranks.world_size > 1:
                with self._phase("other ranks"):
                    self.ranks.wait_until_loaded()
            with self._phase("kv memory"):
                self._reserve()
            with self._phase("warm-up"):
                warm_up(self.model, self.memory, self.device, self._round_tokens)
            self._graphs = self._capture_graphs(show_bar)
            with self._phase("constraints"):
                self.constraints.wait_until_loaded()
            with self._phase("warm-up"):
                self._run_warmup_rounds()
        self._progress = lambda _: None  # a process that says what it does now is not ready
        return ModelReady(
            max_total_token_num=self.memory.slots,
            vocab_size=self.model.config.vocab_size,
            dtype=str(self.model.dtype).removeprefix("torch."),
            weights=self.model.weight_format,
            device=str(where),
            seconds=dict(self._seconds),
        )

    def prepare_constraint(self, constraint: Constraint, grammar: str) -> Future[Any] | None:
        return self.constraints.prepare(constraint, grammar)

    def settle(self, seq: int) -> None:
        """The model is loaded, for a Router whose first round is `seq`."""
        self.ranks.settle(seq)

    def attach(self, seq: int) -> None:
        """A new Router, whose first round is `seq`: no row is in use, and nothing of the requests that were in them is
        kept."""
        with computing(self.device):
            for row in range(self.memory.max_rows):
                self.rows.leave(row)
                self.constraints.leave(row)
        self.resync(seq)

    def submit(self, round: Round) -> PendingResult:
        """Takes on one round. Raises `ValueError` for one that cannot be executed, and whatever the model raises; then
        neither last tokens nor token counts have changed, and the round may be planned anew. A request that cannot be
        prepared is an error of its row, and the round goes on."""
        started = time.perf_counter()
        if self._thread_share is not None:
            self._thread_share.adapt()
        with computing(self.device):
            for row in round.leaves:
                self.rows.leave(self._checked_row(row))
                self.constraints.leave(row)
            for join in round.joins:
                self._join(join.row, join.prefix_slots)
                self._prepare(join)
            if len(round.rows) == 0:
                return Computed(RoundResult(round.seq))
            self.ranks.begin(round, self.rows.last_token)
            if len(round.token_ids):
                with self._named("prefill_batch"):
                    prepared, logits = self.prefill_batch(round)
            else:
                with self._named("decode_batch"):
                    prepared, logits = self.decode_batch(round)
            with self._named("sample"):
                return self._sample(round, prepared, logits, started)

    def execute(self, round: Round) -> RoundResult:
        """`submit`, and the result."""
        return self.submit(round).result()

    def prefill_batch(self, round: Round) -> tuple[Prepared, torch.Tensor]:
        """A round with prefill chunks, decode rows beside them; with its logits, [len(logit_index), V]."""
        images = RoundImages(round, self.rows)
        prepared = self._inputs.chunks(images.round)
        self._inputs.complete(prepared.batch)
        if images.parts:
            unread = images.place(prepared.batch, self.model, self._embeddings, self.device)
            self.ranks.check_same(unread)
            for row, error in unread.items():
                self._refuse(row, int(self.rows.prompt_len[row]), error, _UNREAD)
        images.turn(prepared.batch, self.device)
        return prepared, self.model.forward(prepared.batch)

    def decode_batch(self, round: Round) -> tuple[Prepared, torch.Tensor]:
        """A round of decode rows only, through a captured graph if there is one of its size."""
        entries = len(round.rows)
        size = self._graphs.size_for(entries) if self._graphs is not None else None
        if self._graphs is None or size is None:
            prepared = self._inputs.decode(round, entries)
            self._inputs.complete(prepared.batch)
            return prepared, self.model.forward(prepared.batch)
        return self._inputs.decode(round, size), self._graphs.run(size)[:entries]

    def resync(self, seq: int) -> None:
        """After a failed round; the next one is `seq`. Rows are joined anew or go on from their last token, so all that
        is left to do is to give cached memory back to the device."""
        with computing(self.device):
            self.ranks.rejoin(seq, self.rows.last_token)
        self.constraints.resync()
        logger.info("rounds go on from number %d", seq)
        self.device.release_cached()

    def fail_round(self, error: Exception, failed: RoundResult) -> RoundResult:
        """A round has failed with this exception, and `failed` is what the Router is to be told; returns what it is told. Raises
        `DeviceError` if no other round can succeed."""
        result = self.ranks.fail_round(error, failed)
        self.device.check()
        return result

    def _sample(
        self, round: Round, prepared: Prepared, logits: torch.Tensor, started: float
    ) -> PendingResult:
        """Rank 0 samples, and answers; the others are told its tokens."""
        if self.model.pools:
            errors = self.rows.refused_entries(round.rows)
            spans, rank = prepared.pooled_spans, self.ranks.rank
            return pool_round(round, spans, logits, self.device, rank, errors, self.round_took, started)
        count = len(prepared.sampled_rows)
        plan = self._plan(prepared.sampled_rows)
        if self.ranks.rank:
            token_ids = torch.empty(count, dtype=torch.int64, device=self.device.torch_device)
            self.rows.keep_tokens(plan.rows_on_device, plan.counted, self.ranks.group.broadcast(token_ids))
            return FollowedRound(round.seq, self.device.download([]))
        prompts = prompt_logprobs_of(self.device, prepared.prompt_spans, logits[count:])
        masks = self.constraints.masks(plan.constrained, logits.shape[1])
        sampled = self.sampler.sample(
            logits[:count], plan, prepared.positions, prepared.positions_on_device, masks
        )
        tensors = [sampled.token_ids, sampled.logprobs]
        for top in sampled.top:
            tensors += [top.token_ids, top.logprobs]
        for prompt_logprobs, prompt_top in prompts:
            tensors.append(prompt_logprobs)
            if prompt_top is not None:
                tensors += [prompt_top.token_ids, prompt_top.logprobs]
        arrival = self.device.download(tensors)
        token_ids = self.ranks.group.broadcast(sampled.token_ids)
        self.rows.keep_tokens(plan.rows_on_device, plan.counted, token_ids)
        self.constraints.expect(masks, arrival)
        sampled_entries = round.samples.nonzero()[0]
        refused = {} if masks is None else masks.errors
        errors = {int(sampled_entries[i]): RowError(reason, "constraint") for i, reason in refused.items()}
        errors |= self.rows.refused_entries(round.rows)
        return SubmittedRound(
            self.round_took, round.seq, sampled_entries, started, arrival, sampled, prepared.prompt_spans,
            prompts, errors,
        )  # fmt: skip

    def _prepare(self, join: JoinRow) -> None:
        """Takes in what a request wants of its sampling. One that cannot be taken in is refused; running out of memory is
        an error of the round."""
        try:
            self.rows.join(join)
            self.constraints.join(join)
        except Exception as error:
            self._refuse(join.row, join.prompt_len, error)

    def _plan(self, rows: np.ndarray) -> SamplingPlan:
        """What the sampler does for these rows; those for which nothing can be planned are refused."""
        try:
            return self.sampler.plan(rows)
        except Exception as error:
            if is_out_of_memory(error):
                raise
        for row in rows.tolist():
            try:
                self.sampler.plan(np.array([row]))
            except Exception as error:
                self._refuse(row, int(self.rows.prompt_len[row]), error)
        return self.sampler.plan(rows)

    def _refuse(self, row: int, prompt_len: int, error: Exception, reason: str = _UNPREPARED) -> None:
        if is_out_of_memory(error):
            raise error
        logger.error("the request in row %d cannot be prepared", row, exc_info=error)
        self.constraints.leave(row)
        self.rows.refuse(row, prompt_len, reason)

    def start_profile(self, rounds: int) -> None:
        self._profiler.start(rounds)

    def stop_profile(self) -> Future[str]:
        return self._profiler.stop()

    def round_done(self) -> None:
        self._profiler.round_done()

    def _named(self, name: str) -> AbstractContextManager[object]:
        return self.device.named(name) if self._config.enable_nvtx else nullcontext()

    def round_took(self, started: float) -> float:
        """Seconds that the device had for a round that is done now: since the one before it was done, if that was
        later than its start."""
        now = time.perf_counter()
        seconds = now - max(started, self._last_done)
        self._last_done = now
        return seconds

    def _join(self, row: int, prefix_slots: np.ndarray) -> None:
        self._checked_row(row)
        if len(prefix_slots) > self.memory.max_len:
            raise ValueError(f"row {row}: {len(prefix_slots)} prefix slots, at most {self.memory.max_len}")
        if len(prefix_slots):
            if prefix_slots.min() < 0 or prefix_slots.max() >= self.memory.slots:
                raise ValueError(f"row {row}: a prefix slot is outside [0, {self.memory.slots})")
            (slots,) = upload(self.device, prefix_slots)
            self.memory.req_to_token[row, : len(prefix_slots)] = slots

    def _checked_row(self, row: int) -> int:
        if not 0 <= row < self.memory.max_rows:
            raise ValueError(f"row {row} is outside [0, {self.memory.max_rows})")
        return row

    def _reserve(self) -> None:
        config, model = self._config, self.model.config
        check_kv_type(config.llm_kv_type, model.mla is not None, self.device.torch_device.type == "cuda")
        shape = KvShape(
            model.num_layers, model.num_kv_heads, model.head_dim, self.model.kv_dtype, model.latent_dim,
            FORMATS.get(config.llm_kv_type), apart=self.device.torch_device.type == "cpu",
        )  # fmt: skip
        max_len = self._longest_context()
        _, round_tokens = round_sizes(config, self.device.torch_device.type, max_len)
        rows = config.running_max_req_size
        needed = activation_bytes(self.model, round_tokens, rows, max_len) + self._shape_cache_bytes
        encoders = self._encoders(self.device.torch_device.index)
        measure = None
        if self.device.measures:
            graph_rows = max(self._graph_sizes(), default=0)
            measure = functools.partial(
                measure_gpu, self.device, self.model, shape, round_tokens, rows, graph_rows, max_len,
            )  # fmt: skip
        free = self.device.memory().free if self.device.measures else None
        kept, ranks = Rows(rows, max_len, model.vocab_size), len(config.node_ranks)
        slots = choose_slots(config, shape, needed, measure, free, ranks, kept, encoders.activations)
        slots = agree_on_slots(self.ranks.group, slots, free and free + encoders.weights)
        max_len = min(max_len, slots)
        self.memory = KvMemory(shape, slots, rows, max_len, self.device.torch_device)
        logger.info("KV memory: %s", shape.described(slots))
        self.rows = RowState(rows, model.vocab_size, self.device)
        self.sampler = Sampler(self.rows, self.device)
        self._inputs = RoundInputs(self.device, self.memory, self.rows, round_tokens, pooling_method(config))
        self._round_tokens = round_tokens

    def _longest_context(self) -> int:
        """Tokens of the longest request that may be served; memory may allow less."""
        return longest_request(self._config.max_req_total_len, context_length(self._model_dir))

    def _run_warmup_rounds(self) -> None:
        memory = self.memory
        room = min(memory.slots, memory.max_len, self._round_tokens)
        if memory.max_rows < ROWS or room < SLOTS:
            return  # a server for tests
        results = [self.submit(round).result() for round in warmup_rounds(self.model.pools)]
        errors = [error for result in results for error in result.errors.values()]
        for reason in {error.reason for error in errors if error.kind == "not_finite"}:
            logger.warning("in a warm-up round before the first request: %s", reason)

    def _graph_sizes(self) -> list[int]:
        """Batch sizes that get a decode graph."""
        config = self._config
        if not self.device.captures or config.disable_cudagraph or config.pools:
            return []
        largest = min(config.graph_max_batch_size, config.running_max_req_size)
        return graph_sizes(largest, config.graph_split_batch_size, config.graph_grow_step_size)

    def _capture_graphs(self, show_bar: bool) -> DecodeGraphs | None:
        sizes = self._graph_sizes()
        if not sizes:
            return None
        with self._phase("graphs"):
            graphs = DecodeGraphs(self.device, self.model, self._inputs, sizes)
            graphs.capture(self._progress, show_bar)
        return graphs

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        """A part of the start: announced, timed, and explained where memory runs out in it."""
        detail, remedy = PHASES[name]
        self._progress(detail)
        started = time.perf_counter()
        with explained(detail, remedy, self.device.memory):
            yield
        self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - started
