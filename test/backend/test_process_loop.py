"""The backend's main loop with a device that takes its time: rounds are submitted ahead, results go out as they come."""

import queue
import socket
import threading
import time

import numpy as np
import pytest
import zmq

from lightllm.backend.process import BackendProcess, RoundRunner, Watch
from lightllm.protocol.arrays import EMPTY_INT32, int32
from lightllm.protocol.control import Attach
from lightllm.protocol.rounds import Resync, Round, RoundResult, first_seq


def a_round(seq):
    return Round(seq, 1, int32([0]), int32([1]), int32([2]), np.ones(1, np.uint8), EMPTY_INT32, int32([1]))


class SlowRound:
    """Done when the test says so."""

    def __init__(self, seq):
        self.seq = seq
        self.done = threading.Event()
        self.error = None

    def ready(self):
        return self.done.is_set()

    def wait(self):
        assert self.done.wait(10)

    def result(self):
        self.wait()
        if self.error is not None:
            raise self.error
        return RoundResult(self.seq, int32([7]), np.zeros(1, np.float32))


class SlowBackend:
    def __init__(self):
        self.submitted = queue.SimpleQueue()
        self.resyncs = []
        self.attached = []

    def submit(self, round):
        pending = SlowRound(round.seq)
        self.submitted.put(pending)
        return pending

    def fail_round(self, error, failed):
        return failed

    def round_done(self):
        pass

    def resync(self, seq):
        self.resyncs.append(seq)

    def attach(self, seq):
        self.attached.append(seq)


class Link:
    """The Router's end, in this process."""

    def __init__(self, context):
        self.socket = context.socket(zmq.PULL)
        port = self.socket.bind_to_random_port("tcp://127.0.0.1")
        self.router = context.socket(zmq.PUSH)
        self.router.connect(f"tcp://127.0.0.1:{port}")
        self._messages = queue.SimpleQueue()
        self.results = queue.SimpleQueue()
        self.attaches, self.answers = queue.SimpleQueue(), queue.SimpleQueue()

    def give(self, message):
        self._messages.put(message)
        self.router.send(b"")

    def receive(self):
        try:
            self.socket.recv(zmq.NOBLOCK)
        except zmq.Again:
            return None
        return self._messages.get()

    def take_attach(self):
        return None if self.attaches.empty() else self.attaches.get()

    def attached(self, epoch, ready):
        self.answers.put((epoch, ready))

    def send(self, result):
        self.results.put(result)


@pytest.fixture
def loop():
    context = zmq.Context()
    process = BackendProcess(None, 0)
    process._link, process._ready = Link(context), "ready"
    process._link.wake = process._wake
    link = process._link
    backend = SlowBackend()
    thread = threading.Thread(target=process._run_rounds, args=(RoundRunner(backend), backend))
    thread.start()
    yield link, backend
    process._stopping.set()
    process._wake_writer.send(b"s")
    thread.join(10)
    assert not thread.is_alive()
    context.destroy(linger=0)


def test_the_next_round_is_submitted_while_one_runs_and_results_go_out_in_order(loop):
    link, backend = loop
    link.give(a_round(0))
    first = backend.submitted.get(timeout=10)
    link.give(a_round(1))
    second = backend.submitted.get(timeout=10)  # the first one still runs
    assert link.results.empty()
    first.done.set()
    assert link.results.get(timeout=10).seq == 0
    link.give(a_round(2))
    third = backend.submitted.get(timeout=10)  # the second one still runs
    third.done.set()
    assert link.results.empty()
    second.done.set()
    assert [link.results.get(timeout=10).seq for _ in range(2)] == [1, 2]


def test_a_round_that_fails_on_the_device_is_reported_and_the_next_ones_are_dropped_until_resync(loop):
    link, backend = loop
    link.give(a_round(0))
    link.give(a_round(1))
    first, second = (backend.submitted.get(timeout=10) for _ in range(2))
    first.error = RuntimeError("broken")
    first.done.set()
    result = link.results.get(timeout=10)
    assert (result.seq, result.failed) == (0, "RuntimeError: broken")
    second.done.set()
    link.give(a_round(2))  # the Router did not know yet
    link.give(Resync(3))
    link.give(a_round(3))
    third = backend.submitted.get(timeout=10)
    assert third.seq == 3 and backend.resyncs == [3]
    third.done.set()
    assert link.results.get(timeout=10).seq == 3
    assert link.results.empty()


def test_a_new_router_is_answered_between_two_rounds_and_those_of_the_one_before_it_are_void(loop):
    link, backend = loop
    link.give(a_round(0))
    link.give(a_round(1))
    first, second = (backend.submitted.get(timeout=10) for _ in range(2))
    first.error = RuntimeError("broken")
    first.done.set()
    assert link.results.get(timeout=10).failed  # rounds are skipped from here on
    for epoch in (2, 3):  # the second of three Routers died while it waited for the answer
        link.attaches.put(Attach(epoch, 0, b""))
    link.wake()
    assert [link.answers.get(timeout=10) for _ in range(2)] == [(2, "ready"), (3, "ready")]
    assert backend.attached == [first_seq(2), first_seq(3)]
    second.done.set()
    link.give(a_round(first_seq(3)))
    backend.submitted.get(timeout=10).done.set()
    assert link.results.get(timeout=10).seq == first_seq(3)
    assert link.results.empty()


def test_waiting_for_a_round_takes_no_processor_time(loop):
    link, backend = loop
    link.give(a_round(0))
    pending = backend.submitted.get(timeout=10)
    time.sleep(0.05)
    before = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - before < 0.1
    pending.done.set()
    assert link.results.get(timeout=10).seq == 0


def test_the_watch_writes_one_byte_for_a_round_however_often_it_is_asked():
    reader, writer = socket.socketpair()
    watch, pending = Watch(writer), SlowRound(0)
    for _ in range(3):
        watch.wake_when_ready(pending)
    pending.done.set()
    reader.settimeout(10)
    assert reader.recv(10) == b"r"
    other = SlowRound(1)
    other.done.set()
    watch.wake_when_ready(other)
    assert reader.recv(10) == b"r"
