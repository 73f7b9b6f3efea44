"""Whatever happens, in whatever order: every number that a request added is taken back, and no request has two workers."""

import contextlib

import pytest
from cluster.conftest import ask, describe
from hypothesis import given, settings
from hypothesis import strategies as st

from lightllm.cluster.dispatch.policies import POLICIES, make_policy
from lightllm.cluster.dispatcher import Dispatcher, NoWorker
from lightllm.cluster.registry import Registry
from lightllm.cluster.worker import Report, Ticket, Worker
from lightllm.errors import UnknownModel

_PROMPTS = [
    "",
    "short",
    "a shared beginning " * 60,
    "a shared beginning " * 60 + "and an end " * 40,
    "other " * 200,
]
_EVENTS = st.lists(
    st.tuples(
        st.sampled_from(
            ["send", "answer", "close", "fail", "register", "beat", "drain", "undrain", "remove", "expire"]
        ),
        st.integers(0, 5),
        st.integers(0, len(_PROMPTS) - 1),
    ),
    max_size=80,
)


def totals(worker: Worker) -> tuple[int, int, int]:
    return worker.in_flight, worker.prefill_tokens, worker.held_tokens


@settings(max_examples=150, deadline=None)
@given(name=st.sampled_from(sorted(POLICIES)), events=_EVENTS)
def test_counters_return_to_zero_after_any_sequence(name, events):
    now = 0.0
    registry = Registry()
    dispatcher = Dispatcher(registry, make_policy(name, 1), lambda: now)
    workers: set[Worker] = {registry.register(describe(0), now)}
    tickets: list[Ticket] = []
    for event, number, text in events:
        now += 1.0
        url = describe(number).url
        known = url in {worker.url for worker in registry}
        if event == "send":
            with contextlib.suppress(NoWorker, UnknownModel):
                tickets.append(dispatcher.send(ask(_PROMPTS[text])))
        elif event == "register":
            workers.add(registry.register(describe(number, worker_id=str(text)), now))
        elif event == "beat":
            registry.heartbeat(url, Report(running=text, waiting=number), now)
        elif event in ("drain", "undrain") and known:
            registry.drain(url, event == "drain")
        elif event == "remove" and known:
            registry.remove(url)
        elif event == "expire":
            now += 5.0 * number
            registry.expire(now)
        elif tickets and event in ("answer", "close", "fail"):
            ticket = tickets[number % len(tickets)]
            if event == "answer":
                ticket.answered()
            else:
                tickets.remove(ticket)
                ticket.close()
                ticket.close()
                if event == "fail":
                    registry.unreachable(ticket.worker, now)
        assert all(min(totals(worker)) >= 0 for worker in workers)
        assert sum(worker.in_flight for worker in workers) == len(tickets)
    for ticket in tickets:
        ticket.close()
    assert {totals(worker) for worker in workers} == {(0, 0, 0)}


@pytest.fixture
def registry() -> Registry:
    return Registry()


def dispatcher_of(registry: Registry, name: str = "prefix_aware") -> Dispatcher:
    return Dispatcher(registry, make_policy(name, 1), lambda: 0.0)


def test_the_load_counts_from_before_the_request_is_sent_to_its_end_however_it_ends(registry):
    worker = registry.register(describe(0), 0.0)
    with pytest.raises(ZeroDivisionError), dispatcher_of(registry).send(ask("a " * 400, output=16)) as ticket:
        assert totals(worker) == (1, 200, 216)
        ticket.answered()
        assert totals(worker) == (1, 0, 216)
        raise ZeroDivisionError
    assert totals(worker) == (0, 0, 0)


def test_what_is_cached_is_not_to_be_computed(registry):
    worker = registry.register(describe(0), 0.0)
    dispatcher = dispatcher_of(registry)
    dispatcher.send(ask("same " * 400)).close()
    dispatcher.send(ask("same " * 400))
    assert worker.prefill_tokens < 64 and worker.held_tokens > 400


def test_a_worker_that_was_tried_is_not_tried_again(registry):
    for number in range(2):
        registry.register(describe(number), 0.0)
    dispatcher = dispatcher_of(registry)
    first = dispatcher.send(ask("a"))
    second = dispatcher.send(ask("a"), [first.worker])
    assert second.worker is not first.worker
    with pytest.raises(NoWorker):
        dispatcher.send(ask("a"), [first.worker, second.worker])


def test_a_model_that_nobody_serves_is_not_found_and_one_that_nobody_can_take_now_is_overload(registry):
    dispatcher = dispatcher_of(registry)
    with pytest.raises(NoWorker, match="no worker has registered"):
        dispatcher.send(ask("a"))
    worker = registry.register(describe(0, capacity=1), 0.0)
    with pytest.raises(UnknownModel):
        dispatcher.send(ask("a", model="other"))
    dispatcher.send(ask("a"))
    with pytest.raises(NoWorker, match="as many requests as they take"):
        dispatcher.send(ask("a"))
    registry.drain(worker.url)
    with pytest.raises(NoWorker, match="are stopping"):
        dispatcher.send(ask("a"))


def test_health_checks_leave_the_counters_alone(registry):
    worker = registry.register(describe(0), 0.0)
    dispatcher_of(registry).send(ask("a " * 400))
    before = totals(worker)
    registry.probed(worker, False, 1.0)
    registry.probed(worker, True, 2.0)
    registry.heartbeat(worker.url, Report(), 3.0)
    assert totals(worker) == before
