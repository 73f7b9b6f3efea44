"""A stream whose text cannot be made ends with an error; the others of its rounds lose nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from support import tokenizers
from support.detokenizing import Client, make, request

from lightllm.detokenizer import detokenizer as module
from lightllm.detokenizer.stream import ChoiceStream
from lightllm.protocol.messages import AbortRequest, Finish, RoundTokens
from lightllm.tokenizer import Tokenizer, load_tokenizer

FAULTY = 2
"""The request of which something raises; a stream knows it by its prompt."""
PROMPTS = {1: (5,), FAULTY: (5, 5, 5), 3: (5,)}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(str(tokenizers.byte_level(tmp_path_factory.mktemp("tokenizer"))))


def raising(method: Callable[..., Any], after: int = 0) -> Callable[..., Any]:
    calls = iter(range(1000))

    def call(self: ChoiceStream, *arguments: Any) -> Any:
        faulty = arguments[0] == FAULTY if method.__name__ == "__init__" else self.prompt_tokens == 3
        if faulty and next(calls) >= after:
            raise ValueError("injected")
        return method(self, *arguments)

    return call


def serve(client: Client, ids: list[int]) -> None:
    """Three requests of the same tokens, one a round; the Router ends them together, but for those that it was told to
    abort."""
    for number in (1, FAULTY, 3):
        client.take(request([number], prompt=PROMPTS[number]))
    for token_id in ids:
        running = [n for n in (1, FAULTY, 3) if n not in client.finished]
        client.take(RoundTokens(running, [token_id] * len(running), [-0.5] * len(running)))
    reason = {n: "abort" if AbortRequest(n, "error") in client.aborts else "length" for n in (1, FAULTY, 3)}
    client.take(RoundTokens([], [], [], finished=[Finish(n, reason[n], 1, len(ids)) for n in reason]))  # type: ignore[arg-type]
    assert len(client.detokenizer) == 0


@pytest.mark.parametrize("place", ["__init__", "push", "push, third token", "finish"])
def test_one_stream_fails_and_the_others_go_on(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    name = place.partition(",")[0]
    method = raising(getattr(ChoiceStream, name), after=2 if "third" in place else 0)
    monkeypatch.setattr(module.ChoiceStream, name, method)
    client = Client(make(tokenizer))
    ids = tokenizer.encode("one two three", add_special_tokens=False)
    serve(client, ids)
    for number in (1, 3):
        assert client.text[number] == "one two three" and client.finished[number].reason == "length"
    finish = client.finished[FAULTY]
    assert (finish.reason, finish.error_type) == ("error", "BackendFailed")
    assert "could not be made" in finish.error
    said = client.text.get(FAULTY, "")
    assert "one two three".startswith(said) and (said or "third" not in place)


def test_all_choices_of_a_request_that_cannot_begin_end(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise ValueError("injected")

    monkeypatch.setattr(module.Rules, "of", fail)
    client = Client(make(tokenizer))
    client.take(request([4, 5], n=2))
    assert {finish.reason for finish in client.finished.values()} == {"error"} and len(client.finished) == 2
    assert client.aborts == [AbortRequest(4, "error"), AbortRequest(5, "error")]
