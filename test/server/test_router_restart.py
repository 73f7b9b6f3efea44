"""The Router is killed and started anew while Model Backend and Detokenizer live: every stream goes on as if nothing had
been. The test plays Supervisor and Http Server; the others are real processes, the backend with scripted tokens."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.model_folder import make_model_folder

from lightllm.config import ServerConfig
from lightllm.http.metric_store import MetricStore
from lightllm.httpserver.engine_client import EngineClient
from lightllm.httpserver.record import PromptRecord, RequestRecord
from lightllm.ipc.channels import make_context
from lightllm.ipc.child import CHANNEL_VARIABLE, RUNTIME_VARIABLE
from lightllm.ipc.runtime_dir import RuntimeDir
from lightllm.ipc.snapshot import Snapshot, SnapshotReader
from lightllm.protocol.metrics import HTTP_METRICS
from lightllm.sampling_params import SamplingParams

SECONDS = 60


class Processes:
    """Backend and Detokenizer of one server; the Router comes and goes."""

    def __init__(self, folder: Path) -> None:
        self.runtime = RuntimeDir.create(folder)
        self.config = ServerConfig(
            model_dir=str(make_model_folder(folder / "m")), mock_backend="step_ms=15,lengths=20:90",
            running_max_req_size=4, chunked_prefill_size=16, batch_max_tokens=32,
            max_total_token_num=900, disable_log_stats=True,
        )  # fmt: skip
        self.runtime.write_config(self.config.to_json())
        self.context = make_context()
        self._channels: list[socket.socket] = []
        self._started: list[subprocess.Popen[bytes]] = []
        self.start("backend", "--rank", "0")
        self.start("detokenizer")
        self.router = self.start("router")

    def start(self, module: str, *arguments: str) -> subprocess.Popen[bytes]:
        ours, theirs = socket.socketpair()
        self._channels.append(ours)
        with theirs:
            environment = {CHANNEL_VARIABLE: str(theirs.fileno()), RUNTIME_VARIABLE: str(self.runtime.path)}
            process = subprocess.Popen(
                [sys.executable, "-m", f"lightllm.{module}", *arguments],
                env=os.environ | environment,
                pass_fds=[theirs.fileno()],
            )
        self._started.append(process)
        return process

    def kill_router(self) -> None:
        self.router.kill()
        self.router.wait()

    def start_router(self) -> None:
        self.router = self.start("router")

    def snapshot(self) -> Snapshot:
        return (
            SnapshotReader(self.runtime.snapshot_file).read()
            if self.runtime.snapshot_file.exists()
            else Snapshot()
        )

    def close(self) -> None:
        for process in self._started:
            process.kill()
            process.wait()
        for channel in self._channels:
            channel.close()
        self.context.destroy(linger=0)
        self.runtime.remove()


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    processes = Processes(tmp_path_factory.mktemp("r"))
    yield processes
    processes.close()


def requests() -> list[RequestRecord]:
    """Greedy, sampled, several choices, a stop string, log-probabilities; prompts of many chunks; more than there are rows."""

    def one(number: int, prompt: int, **params: object) -> RequestRecord:
        values = {"max_new_tokens": 70, "seed": number} | params
        ids = [(number * 31 + i) % 300 + 10 for i in range(prompt)]
        return RequestRecord([PromptRecord(ids, SamplingParams(**values))], (f"n{number}",), stream=True)  # type: ignore[arg-type]

    return [
        one(1, 5, temperature=0.0),
        one(2, 120, ignore_eos=True),
        one(3, 9, n=2),
        one(4, 40, logprobs=3, min_new_tokens=30),
        one(5, 200, max_new_tokens=30),
        one(6, 3, stop_sequences=["e"], min_new_tokens=12),
        one(7, 64),
    ]


def told(record: RequestRecord) -> list[object]:
    """All that a client is told of the answer, and what it is charged for."""
    return [
        (choice.token_ids, choice.text, choice.logprobs, choice.top, choice.finish and choice.finish.reason, choice.output_tokens)
        for choice in record.choices
    ] + [record.prompt_tokens, record.error]  # fmt: skip


class Client:
    """The Http Server's side, in the test's own event loop."""

    def __init__(self, processes: Processes) -> None:
        self.processes = processes
        store = MetricStore(processes.runtime.metrics_dir / "http-0", HTTP_METRICS)
        self.engine = EngineClient(processes.runtime, store, ServerConfig())
        self.engine.connect(processes.context, asyncio.get_running_loop())

    async def until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + SECONDS
        while not condition():
            assert time.monotonic() < deadline, f"waited in vain; {self.processes.snapshot()}"
            await asyncio.sleep(0.002)

    async def submit(self, records: list[RequestRecord]) -> None:
        """One after the other, so that no list is too long."""
        await self.until(lambda: self.processes.snapshot().ready)
        for record in records:
            self.engine.submit(record)
            await self.until(lambda record=record: not record.to_accept or record.error)  # type: ignore[misc]

    async def finish(self, records: list[RequestRecord]) -> list[list[object]]:
        await self.until(lambda: all(record.done or record.error for record in records))
        return [told(record) for record in records]

    async def restart(self) -> None:
        self.processes.kill_router()
        await asyncio.sleep(0.02)  # what is on its way arrives
        self.processes.start_router()


def test_every_stream_goes_on_with_the_same_tokens_when_the_router_is_killed(processes: Processes) -> None:
    async def main() -> None:
        client = Client(processes)
        try:
            undisturbed = requests()
            await client.submit(undisturbed)
            expected = await client.finish(undisturbed)
            assert all(answer[-1] is None for answer in expected)

            records = requests()
            await client.submit(records)
            await client.until(lambda: sum(len(c.token_ids) for r in records for c in r.choices) > 20)
            await client.restart()
            before = sum(len(c.token_ids) for r in records for c in r.choices)
            await client.until(
                lambda: (
                    sum(len(c.token_ids) for r in records for c in r.choices) > before + 20
                    or all(r.done or r.error for r in records)
                )
            )
            await client.restart()  # in the middle of what was restored
            assert await client.finish(records) == expected
            await client.until(lambda: not processes.snapshot().running)
            state = processes.snapshot()
            assert state.restored > 0 and state.refused == 0
            assert (state.slots_used, state.waiting, client.engine.active) == (0, 0, 0)
        finally:
            client.engine.close()

    asyncio.run(main())


def test_what_clients_want_while_there_is_no_router_is_done_by_the_next_one(processes: Processes) -> None:
    async def main() -> None:
        client = Client(processes)
        try:
            endless = SamplingParams(max_new_tokens=300, ignore_eos=True)
            aborted, forgotten = (
                RequestRecord([PromptRecord([10 + number, 11, 12], endless)], (f"e{number}",), stream=True)
                for number in range(2)
            )
            later = requests()[2]
            await client.submit([aborted, forgotten])
            processes.kill_router()
            client.engine.abort(aborted)
            client.engine.forget(forgotten)
            client.engine.submit(later)
            processes.start_router()
            await client.finish([aborted, later])
            assert [choice.finish.reason for choice in aborted.choices] == ["abort"]  # type: ignore[union-attr]
            assert later.error is None and all(choice.token_ids for choice in later.choices)
            await client.until(
                lambda: processes.snapshot().aborted == 1 and not processes.snapshot().slots_used
            )
            assert processes.snapshot().running == processes.snapshot().waiting == 0
        finally:
            client.engine.close()

    asyncio.run(main())
