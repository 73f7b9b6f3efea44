"""Where all workers are full requests wait, in bounded numbers and in an order that is fair: each gets one place or one reason."""

from __future__ import annotations

import dataclasses

import pytest
from cluster.conftest import ask, describe
from hypothesis import given, settings
from hypothesis import strategies as st

from lightllm.cluster.dispatch.policies import make_policy
from lightllm.cluster.dispatcher import Dispatcher, NoWorker
from lightllm.cluster.registry import Registry
from lightllm.cluster.waiting import TenantQueueFull, Waiter, WaitingRoom
from lightllm.cluster.worker import Report, Ticket
from lightllm.errors import RequestError, UnknownModel


class Scene:
    """Workers that take `capacity` requests each, and the requests that came."""

    def __init__(self, workers: int = 1, capacity: int = 1, most: int = 8, most_of_tenant: int = 4) -> None:
        self.now = 0.0
        self.registry = Registry()
        self.dispatcher = Dispatcher(self.registry, make_policy("least_tokens", 1), lambda: self.now)
        self.room = WaitingRoom(self.dispatcher, most, most_of_tenant)
        self.capacity = capacity
        self.woken: list[Waiter] = []
        for number in range(workers):
            self.register(number)

    def register(self, number: int, worker_id: str = "") -> None:
        described = describe(number, capacity=self.capacity, worker_id=worker_id)
        self.registry.register(described, self.now)

    def come(
        self, tenant: str = "", priority: int = 0, model: str = "m", tokens: int = 100
    ) -> Ticket | Waiter:
        asked = dataclasses.replace(ask("", model), prompt_tokens=tokens, output_tokens=0)
        entered = self.room.enter(asked, tenant, priority, lambda: self.woken.append(entered))
        return entered

    def serve(self, first: Ticket) -> list[Waiter]:
        """Ends one request after the other until nobody waits: those that waited, in their order."""
        first.close()
        order: list[Waiter] = []
        while len(self.woken) > len(order):
            order.append(self.woken[len(order)])
            order[-1].ticket.close()
        return order


def test_nobody_waits_while_there_is_room_and_one_is_let_in_for_each_that_ends():
    scene = Scene(workers=2)
    tickets = [scene.come() for _ in range(2)]
    waiters = [scene.come() for _ in range(2)]
    assert all(isinstance(ticket, Ticket) for ticket in tickets) and len(scene.room) == 2
    tickets[1].close()
    assert scene.woken == waiters[:1] and waiters[0].ticket.worker is tickets[1].worker
    scene.register(2)
    assert scene.woken == waiters and waiters[1].ticket.worker.url == describe(2).url


def test_a_better_priority_goes_first_and_equals_in_their_order():
    scene = Scene()
    running = scene.come()
    waiters = [scene.come(priority=priority) for priority in (1, 0, 1, -5)]
    assert scene.serve(running) == [waiters[3], waiters[1], waiters[0], waiters[2]]


def test_tenants_share_what_becomes_free_however_much_one_has_waiting():
    scene = Scene(most=100, most_of_tenant=50)
    running = scene.come()
    greedy = [scene.come("greedy") for _ in range(8)]
    modest = [scene.come("modest") for _ in range(3)]
    order = scene.serve(running)
    places = [order.index(waiter) for waiter in modest]
    assert places == [1, 3, 5] and [order.index(waiter) for waiter in greedy] == [0, 2, 4, 6, 7, 8, 9, 10]


def test_who_asks_for_much_gets_fewer_turns():
    scene = Scene(most=100, most_of_tenant=50)
    running = scene.come()
    large = [scene.come("large", tokens=400) for _ in range(3)]
    small = [scene.come("small", tokens=100) for _ in range(8)]
    order = scene.serve(running)
    assert [sum(waiter in small for waiter in order[: order.index(each)]) for each in large] == [0, 4, 8]


def test_a_tenant_has_a_bound_and_so_have_all():
    scene = Scene(most=5, most_of_tenant=3)
    scene.come()
    for _ in range(3):
        scene.come("a")
    with pytest.raises(TenantQueueFull) as refused:
        scene.come("a")
    assert refused.value.status == 429 and refused.value.retry_after >= 2
    for _ in range(2):
        scene.come("b")
    with pytest.raises(NoWorker, match="5 wait already") as refused:
        scene.come("b")
    assert refused.value.status == 503 and refused.value.retry_after >= 2


def test_one_that_leaves_makes_room_and_gives_back_what_it_has_got():
    scene = Scene(most_of_tenant=1)
    running = scene.come()
    waiter = scene.come()
    scene.room.leave(waiter)
    scene.room.leave(waiter)
    assert len(scene.room) == 0
    other = scene.come()
    running.close()
    scene.room.leave(other)
    assert other.ticket.worker.in_flight == 0 and scene.woken == [other]


@pytest.mark.parametrize("how_many_leave", [1, 5])
def test_who_leaves_before_its_turn_costs_its_tenant_nothing(how_many_leave):
    scene = Scene(most=100, most_of_tenant=50)
    running = scene.come()
    leaving = [scene.come("impatient", tokens=10_000) for _ in range(how_many_leave)]
    other = [scene.come("other") for _ in range(4)]
    stays = [scene.come("impatient") for _ in range(2)]
    for waiter in leaving:
        scene.room.leave(waiter)
    late = scene.come("impatient")
    order = scene.serve(running)
    assert [order.index(waiter) for waiter in (*stays, late)] == [1, 3, 5] and len(order) == 7
    assert [order.index(waiter) for waiter in other] == [0, 2, 4, 6]


def test_one_that_leaves_from_the_middle_costs_nothing_and_one_that_is_refused_neither():
    scene = Scene(most=100, most_of_tenant=50)
    running = scene.come()
    first, middle, last = (scene.come("a", tokens=tokens) for tokens in (100, 10_000, 100))
    others = [scene.come("b") for _ in range(3)]
    scene.room.leave(middle)
    order = scene.serve(running)
    assert order == [first, others[0], last, *others[1:]]


def test_those_that_come_and_leave_again_and_again_are_not_kept():
    scene = Scene(most=2000, most_of_tenant=1000)
    scene.come()
    scene.come("patient", priority=-1)
    for number in range(5000):
        scene.room.leave(scene.come("restless", priority=number % 1000))
    (line,) = scene.room._lines.values()
    assert len(line._heads) < 300 and len(line._flows) < 300 and len(scene.room) == 1


def test_a_model_that_is_busy_holds_up_no_other_and_one_that_is_gone_is_told():
    scene = Scene()
    scene.registry.register(describe(5, ("other",), capacity=1), 0.0)
    scene.come()
    waiter = scene.come()
    assert isinstance(scene.come(model="other"), Ticket)
    with pytest.raises(UnknownModel):
        scene.come(model="third")
    scene.registry.remove(describe(0).url)
    scene.room.let_in()
    assert isinstance(waiter.error, UnknownModel) and len(scene.room) == 0


_EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["come", "come", "close", "leave", "register", "remove", "drain", "undrain", "beat", "fail", "expire"]),
        st.integers(0, 3), st.integers(0, 3),
    ),
    max_size=80,
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(events=_EVENTS)
def test_every_request_gets_one_place_or_one_reason_and_every_counter_returns_to_zero(events):
    scene = Scene(workers=2, capacity=2)
    workers = {*scene.registry}
    waiters: list[Waiter] = []
    open_tickets: list[Ticket] = []
    for event, number, other in events:
        scene.now += 1.0
        url, known = describe(number).url, [worker.url for worker in scene.registry]
        if event == "come":
            try:
                entered = scene.come(f"tenant {number}", other)
            except RequestError as error:
                assert error.status in (404, 429, 503)
                continue
            (open_tickets if isinstance(entered, Ticket) else waiters).append(entered)
        elif event in ("close", "fail") and open_tickets:
            ticket = open_tickets.pop(number % len(open_tickets))
            if event == "fail":
                scene.registry.unreachable(ticket.worker, scene.now)
            ticket.close()
        elif event == "leave" and waiters:
            waiter = waiters[number % len(waiters)]
            if waiter.waits:
                scene.room.leave(waiter)
        elif event == "register":
            scene.register(number, str(other))
        elif event == "remove" and url in known:
            scene.registry.remove(url)
        elif event in ("drain", "undrain") and url in known:
            scene.registry.drain(url, event == "drain")
        elif event == "beat":
            scene.registry.heartbeat(url, Report(running=other), scene.now)
        elif event == "expire":
            scene.now += 4.0 * other
            scene.registry.expire(scene.now)
        open_tickets += [waiter.ticket for waiter in scene.woken if waiter.ticket is not None]
        scene.woken.clear()
        workers |= {*scene.registry}
        still = [waiter for waiter in waiters if waiter.waits]
        assert len(scene.room) == len(still) == len([*scene.room.waiting()]) <= 8
        assert all((waiter.ticket, waiter.error).count(None) >= 1 for waiter in waiters)
        assert sum(worker.in_flight for worker in workers) == len(open_tickets)
        if still and not all(worker.full for worker in scene.registry.candidates("m", scene.now)):
            raise AssertionError("somebody waits beside a worker with room")
    while open_tickets or scene.woken:
        for ticket in open_tickets:
            ticket.close()
        open_tickets = [waiter.ticket for waiter in scene.woken if waiter.ticket is not None]
        scene.woken.clear()
    for waiter in waiters:
        scene.room.leave(waiter)
    assert len(scene.room) == 0
    assert {(w.in_flight, w.prefill_tokens, w.held_tokens) for w in workers} == {(0, 0, 0)}
