"""Matchers for requests that are to come: made while others compute, so that no round waits for one. A thread of rank 0.

Http Server --PrepareConstraint--> intake thread --prepare--> compile threads (`constraints.grammars`)
Http Server <--ConstraintPrepared-- intake thread <--done-- compile threads
"""

from __future__ import annotations

import functools
import logging
import queue
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import msgspec
import zmq

from lightllm.constraints.grammars import Constraint
from lightllm.ipc.channels import EVERY_EPOCH, PullChannel, PushChannel, make_context
from lightllm.ipc.runtime_dir import RuntimeDir
from lightllm.protocol import codec
from lightllm.protocol.messages import ConstraintPrepared, PrepareConstraint

logger = logging.getLogger("backend")

_WAKE_BYTES = 4096


class ConstraintIntake:
    """Begins with its construction. Whatever comes of a constraint, it is answered: the request's round says what is wrong with it."""

    def __init__(
        self, runtime: RuntimeDir, workers: int, prepare: Callable[[Constraint, str], Future[Any] | None]
    ) -> None:
        """workers: number of Http Servers; prepare: has the matcher of a constraint made of its grammar, None: it is there."""
        context = make_context()
        self._intake = PullChannel(context, runtime.constraint_intake, codec.to_constraints, EVERY_EPOCH)
        self._workers = [
            PushChannel(context, runtime.http_results(worker), EVERY_EPOCH) for worker in range(workers)
        ]
        self._prepare = prepare
        self._done: queue.SimpleQueue[PrepareConstraint] = queue.SimpleQueue()
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="constraint-intake", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stopping = True
        self._wake_writer.send(b"s")
        self._thread.join()
        self._intake.close()
        for worker in self._workers:
            worker.close()

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._intake.socket, zmq.POLLIN)
        poller.register(self._wake_reader, zmq.POLLIN)
        while not self._stopping:
            if (self._wake_reader.fileno(), zmq.POLLIN) in poller.poll():
                self._wake_reader.recv(_WAKE_BYTES)
            while (data := self._intake.receive_bytes()) is not None:
                self._take(data)
            while not self._done.empty():
                asked = self._done.get()
                self._workers[asked.worker].send(ConstraintPrepared(asked.ticket))

    def _take(self, data: bytes) -> None:
        try:
            asked = self._intake.decode(data)
        except msgspec.MsgspecError as error:
            logger.error("dropped a malformed constraint: %s", error)
            return
        if not 0 <= asked.worker < len(self._workers):
            logger.error("dropped a constraint of an unknown Http worker: %d", asked.worker)
            return
        try:
            made = self._prepare(Constraint(asked.name, asked.text, asked.prefix), asked.grammar)
        except Exception:  # others are to be prepared all the same
            logger.exception("a constraint could not be prepared")
            made = None
        if made is None:
            self._done.put(asked)
        else:
            made.add_done_callback(functools.partial(self._answer, asked))

    def _answer(self, asked: PrepareConstraint, made: Future[Any]) -> None:
        """In the thread that has made it, or that would have."""
        self._done.put(asked)
        self._wake_writer.send(b"d")
