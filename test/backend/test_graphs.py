"""Decode graphs and rounds that overlap: their bookkeeping, with a CPU that replays and delivers late."""

import dataclasses
import gc
import random

import numpy as np
import pytest
import torch
from support.checkpoints import make_checkpoint
from support.recording_device import RecordingDevice, start_recorded
from support.rounds_to_end import Serving, Wanted
from support.scheduler_config import scheduler_config

from lightllm.backend.graphs import DecodeGraphs, graph_sizes
from lightllm.backend.mode_backend import ModeBackend
from lightllm.backend.process import RoundRunner
from lightllm.config import ServerConfig
from lightllm.errors import DeviceError
from lightllm.protocol.arrays import EMPTY_INT32, int32
from lightllm.protocol.rounds import JoinRow, Round
from lightllm.sampling_params import SamplingParams

ROWS, SLOTS, LARGEST = 10, 600, 7
LIMITS = scheduler_config(
    max_total_token_num=SLOTS, max_req_total_len=100, running_max_req_size=ROWS, batch_max_tokens=24,
    chunked_prefill_size=16, max_waiting_requests=100, eos_token_ids=[2],
)  # fmt: skip


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = make_checkpoint(tmp_path_factory.mktemp("graphs") / "model", "llama")
    return ServerConfig(
        model_dir=str(path), data_type="fp32", max_total_token_num=SLOTS, running_max_req_size=ROWS, cpu_threads=1,
        max_req_total_len=100, graph_max_batch_size=LARGEST, graph_split_batch_size=2, graph_grow_step_size=2,
    )  # fmt: skip


@pytest.fixture(scope="module")
def graphs(config):
    return start_recorded(config)


def crowd(seed=0, count=25):
    """Requests of ragged lengths that come and go: greedy, random, filtered and penalised ones."""
    dice = random.Random(seed)
    kinds = [
        {"temperature": 0.0},
        {"temperature": 0.0, "presence_penalty": 0.7},
        {"temperature": 1.2, "seed": 7},
        {"temperature": 0.9, "top_p": 0.8, "seed": 8},
        {"temperature": 0.0, "logit_bias": {17: 2.0}, "min_new_tokens": 4},
    ]
    return [
        Wanted(
            [dice.randrange(3, 384) for _ in range(dice.randrange(1, 40))],
            SamplingParams(
                **kinds[i % len(kinds)], max_new_tokens=dice.randrange(1, 30), ignore_eos=bool(i % 2)
            ),
            after_rounds=dice.randrange(60),
        )
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def expected(config):
    """The tokens of the crowd on the plain CPU: without graphs, one round at a time, each kind of row sampled apart."""
    backend = ModeBackend(dataclasses.replace(config, device="cpu"), 0, 1)
    backend.init_model()
    return Serving(backend, LIMITS).run(crowd())


def test_sizes_are_dense_then_stepped_and_end_with_the_largest():
    assert graph_sizes(256, 32, 16) == [*range(1, 33), *range(48, 257, 16)]
    assert graph_sizes(7, 2, 2) == [1, 2, 4, 6, 7]
    assert graph_sizes(8, 2, 2) == [1, 2, 4, 6, 8]
    assert graph_sizes(5, 32, 16) == [1, 2, 3, 4, 5]
    assert graph_sizes(1, 1, 1) == [1]


def test_every_size_is_captured_once_and_the_option_switches_it_off(config, graphs):
    assert len(graphs[1].graphs) == len(graph_sizes(LARGEST, 2, 2))
    assert start_recorded(config, disable_cudagraph=True)[1].graphs == []


def test_the_largest_graph_is_captured_first_and_each_is_announced(config, monkeypatch):
    sizes, told, capture = [], [], DecodeGraphs._capture
    monkeypatch.setattr(
        DecodeGraphs, "_capture", lambda self, size: (sizes.append(size), capture(self, size))[1]
    )
    backend = ModeBackend(config, 0, 1, told.append, open_device=lambda name, index: RecordingDevice())
    backend.init_model()
    assert sizes == [7, 6, 4, 2, 1]
    announced = [text for text in told if "capturing decode graphs: " in text]
    assert announced == [f"capturing decode graphs: {number} of 5" for number in range(1, 6)]


def test_a_device_whose_error_stays_ends_the_process_and_replays_nothing(config):
    backend, device = start_recorded(config)
    runner = RoundRunner(backend)
    join = JoinRow(0, 3, SamplingParams(temperature=0.0), 0, 0, [])
    runner.submit(Round(0, 0, int32([0]), int32([3]), int32([3]), np.ones(1, np.uint8), int32([5, 6, 7]), int32([0, 1, 2]), [join]))  # fmt: skip
    assert not runner.take().failed

    def broken(*arguments):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    device.check = lambda: (_ for _ in ()).throw(DeviceError("The GPU cannot go on"))
    for graph in device.graphs:
        graph.replay = broken
    backend._graphs.run = broken
    with pytest.raises(DeviceError, match="cannot go on"):
        runner.submit(Round(1, 1, int32([0]), int32([1]), int32([4]), np.ones(1, np.uint8), EMPTY_INT32, int32([3])))  # fmt: skip


def test_a_device_that_answers_with_its_error_ends_the_process_as_one_that_raises_it(config):
    """A GPU in such a state raises when it is asked whether results are there."""
    backend, device = start_recorded(config, late=True)
    runner = RoundRunner(backend)
    join = JoinRow(0, 3, SamplingParams(temperature=0.0), 0, 0, [])
    runner.submit(Round(0, 0, int32([0]), int32([3]), int32([3]), np.ones(1, np.uint8), int32([5, 6, 7]), int32([0, 1, 2]), [join]))  # fmt: skip
    assert runner.take_ready() is None

    def broken():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    device.under_way[0].ready = device.under_way[0].arrays = broken
    checked = []
    device.check = lambda: checked.append(True)
    assert runner.take_ready().failed.startswith("RuntimeError: CUDA error")
    assert checked == [True]


def test_no_graph_is_larger_than_there_are_rows(config):
    assert len(start_recorded(config, graph_max_batch_size=99)[1].graphs) == len(graph_sizes(ROWS, 2, 2))


def test_no_garbage_is_collected_inside_a_capture(config, monkeypatch):
    seen = []
    monkeypatch.setattr(
        RecordingDevice, "capture", lambda self, work: (seen.append(gc.isenabled()), work(), work)[-1]
    )
    start_recorded(config)
    assert seen and not any(seen)
    assert gc.isenabled()


def test_a_crowd_that_comes_and_goes_gets_the_same_tokens_with_graphs(graphs, expected):
    backend, device = graphs
    before = device.replays
    assert Serving(backend, LIMITS).run(crowd()) == expected
    assert device.replays > before + 20


def prefill_rows(backend, lengths):
    """Row i gets a prompt of lengths[i] tokens in slots 50 * i and following; returns the first tokens."""
    return [
        backend.execute(
            Round(
                seq=0,
                num_decode=0,
                rows=int32([row]),
                q_len=int32([length]),
                kv_len=int32([length]),
                samples=np.ones(1, np.uint8),
                token_ids=int32(range(3, 3 + length)),
                slots=int32(range(50 * row, 50 * row + length)),
                joins=[JoinRow(row, length, SamplingParams(temperature=0.0), 0, 0, [])],
            )  # fmt: skip
        ).token_ids[0]
        for row, length in enumerate(lengths)
    ]


def decode(rows, kv_len):
    slots = [50 * row + length - 1 for row, length in zip(rows, kv_len)]
    return Round(
        seq=0, num_decode=len(rows), rows=int32(rows), q_len=int32([1] * len(rows)), kv_len=int32(kv_len),
        samples=np.ones(len(rows), np.uint8), token_ids=EMPTY_INT32, slots=int32(slots),
    )  # fmt: skip


def test_padding_touches_nothing_but_the_hold_row_and_slot(graphs):
    backend, device = graphs
    prefill_rows(backend, [5, 9, 3, 20, 7])
    memory, entries = backend.memory, {3: 20, 0: 5, 2: 3}
    with torch.inference_mode():
        for layer in memory.kv:
            layer.data.nan_to_num_()
        for row, position in entries.items():
            memory.req_to_token[row, position] = -7
        memory.req_to_token[ROWS - 1] = -7  # nobody's row
    table, kv = memory.req_to_token.clone(), [layer.data.clone() for layer in memory.kv]
    last, before = backend.rows.last_token.clone(), device.replays
    backend.execute(decode(list(entries), [n + 1 for n in entries.values()]))  # in the graph of four
    assert device.replays == before + 1
    written = sorted(50 * row + position for row, position in entries.items())
    for old, new in zip(kv, memory.kv):
        changed = (old[:SLOTS] != new.data[:SLOTS]).flatten(1).any(1).nonzero().flatten().tolist()
        assert changed == written
    changed = (table != memory.req_to_token).nonzero().tolist()
    assert changed == sorted([row, position] for row, position in entries.items())
    others = [row for row in range(ROWS + 1) if row not in entries]
    assert torch.equal(last[others], backend.rows.last_token[others])


def test_a_padded_round_samples_for_its_own_rows_only(graphs):
    backend, _ = graphs
    first = prefill_rows(backend, [5, 9, 3])
    alone = [
        backend.execute(decode([row], [length + 1])).token_ids[0] for row, length in ((0, 5), (1, 9), (2, 3))
    ]
    assert prefill_rows(backend, [5, 9, 3]) == first
    together = backend.execute(decode([0, 1, 2], [6, 10, 4]))
    assert together.token_ids.tolist() == alone
    assert len(together.logprobs) == 3


def test_buffers_of_graphs_stay_where_they_are(graphs):
    backend, _ = graphs

    def addresses():
        batch = backend._inputs.decode_batch(4)
        entries = batch.attention
        tensors = [
            batch.input_ids,
            batch.positions,
            batch.slots,
            entries.rows,
            entries.q_start,
            entries.kv_len,
        ]
        return [
            t.data_ptr()
            for t in [
                *tensors,
                entries.req_to_token,
                *(layer.data for layer in batch.kv),
                backend.rows.last_token,
            ]
        ]

    before = addresses()
    long = Round(
        seq=0, num_decode=0, rows=int32([0]), q_len=int32([90]), kv_len=int32([90]), samples=np.ones(1, np.uint8),
        token_ids=int32([5] * 90), slots=int32(range(90)),
        joins=[JoinRow(0, 90, SamplingParams(temperature=0.0), 0, 0, [])],
    )  # fmt: skip
    backend.execute(long)  # a larger round than the buffers were made for
    prefill_rows(backend, [5, 9, 3])
    backend.execute(decode([0, 1, 2], [6, 10, 4]))
    assert addresses() == before


def test_a_batch_beyond_the_largest_graph_is_computed_without_one(graphs):
    backend, device = graphs
    lengths = list(range(2, 2 + ROWS))
    prefill_rows(backend, lengths)
    before = device.replays
    result = backend.execute(decode(list(range(ROWS)), [length + 1 for length in lengths]))
    assert len(result.token_ids) == ROWS and device.replays == before


@pytest.mark.parametrize("disable", [False, True])
def test_one_round_ahead_of_late_results_gives_the_same_tokens(config, expected, disable):
    backend, device = start_recorded(config, late=True, disable_cudagraph=disable)
    most = 0

    def deliver():
        nonlocal most
        most = max(most, len(device.under_way))
        device.deliver()

    serving = Serving(backend, LIMITS, late=deliver)
    assert serving.run(crowd()) == expected
    assert most == 2 and not serving.failures


def test_a_round_that_fails_on_arrival_takes_the_next_one_with_it_and_nobody_suffers(config, expected):
    backend, device = start_recorded(config, late=True)
    deliveries = 0

    def deliver():
        nonlocal deliveries
        deliveries += 1
        if deliveries % 9 == 0 and len(device.under_way) == 2:
            device.deliver(RuntimeError("an error of the device"))
            device.under_way.clear()  # the round behind it is computed as well, and dropped
        else:
            device.deliver()

    serving = Serving(backend, LIMITS, late=deliver)
    assert serving.run(crowd()) == expected
    assert len(serving.failures) > 3
    assert set(serving.failures) == {"RuntimeError: an error of the device"}
    assert not [finish for finish in serving.finished.values() if finish.reason == "error"]


def test_out_of_memory_in_a_round_is_retried_smaller_and_fails_nobody(config, expected, monkeypatch):
    backend, _ = start_recorded(config)
    forward = backend.model.forward
    refused = []

    def limited(batch):
        if len(batch.input_ids) > 12:
            refused.append(len(batch.input_ids))
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB")
        return forward(batch)

    monkeypatch.setattr(backend.model, "forward", limited)
    serving = Serving(backend, LIMITS)
    assert serving.run(crowd()) == expected
    assert refused and all("out of memory" in failure for failure in serving.failures)
    assert not [finish for finish in serving.finished.values() if finish.reason == "error"]


def test_out_of_memory_while_graphs_are_captured_names_the_options(config, monkeypatch):
    def exhausted(self, work):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    monkeypatch.setattr(RecordingDevice, "capture", exhausted)
    with pytest.raises(DeviceError, match="--mem_fraction.*--graph_max_batch_size"):
        start_recorded(config)
