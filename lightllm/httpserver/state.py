"""What all routes of one Http worker share; how it sees the server as a whole: the Router's snapshot, the Health Server's
judgement, and whether requests can be taken."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import math
import time
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import msgspec

from lightllm.config import ServerConfig
from lightllm.constraints.check import check_here, check_threads
from lightllm.errors import InvalidParameter, ServerLoading, ServerStopping, UnknownModel
from lightllm.http.body import BodyBudget
from lightllm.http.key_ring import KeyRing
from lightllm.httpserver.engine_client import EngineClient
from lightllm.httpserver.openai_responses.store import ResponseStore
from lightllm.httpserver.reading.prompts import Limits, PromptEncoder
from lightllm.httpserver.vector_model import VectorModel
from lightllm.ipc.beats import read_beats
from lightllm.ipc.health import OLD_SECONDS, HealthReader, ProcessListReader, judge
from lightllm.ipc.runtime_dir import RuntimeDir
from lightllm.ipc.snapshot import Snapshot, SnapshotReader
from lightllm.ipc.stalls import find_stalls
from lightllm.option_spec import MOST_NAME
from lightllm.parsers.chat_format import ChatFormat
from lightllm.protocol.health import Health
from lightllm.sampling_params import SamplingParams

if TYPE_CHECKING:
    from lightllm.httpserver.images import Images


class ServerView:
    """Reads shared memory; cheap enough for every request."""

    def __init__(self, runtime: RuntimeDir, round_seconds: float = math.inf) -> None:
        """round_seconds: that a round may take before the server calls itself unhealthy."""
        self.draining = False
        """Set when the server is to stop: nothing new is taken."""
        self._beats_dir = runtime.beats_dir
        self._round_seconds = round_seconds
        self._snapshot = SnapshotReader(runtime.snapshot_file)
        self._health = HealthReader(runtime.health_file)
        self._processes = ProcessListReader(runtime.processes_file)

    def snapshot(self) -> Snapshot:
        """The Router's state; all zero before it has written one."""
        return self._snapshot.read()

    def require_ready(self) -> Snapshot:
        """The snapshot; raises `ServerStopping` or `ServerLoading` while the server cannot take requests."""
        if self.draining:
            raise ServerStopping("the server is shutting down and takes no new requests", retry_after=5)
        snapshot = self.snapshot()
        if not snapshot.ready:
            raise ServerLoading("the model is still loading, try again soon", retry_after=1)
        return snapshot

    def healthy(self) -> bool:
        """Whether requests are taken, and every process that is waited for makes progress."""
        return self.health().status == "ok"

    def health(self) -> Health:
        """The Health Server's judgement, or this process's own: while that one does not run, and until it knows of a model
        that serves now, or serves no longer."""
        now = time.monotonic()
        snapshot = self.snapshot()
        health = self._health.read()
        age = 0.0 if health is None else now - health.judged
        if health is None or age > OLD_SECONDS or (health.status == "starting") == bool(snapshot.ready):
            stalls = find_stalls(snapshot, read_beats(self._beats_dir), now, self._round_seconds)
            health = judge(self._processes.read(), snapshot, stalls, now)
        if age > OLD_SECONDS:
            note = (
                f"the Health Server has not looked for {age:.0f} s: this is the Http Server's own judgement"
            )
            health = msgspec.structs.replace(health, reason="; ".join(filter(None, (health.reason, note))))
        if self.draining:
            return msgspec.structs.replace(
                health, status="stopping", reason="the server takes no new requests"
            )
        return health


_DOES = {
    "reward": "a reward model, which gives scores only: use /get_score",
    "embed": "an embedding model, which gives vectors only: use /v1/embeddings, /score or /rerank",
    "classify": "a model with a classification head, which gives numbers for labels only: use /classify",
    "score": "a model that judges, which gives scores only: use /score or /rerank",
}
_KINDS = {
    "reward": "reward model (--use_reward_model)",
    "embed": "embedding model: its model generates texts; --task embed would make vectors of its hidden states",
    "classify": "model with a classification head (...ForSequenceClassification): its model generates texts",
    "score": "model for scores: its model generates texts; --task score would ask it for yes or no, --task embed compare vectors",
}


@dataclasses.dataclass(frozen=True)
class ServerState:
    config: ServerConfig
    engine: EngineClient
    view: ServerView
    encoder: PromptEncoder
    defaults: dict[str, Any]
    """Sampling defaults of the model (generation_config.json)."""
    reward_token_id: int | None = None
    """What a reward model wants at the end of a conversation (config.json)."""
    eos_token_ids: frozenset[int] = frozenset()
    """Tokens that end an answer by themselves; not known: the tokenizer's own."""
    chat_format: ChatFormat = ChatFormat()
    """How the model writes reasoning and tool calls: what takes the answers to chats apart."""
    vectors: VectorModel | None = None
    """Of a model for embeddings or labels."""

    @functools.cached_property
    def model_names(self) -> list[str]:
        """What the server calls its model: --model_name, else the hub id or the folder's last part."""
        return self.config.model_name or [PurePath(self.config.model_dir or "model").name]

    @property
    def model_name(self) -> str:
        """The first of them."""
        return self.model_names[0]

    @functools.cached_property
    def keys(self) -> KeyRing:
        """Raises `InvalidOption`."""
        return KeyRing(self.config.api_key or (), self.config.admin_api_key or (), self.config.api_key_file)

    @functools.cached_property
    def bodies(self) -> BodyBudget:
        """How large request bodies may be, each and together."""
        return BodyBudget(self.config.max_body_mb << 20)

    @functools.cached_property
    def responses(self) -> ResponseStore | None:
        """Responses that clients may go back to; None: none are kept."""
        config = self.config
        if not config.response_store_mb:
            return None
        return ResponseStore(
            self.engine.runtime.responses_dir, config.response_store_mb << 20, config.response_store_seconds,
            config.httpserver_workers,
        )  # fmt: skip

    def require_admission(self, *tasks: str) -> None:
        """Raises while the server takes no requests, and for what its model does not do. tasks: those of models that do it (as
        `ServerConfig.serves`); none: generating texts."""
        has = self.config.serves
        if has not in (tasks or ("generate",)):
            if has == "generate" or tasks == ("reward",):
                raise InvalidParameter(f"this server has no {_KINDS[tasks[0]]}")
            raise InvalidParameter(f"this server has {_DOES[has]}")
        self.view.require_ready()

    @property
    def images(self) -> Images | None:
        """None: the model takes no images."""
        return self.engine.images

    @property
    def limits(self) -> Limits:
        """What bounds a request now, as the Router says."""
        snapshot = self.view.snapshot()
        vocab_size = snapshot.vocab_size or self.encoder.tokenizer.vocab_size
        return Limits(snapshot.max_req_total_len, vocab_size, snapshot.slots_total)

    async def check_constraint(self, params: SamplingParams) -> None:
        """Raises `InvalidParameter` for a regular expression, a grammar or a schema that cannot be obeyed."""
        if params.constrained:
            await asyncio.get_running_loop().run_in_executor(
                check_threads(), check_here, params, self.config.output_constraint_mode
            )

    def check_model(self, name: str | None) -> str:
        """The name to answer with: that of the request, whatever it is, for there is but one model. Raises `UnknownModel` for
        another one with --strict_model_name, and `InvalidParameter` for one that is too long to come back."""
        if not name:
            return self.model_name
        if name in self.model_names or name == self.config.model_dir:
            return name
        if self.config.strict_model_name:
            raise self.unknown_model(name)
        if len(name) > MOST_NAME:
            raise InvalidParameter(
                f"the model's name has {len(name)} characters, at most {MOST_NAME}", param="model"
            )
        return name

    def unknown_model(self, name: str) -> UnknownModel:
        known = ", ".join(f"`{known}`" for known in self.model_names)
        return UnknownModel(
            f"The model `{name[:200]}` does not exist; this server has {known}.", param="model"
        )
