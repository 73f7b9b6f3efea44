"""Which automata are made for requests that are to come, in which order, and which are dropped."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightllm.constraints import prepared
from lightllm.constraints.grammars import Constraint
from lightllm.constraints.prepared import Prepared


class Line:
    def __init__(self) -> None:
        self.now = 0.0
        self.made: list[tuple[str, Future[Any]]] = []
        self.prepared = Prepared(self._make, lambda: self.now)

    def _make(self, constraint: Constraint, grammar: str) -> Future[Any]:
        assert grammar == f"of {constraint.text}"
        self.made.append((constraint.text, Future()))
        return self.made[-1][1]

    def names(self) -> str:
        return "".join(name for name, _ in self.made)

    def ask(self, name: str) -> Future[Any]:
        return self.prepared.ask(Constraint("regular_constraint", name), f"of {name}")

    def take(self, name: str) -> Future[Any] | None:
        taken = self.prepared.take(Constraint("regular_constraint", name))
        return None if taken is None else taken.done

    def finish(self, name: str) -> None:
        for own, made in self.made:
            if own == name and not made.done():
                made.set_result(name)


@pytest.fixture
def line(monkeypatch: pytest.MonkeyPatch) -> Line:
    monkeypatch.setattr(prepared, "_MOST", 2)
    return Line()


def test_those_that_came_first_are_made_first(line: Line) -> None:
    asked = {name: line.ask(name) for name in "abcd"}
    assert line.names() == "ab"
    line.finish("b")
    assert asked["b"].result(0) == "b" and not asked["c"].done()
    assert line.take("b") is asked["b"]
    assert line.names() == "abc"
    line.take("a")
    assert line.names() == "abcd"
    assert line.take("e") is None


def test_who_asks_again_keeps_the_place(line: Line) -> None:
    asked = [line.ask(name) for name in "abcd"]
    assert line.ask("c") is asked[2] and line.ask("a") is asked[0]
    line.take("a")
    assert line.names() == "abc"


def test_a_request_that_does_not_wait_for_its_turn_gets_it_at_once(line: Line) -> None:
    asked = [line.ask(name) for name in "abc"]
    assert line.take("c") is asked[2]
    assert line.names() == "abc"
    line.finish("c")
    assert asked[2].result(0) == "c"


def test_what_nobody_asks_for_any_more_is_not_made(line: Line) -> None:
    asked = {name: line.ask(name) for name in "abcd"}
    line.now += prepared._ASKED_SECONDS - 1
    line.ask("d")
    line.now += 2
    line.take("a")
    assert line.names() == "abd"
    assert asked["c"].cancelled() and not asked["d"].done()


def test_what_nobody_comes_for_makes_room_in_time(line: Line) -> None:
    for name in "ab":
        line.ask(name)
    line.now += prepared._KEPT_SECONDS + 1
    line.ask("c")
    assert line.names() == "abc"
    assert line.take("a") is None


def test_who_takes_it_hears_how_many_others_asked(line: Line) -> None:
    a = Constraint("regular_constraint", "a")
    assert line.prepared.take(a) is None
    line.ask("a")
    line.ask("a")
    taken = line.prepared.take(a)
    assert taken is not None and (taken.others, taken.grammar) == (1, "of a")
    line.prepared.make_again(a, "of a", 2)
    again = line.prepared.take(a)
    assert again is not None and (again.others, again.grammar) == (1, "of a") and again.done is not taken.done


def test_what_is_made_again_does_not_wait_for_its_turn(line: Line) -> None:
    for name in "abc":
        line.ask(name)
    for name in "da":
        line.prepared.make_again(Constraint("regular_constraint", name), f"of {name}", 1)
    assert line.names() == "abd"
    line.finish("d")
    made = line.take("d")
    assert made is not None and made.result(0) == "d"


def test_what_cannot_be_made_says_so(line: Line) -> None:
    asked = line.ask("a")
    line.made[0][1].set_exception(ValueError("no"))
    with pytest.raises(ValueError, match="no"):
        asked.result(0)


@given(st.lists(st.tuples(st.sampled_from("atfw"), st.sampled_from("abcdefgh")), max_size=60))
def test_whatever_happens_everything_that_is_asked_for_gets_its_turn(steps: list[tuple[str, str]]) -> None:
    line = Line()
    open_: dict[str, Any] = {}
    for step, name in steps:
        if step == "a":
            open_[name] = line.ask(name)
        elif step == "t":
            found = line.take(name)
            assert found is open_.pop(name, None)
        elif step == "f":
            line.finish(name)
        else:
            line.now += 0.5
    for name in list(open_):
        line.finish(name)
        line.take(name)
        line.finish(name)
        assert open_[name].result(0) == name
