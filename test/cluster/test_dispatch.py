"""Each policy's own promise, and the failures that routers of this kind are known for."""

import collections

import pytest
from cluster.conftest import ask, make_workers
from hypothesis import given, settings
from hypothesis import strategies as st

from lightllm.cluster.dispatch.policies import POLICIES, make_policy
from lightllm.cluster.dispatch.policy import Policy
from lightllm.cluster.dispatch.prefix_index import PrefixIndex
from lightllm.cluster.worker import Report, Ticket, Worker

SYSTEM = "You are a helpful assistant that answers in short sentences. " * 40
OTHER = "Translate what follows into French, and keep the tone of it. " * 40


def dispatch(policy: Policy, workers: list[Worker], request, keep: bool = True) -> tuple[Worker, Ticket]:
    """As the dispatcher does; the request goes on running if `keep`."""
    worker = policy.choose(workers, request)
    cached = policy.cached_tokens(worker, request)
    policy.sent(worker, request)
    ticket = Ticket(worker, request.prompt_tokens - cached, request.output_tokens, request.prompt_tokens)
    if not keep:
        ticket.close()
    return worker, ticket


def spread(policy: Policy, workers: list[Worker], requests, keep: bool) -> collections.Counter:
    return collections.Counter(
        workers.index(dispatch(policy, workers, request, keep)[0]) for request in requests
    )


@pytest.mark.parametrize("name", POLICIES)
def test_a_single_worker_gets_everything(name):
    (worker,) = workers = make_workers(1)
    assert all(dispatch(make_policy(name, 1), workers, ask(text))[0] is worker for text in ("", "a", SYSTEM))


@pytest.mark.parametrize("name", [name for name in POLICIES if name != "consistent_hash"])
def test_requests_that_come_one_after_the_other_do_not_all_go_to_the_first(name):
    """With nothing running every worker costs the same."""
    counts = spread(
        make_policy(name, 1), make_workers(4), [ask(f"{n} " * 200) for n in range(80)], keep=False
    )
    assert len(counts) == 4 and max(counts.values()) <= 40


@pytest.mark.parametrize(
    "name", ["shortest_queue", "least_tokens", "prefix_aware", "power_of_two", "round_robin"]
)
def test_a_burst_is_spread_before_any_answer_begins(name):
    """The load counts when a request is sent, not when its answer begins."""
    counts = spread(make_policy(name, 1), make_workers(4), [ask(f"{n} " * 200) for n in range(64)], keep=True)
    assert max(counts.values()) <= 24 and len(counts) == 4


def test_lottery_draws_by_speed():
    workers = make_workers(1, speed=3.0) + make_workers(2)[1:]
    counts = spread(make_policy("lottery", 1), workers, [ask("a")] * 4000, keep=False)
    assert 2800 < counts[0] < 3200


def test_shortest_queue_counts_what_others_have_sent():
    first, second = make_workers(2)
    first.heard(Report(running=2, waiting=1), 0.0)
    policy = make_policy("shortest_queue", 1)
    assert [dispatch(policy, [first, second], ask("a"))[0] for _ in range(3)] == [second] * 3


def test_least_tokens_sees_a_long_prompt_where_a_queue_sees_one_request():
    first, second = make_workers(2)
    Ticket(first, 8000, 16, 8000), Ticket(second, 10, 16, 10), Ticket(second, 10, 16, 10)
    assert make_policy("least_tokens", 1).choose([first, second], ask("a")) is second


def test_a_prompt_goes_where_its_beginning_is():
    workers = make_workers(4)
    policy = make_policy("prefix_aware", 1)
    home, ticket = dispatch(policy, workers, ask(SYSTEM + "one"))
    ticket.answered()
    assert {dispatch(policy, workers, ask(SYSTEM + f"question {n}"), keep=False)[0] for n in range(20)} == {
        home
    }
    assert policy.cached_tokens(home, ask(SYSTEM)) > 500
    assert dispatch(policy, workers, ask(OTHER), keep=False)[0] is not home


def test_misses_do_not_pile_up_on_the_worker_with_the_least_in_its_cache():
    """A worker that was just started has the smallest tree; it must not get every unknown prompt whatever it has to do."""
    workers = make_workers(4)
    policy = make_policy("prefix_aware", 1)
    for worker in workers[1:]:
        policy.sent(worker, ask(SYSTEM))
    counts = spread(policy, workers, [ask(f"{n} unknown " * 100) for n in range(80)], keep=True)
    assert max(counts.values()) <= 28


def test_under_imbalance_the_best_of_the_near_workers_is_chosen_not_any():
    """Affinity is bounded by the load, not dropped."""
    workers = make_workers(4)
    policy = make_policy("prefix_aware", 1)
    for worker in workers[:2]:
        policy.sent(worker, ask(SYSTEM))
    Ticket(workers[0], 20_000, 16, 20_000)
    assert {dispatch(policy, workers, ask(SYSTEM + str(n)), keep=False)[0] for n in range(10)} == {workers[1]}


def test_a_popular_prefix_moves_on_when_its_worker_has_too_much_to_do():
    workers = make_workers(4)
    policy = make_policy("prefix_aware", 1)
    counts = spread(policy, workers, [ask(SYSTEM + str(n), output=64) for n in range(400)], keep=True)
    assert len(counts) == 4 and max(counts.values()) < 160


def test_a_worker_whose_memory_is_lost_is_no_home_any_more():
    workers = make_workers(2)
    policy = make_policy("prefix_aware", 1)
    home, ticket = dispatch(policy, workers, ask(SYSTEM), keep=False)
    policy.gone(home)
    assert policy.cached_tokens(home, ask(SYSTEM)) == 0


def test_a_worker_forgets_what_its_memory_has_no_room_for():
    (worker,) = make_workers(1, kv_tokens=1280)
    policy = make_policy("prefix_aware", 1)
    policy.sent(worker, ask(SYSTEM))
    policy.sent(worker, ask(OTHER))
    assert policy.cached_tokens(worker, ask(OTHER)) > 0
    assert policy.cached_tokens(worker, ask(SYSTEM)) + policy.cached_tokens(worker, ask(OTHER)) <= 1280


def test_a_session_stays_with_its_worker_and_few_move_when_one_leaves():
    workers = make_workers(8)
    policy = make_policy("consistent_hash", 1)
    sessions = [f"user {n}" for n in range(400)]
    homes = {s: dispatch(policy, workers, ask("", session=s), keep=False)[0] for s in sessions}
    again = {s: dispatch(policy, workers[::-1], ask(SYSTEM, session=s), keep=False)[0] for s in sessions}
    assert homes == again
    left = workers[1:]
    after = {s: dispatch(policy, left, ask("", session=s), keep=False)[0] for s in sessions}
    assert all(after[s] is homes[s] for s in sessions if homes[s] is not workers[0])
    assert max(collections.Counter(worker.url for worker in homes.values()).values()) < 100


def test_two_controllers_send_a_session_to_the_same_worker():
    one, other = make_policy("consistent_hash", 1), make_policy("consistent_hash", 2)
    for n in range(50):
        first, second = make_workers(5), make_workers(5)
        request = ask(f"{n} " * 400)
        assert one.choose(first, request).url == other.choose(second, request).url


def test_a_hot_session_does_not_take_a_worker_more_than_its_bounded_share():
    counts = spread(
        make_policy("consistent_hash", 1), make_workers(4), [ask("", session="hot")] * 100, keep=True
    )
    assert max(counts.values()) <= 100 / 4 * 1.25 + 2


_PROMPTS = st.lists(st.integers(0, 2), min_size=1, max_size=6)


@settings(max_examples=200, deadline=None)
@given(sent=st.lists(st.tuples(st.integers(0, 3), _PROMPTS, st.integers(0, 5)), max_size=30), asked=_PROMPTS)
def test_the_depth_of_every_worker_is_found_whatever_was_sent_and_forgotten(sent, asked):
    """A worker has a run of leading blocks: who has one has all before it, which the search relies on."""

    def blocks(prompt):
        return tuple(hash(tuple(prompt[: end + 1])) for end in range(len(prompt)))

    index = PrefixIndex()
    for worker, prompt, room in sent:
        index.insert(str(worker), blocks(prompt), kv_tokens=64 * (room + 1))
    found = index.match(blocks(asked))
    for worker in map(str, range(4)):
        own = index._blocks.get(worker, {})
        held = [block in own for block in blocks(asked)]
        depth = held.index(False) if False in held else len(held)
        assert not any(held[depth:])
        assert found.get(worker, 0) == depth == index.depth(worker, blocks(asked))
    assert 0 not in found.values()
