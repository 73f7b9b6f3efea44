import pytest
from cluster.conftest import describe

from lightllm.cluster.registry import Patience, Registry, UnknownWorker
from lightllm.cluster.worker import InvalidWorker, Report, State


@pytest.fixture
def registry() -> Registry:
    return Registry(Patience(suspect=8.0, out=15.0, forget=100.0))


def urls(workers) -> list[str]:
    return [worker.url[-1] for worker in workers]


def test_a_worker_is_there_from_its_registration_to_its_removal(registry):
    registry.register(describe(1), 0.0)
    registry.register(describe(2, ("m", "other")), 0.0)
    assert registry.models() == ["m", "other"]
    assert urls(registry.candidates("m", 0.0)) == ["1", "2"] and urls(registry.candidates("other", 0.0)) == [
        "2"
    ]
    registry.remove(describe(2).url)
    assert registry.models() == ["m"]
    with pytest.raises(UnknownWorker):
        registry.remove(describe(2).url)


def test_silence_makes_suspect_then_out_then_forgotten_and_a_beat_brings_back(registry):
    registry.register(describe(1), 0.0)
    (worker,) = registry
    assert registry.expire(8.0) == [] and worker.state is State.READY
    assert registry.expire(8.1) == [worker] and worker.state is State.SUSPECT
    registry.expire(15.1)
    assert worker.state is State.OUT and registry.candidates("m", 15.1) == [] and registry.models() == []
    assert registry.heartbeat(worker.url, Report(), 16.0) and worker.state is State.READY
    registry.expire(200.0)
    assert len(registry) == 0


def test_a_suspect_is_asked_only_where_nobody_is_ready(registry):
    first, second = (registry.register(describe(number), 0.0) for number in (1, 2))
    registry.unreachable(first, 0.0)
    assert registry.candidates("m", 0.0) == [second]
    registry.unreachable(second, 0.0)
    assert registry.candidates("m", 0.0) == [first, second]
    registry.probed(first, True, 1.0)
    registry.probed(second, False, 1.0)
    assert (first.state, second.state) == (State.READY, State.OUT)


def test_a_beat_of_somebody_unknown_or_of_an_earlier_life_asks_for_a_registration(registry):
    assert not registry.heartbeat("http://nobody", Report(), 0.0)
    worker = registry.register(describe(1, worker_id="first"), 0.0)
    assert not registry.heartbeat(worker.url, Report(), 0.0, worker_id="second")
    assert registry.heartbeat(worker.url, Report(), 0.0, worker_id="first")


def test_another_life_of_a_worker_has_lost_its_memory_and_not_our_counts(registry):
    gone = []
    registry.on_gone.append(gone.append)
    worker = registry.register(describe(1, worker_id="first"), 0.0)
    worker.in_flight = 3
    assert registry.register(describe(1, worker_id="first"), 1.0) is worker and gone == []
    assert registry.register(describe(1, worker_id="second"), 2.0) is worker and gone == [worker]
    assert worker.in_flight == 3


def test_a_draining_worker_gets_nothing_and_stays_so_when_it_beats(registry):
    worker = registry.register(describe(1), 0.0)
    registry.drain(worker.url)
    registry.heartbeat(worker.url, Report(), 1.0)
    assert worker.state is State.DRAINING and registry.candidates("m", 1.0) == []
    registry.drain(worker.url, False)
    assert registry.candidates("m", 1.0) == [worker]
    registry.heartbeat(worker.url, Report(draining=True), 2.0)
    assert worker.state is State.DRAINING


def test_beats_tell_what_others_have_sent_and_never_overwrite_our_own_count(registry):
    worker = registry.register(describe(1), 0.0)
    worker.in_flight = 2
    registry.heartbeat(worker.url, Report(running=3, waiting=2), 1.0)
    assert (worker.in_flight, worker.foreign, worker.requests) == (2, 3, 5)
    registry.heartbeat(worker.url, Report(running=1), 2.0)  # it has not seen one of ours yet
    assert worker.requests == 2


def test_a_worker_that_fails_again_and_again_gets_no_requests(registry):
    worker = registry.register(describe(1), 0.0)
    for _ in range(5):
        worker.breaker.failed(1.0)
    assert registry.candidates("m", 1.0) == []
    assert registry.candidates("m", 40.0) == [worker]


def test_those_without_beats_are_probed_always(registry):
    quiet = registry.register(describe(1, heartbeats=False), 0.0)
    registry.register(describe(2), 0.0)
    assert registry.expire(1.0) == [quiet]


@pytest.mark.parametrize(
    "wrong", [{"models": ()}, {"models": ("",)}, {"speed": 0}, {"speed": float("nan")}, {"capacity": -1}]
)
def test_a_description_makes_sense(wrong):
    with pytest.raises(InvalidWorker):
        describe(1, **wrong)


@pytest.mark.parametrize(
    "sign", ["registers", "is another life", "beats", "is probed", "was out", "left and came"]
)
def test_an_operators_drain_holds_whatever_the_worker_does_until_an_operator_ends_it(registry, sign):
    worker = registry.register(describe(1, worker_id="first"), 0.0)
    registry.drain(worker.url)
    if sign == "was out":
        registry.expire(20.0)
        assert worker.state is State.OUT
        registry.drain(worker.url, False)
        assert worker.state is State.OUT, "an order is no sign of life"
        registry.drain(worker.url)
    if sign == "left and came":
        registry.remove(worker.url)
    if sign == "beats":
        registry.heartbeat(worker.url, Report(), 21.0)
    elif sign == "is probed":
        registry.unreachable(worker, 20.0)
        registry.probed(worker, True, 21.0)
    elif sign == "was out":
        registry.probed(worker, True, 21.0)
    else:
        registry.register(describe(1, worker_id="second" if "life" in sign else "first"), 21.0)
    (worker,) = registry
    assert worker.state is State.DRAINING and registry.candidates("m", 21.0) == []
    registry.drain(worker.url, False)
    assert registry.candidates("m", 21.0) == [worker]


def test_a_worker_that_drains_by_itself_comes_back_by_itself_and_one_that_was_dismissed_is_a_new_one(
    registry,
):
    worker = registry.register(describe(1), 0.0)
    registry.heartbeat(worker.url, Report(draining=True), 1.0)
    assert worker.state is State.DRAINING
    registry.register(describe(1), 1.5)
    assert worker.state is State.DRAINING
    registry.heartbeat(worker.url, Report(), 2.0)
    assert worker.state is State.READY
    registry.drain(worker.url)
    registry.dismiss(worker.url)
    assert registry.register(describe(1), 3.0).state is State.READY
