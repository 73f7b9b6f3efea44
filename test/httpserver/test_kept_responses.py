"""Responses that callers go back to, with the openai client: followed, read, deleted, made in the background."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import openai
import pytest
from support.chat_templates import QWEN
from support.checkpoints import write_tokenizer
from support.fake_engine import FakeEngine

from lightllm.http.error_middleware import ABORT_CONNECTION, WRITE_PARTS
from lightllm.httpserver.openai_responses.background import run_apart
from lightllm.parsers.chat_format import ChatFormat
from lightllm.parsers.families import HERMES
from lightllm.tokenizer import Tokenizer, load_tokenizer

CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "one"}}\n</tool_call>'
TOOLS: Any = [{"type": "function", "name": "get_weather", "parameters": {"type": "object"}}]
KEYS = ["first", "second"]


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tokenizer]:
    folder = tmp_path_factory.mktemp("qwen")
    write_tokenizer(folder)
    tokenizer = load_tokenizer(str(folder), chat_template=QWEN)
    yield tokenizer
    tokenizer.close()


@pytest.fixture(scope="module")
def keeping(start_worker: Callable[..., Any], qwen: Tokenizer) -> Iterator[list[Any]]:
    """Two workers of one server."""
    options = {"httpserver_workers": 2, "api_key": KEYS, "response_store_mb": 1, "sse_keep_alive": 1}
    workers = [start_worker(number, ChatFormat(HERMES), **options) for number in (0, 1)]
    own = [worker.encoder.tokenizer for worker in workers]
    for worker in workers:
        worker.encoder.tokenizer = qwen
    yield workers
    for worker, tokenizer in zip(workers, own, strict=True):
        worker.encoder.tokenizer = tokenizer


@pytest.fixture
def clients(keeping: list[Any], engine: FakeEngine) -> Iterator[list[openai.OpenAI]]:
    """Of the first caller: one for each worker."""
    engine.ready(max_req_total_len=2048, slots_total=4096)
    own = [openai.OpenAI(base_url=f"{one.url}/v1", api_key=KEYS[0], max_retries=0) for one in keeping]
    yield own
    for client in own:
        client.close()


@pytest.fixture
def api(clients: list[openai.OpenAI]) -> openai.OpenAI:
    return clients[0]


@pytest.fixture
def stranger(keeping: list[Any]) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{keeping[0].url}/v1", api_key=KEYS[1], max_retries=0) as client:
        yield client


@pytest.fixture
def prompt(engine: FakeEngine, qwen: Tokenizer) -> Callable[[], str]:
    return lambda: qwen.decode(engine.added[-1].prompt_ids.tolist(), skip_special_tokens=False)


def test_a_response_follows_another_in_any_worker(
    clients: list[openai.OpenAI], engine: FakeEngine, prompt: Callable[[], str]
) -> None:
    engine.script.answer = CALL
    first = clients[0].responses.create(model="t", input="one", instructions="two", tools=TOOLS)
    assert first.store is True and first.output[0].type == "function_call"
    begin = prompt()
    engine.script.answer = "Größe"
    result: Any = {"type": "function_call_output", "call_id": first.output[0].call_id, "output": "rain"}
    second = clients[1].responses.create(
        model="t", input=[result], previous_response_id=first.id, tools=TOOLS
    )
    assert second.previous_response_id == first.id and second.output_text == "Größe"
    assert "two" in begin and "rain" in prompt() and "get_weather" in prompt()
    third = clients[0].responses.create(
        model="t", input="of", previous_response_id=second.id, instructions="two", tools=TOOLS
    )
    assert (
        prompt().startswith(begin.rpartition("assistant")[0]) and "Größe" in prompt() and "rain" in prompt()
    )
    items: Any = [{"role": "user", "content": "one"}, first.output[0].to_dict(), result,
                  second.output[0].to_dict(), {"role": "user", "content": "of"}]  # fmt: skip
    own = prompt()
    clients[0].responses.create(model="t", input=items, instructions="two", tools=TOOLS, store=False)
    assert own == prompt() and third.id != second.id


def test_a_streamed_response_is_kept_as_its_last_event_tells(clients: list[openai.OpenAI]) -> None:
    with clients[0].responses.stream(model="t", input="one", metadata={"a": "b"}) as stream:
        final = stream.get_final_response()
    assert clients[1].responses.retrieve(final.id).to_dict() == {
        name: value for name, value in final.to_dict().items() if name != "output_parsed"
    } | {"output": [without_parsed(item) for item in final.to_dict()["output"]]}  # type: ignore[attr-defined]


def without_parsed(item: Any) -> Any:
    """What the server has sent of an item; the client adds fields of its own."""
    return item | {"content": [{k: v for k, v in part.items() if k != "parsed"} for part in item["content"]]}


def test_nobody_reaches_the_response_of_another(api: openai.OpenAI, stranger: openai.OpenAI) -> None:
    own = api.responses.create(model="t", input="one").id
    with pytest.raises(openai.NotFoundError, match="not found"):
        stranger.responses.retrieve(own)
    with pytest.raises(openai.NotFoundError):
        stranger.responses.delete(own)
    with pytest.raises(openai.NotFoundError):
        stranger.responses.cancel(own)
    with pytest.raises(openai.NotFoundError):
        stranger.responses.input_items.list(own)
    with pytest.raises(openai.BadRequestError) as error:
        stranger.responses.create(model="t", input="one", previous_response_id=own)
    assert error.value.code == "previous_response_not_found" and error.value.param == "previous_response_id"
    assert api.responses.retrieve(own).id == own


def test_deleted_and_not_stored_responses_are_gone(api: openai.OpenAI) -> None:
    response = api.responses.create(model="t", input="one")
    api.responses.delete(response.id)
    loose = api.responses.create(model="t", input="one", store=False)
    assert loose.store is False
    for name in (response.id, loose.id, "resp_1", "x" * 1000):
        with pytest.raises(openai.NotFoundError) as error:
            api.responses.retrieve(name)
        assert error.value.code == "response_not_found"


def test_the_items_of_an_input_are_listed_in_pages(api: openai.OpenAI) -> None:
    items: Any = [{"role": "user", "content": f"{number}"} for number in range(5)]
    own = api.responses.create(model="t", input=items).id
    page = api.responses.input_items.list(own, limit=2)
    assert [item.content[0].text for item in page] == ["4", "3", "2", "1", "0"]  # type: ignore[union-attr]
    rising = [item.to_dict() for item in api.responses.input_items.list(own, order="asc", limit=3)]
    assert [item["content"] for item in rising] == [
        [{"type": "input_text", "text": f"{n}"}] for n in range(5)
    ]
    assert all(str(item["id"]).startswith("msg_") and item["type"] == "message" for item in rising)
    for fields in ({"limit": 0}, {"limit": 101}, {"after": "x"}, {"order": "up"}):
        with pytest.raises(openai.BadRequestError):
            api.responses.input_items.list(own, **fields)  # type: ignore[arg-type]


def poll(api: openai.OpenAI, engine: FakeEngine, response_id: str) -> Any:
    found: list[Any] = []

    def ended() -> bool:
        found[:] = [api.responses.retrieve(response_id)]
        return found[0].status not in ("queued", "in_progress")

    engine.wait_for(ended)
    return found[0]


def test_a_response_in_the_background_is_polled_for(clients: list[openai.OpenAI], engine: FakeEngine) -> None:
    engine.script.hold = True
    begun = clients[0].responses.create(model="t", input="one", background=True)
    assert begun.background and begun.status == "in_progress" and begun.output == []
    assert clients[1].responses.retrieve(begun.id).status == "in_progress"
    with pytest.raises(openai.BadRequestError, match="in progress"):
        clients[0].responses.create(model="t", input="one", previous_response_id=begun.id)
    engine.script.hold = False
    done = poll(clients[1], engine, begun.id)
    assert done.status == "completed" and done.output_text == engine.script.answer
    assert clients[0].responses.cancel(begun.id).status == "completed"


@pytest.mark.parametrize("other", [0, 1])
def test_a_response_in_the_background_is_cancelled(
    clients: list[openai.OpenAI], engine: FakeEngine, other: int
) -> None:
    engine.script.endless, engine.script.halt_at = True, 5
    begun = clients[0].responses.create(model="t", input="one", background=True, max_output_tokens=500)
    cancelled = clients[other].responses.cancel(begun.id)
    assert cancelled.status == "cancelled" and cancelled.id == begun.id
    assert engine.active == 0 and clients[0].responses.retrieve(begun.id).status == "cancelled"


def test_deleting_ends_what_is_made_in_the_background(api: openai.OpenAI, engine: FakeEngine) -> None:
    engine.script.endless, engine.script.halt_at = True, 5
    begun = api.responses.create(model="t", input="one", background=True, max_output_tokens=500)
    api.responses.delete(begun.id)
    engine.wait_for(lambda: engine.active == 0)
    with pytest.raises(openai.NotFoundError):
        api.responses.retrieve(begun.id)


def test_a_failure_in_the_background_is_kept(api: openai.OpenAI, engine: FakeEngine) -> None:
    engine.script.finish_error, engine.script.error_after = "the device is gone", 2
    failed = poll(api, engine, api.responses.create(model="t", input="one", background=True).id)
    assert failed.status == "failed" and failed.error.message == "the device is gone"


def test_what_is_refused_is_not_kept(api: openai.OpenAI, engine: FakeEngine, keeping: list[Any]) -> None:
    from lightllm.protocol.messages import Refused

    folder = keeping[0].engine.runtime.responses_dir
    before = set(folder.rglob("*"))
    engine.script.refuse = Refused([], "ServerOverloaded", "full", retry_after=1)
    for background in (False, True):
        with pytest.raises(openai.InternalServerError):
            api.responses.create(model="t", input="one", background=background)
    assert set(folder.rglob("*")) == before


def test_one_whose_client_leaves_is_not_kept(
    api: openai.OpenAI, engine: FakeEngine, keeping: list[Any]
) -> None:
    engine.script.endless, engine.script.halt_at = True, 5
    stream = api.responses.create(model="t", input="one", stream=True, max_output_tokens=500)
    own = next(iter(stream)).response.id  # type: ignore[union-attr]
    assert api.responses.retrieve(own).status == "in_progress"
    with pytest.raises(openai.BadRequestError, match="background"):
        api.responses.cancel(own)
    stream.close()
    engine.wait_for(lambda: engine.active == 0)
    folder = keeping[0].engine.runtime.responses_dir
    engine.wait_for(lambda: not list(folder.rglob(f"{own}*")))


def test_what_is_too_large_to_be_kept_is_answered_all_the_same(api: openai.OpenAI) -> None:
    large: Any = {"tools": [TOOLS[0] | {"description": "x" * 990_000}], "tool_choice": "none"}
    assert api.responses.create(model="t", input="one", **large).store is False
    with pytest.raises(openai.BadRequestError, match="too large to be kept"):
        api.responses.create(model="t", input="one", background=True, **large)


def test_without_a_store_nothing_is_kept(start_worker: Callable[..., Any], engine: FakeEngine) -> None:
    worker = start_worker(2, response_store_mb=0)
    with openai.OpenAI(base_url=f"{worker.url}/v1", api_key="none", max_retries=0) as api:
        response = api.responses.create(model="t", input="one", store=True)
        assert response.store is False
        with pytest.raises(openai.NotFoundError):
            api.responses.retrieve(response.id)
        with pytest.raises(openai.BadRequestError) as error:
            api.responses.create(model="t", input="one", previous_response_id=response.id)
        assert error.value.code == "previous_response_not_found"
        with pytest.raises(openai.BadRequestError, match="--response_store_mb 0"):
            api.responses.create(model="t", input="one", background=True)


def test_a_stream_that_is_not_of_the_background_is_not_taken_up_again(api: openai.OpenAI) -> None:
    own = api.responses.create(model="t", input="one").id
    for more in ({}, {"starting_after": 3}):
        with pytest.raises(openai.BadRequestError, match="made with background and stream"):
            api.responses.retrieve(own, stream=True, **more)  # type: ignore[call-overload]


def test_a_stream_in_the_background_is_taken_up_again_in_any_worker(
    clients: list[openai.OpenAI], engine: FakeEngine
) -> None:
    engine.script.answer, engine.script.halt_at = "one two of\n\none", 3
    stream = clients[0].responses.create(model="t", input="one", background=True, stream=True)
    begin = [event for event, _ in zip(stream, range(5), strict=False)]
    assert [event.type for event in begin[:2]] == ["response.created", "response.in_progress"]
    own = begin[0].response.id  # type: ignore[union-attr]
    stream.close()
    assert clients[1].responses.retrieve(own).status == "in_progress"
    engine.script.halt_at = None
    rest = list(clients[1].responses.retrieve(own, stream=True, starting_after=4))
    assert [event.sequence_number for event in rest] == list(range(5, 5 + len(rest)))
    assert rest[-1].type == "response.completed"
    final = rest[-1].response
    assert final.output_text == engine.script.answer and final.background is True
    assert clients[0].responses.retrieve(own).to_dict() == final.to_dict()
    again = list(clients[0].responses.retrieve(own, stream=True))
    assert [event.to_dict() for event in again] == [event.to_dict() for event in [*begin, *rest]]
    clients[0].responses.delete(own)
    with pytest.raises(openai.NotFoundError):
        clients[1].responses.retrieve(own, stream=True)


def test_a_stream_in_the_background_is_kept_alive(keeping: list[Any], engine: FakeEngine) -> None:
    engine.script.halt_at = 0
    url, headers = keeping[0].url, {"authorization": f"Bearer {KEYS[0]}"}
    body = {"input": "one", "background": True, "stream": True}
    with httpx.stream("POST", f"{url}/v1/responses", json=body, headers=headers, timeout=60) as stream:
        lines = stream.iter_lines()
        assert ": keep-alive" in lines
        engine.script.halt_at = None
        assert "event: response.completed" in lines


@pytest.mark.parametrize("end", ["delete", "cancel", "fail"])
def test_whoever_follows_a_stream_in_the_background_hears_its_end(
    clients: list[openai.OpenAI], engine: FakeEngine, end: str
) -> None:
    engine.script.endless, engine.script.halt_at = True, 4
    stream = clients[0].responses.create(model="t", input="one", background=True, stream=True)
    first = next(iter(stream))
    own = first.response.id  # type: ignore[union-attr]
    if end == "delete":
        clients[1].responses.delete(own)
        list(stream)
    elif end == "cancel":
        assert clients[1].responses.cancel(own).status == "cancelled"
        assert list(stream)[-1].response.status == "cancelled"  # type: ignore[union-attr]
    else:
        engine.script.finish_error = "the device is gone"
        assert list(stream)[-1].type == "response.failed"


def test_a_number_of_an_event_is_checked(api: openai.OpenAI, stranger: openai.OpenAI) -> None:
    stream = api.responses.create(model="t", input="one", background=True, stream=True)
    own = list(stream)[0].response.id  # type: ignore[union-attr]
    for wrong in ("x", "-2", "1.5", "9" * 20):
        with pytest.raises(openai.BadRequestError, match="starting_after"):
            api.responses.retrieve(own, stream=True, starting_after=wrong)  # type: ignore[call-overload]
    assert list(api.responses.retrieve(own, stream=True, starting_after=10_000)) == []
    with pytest.raises(openai.NotFoundError):
        stranger.responses.retrieve(own, stream=True)


def test_items_can_be_referred_to(
    clients: list[openai.OpenAI], engine: FakeEngine, prompt: Callable[[], str], stranger: openai.OpenAI
) -> None:
    engine.script.answer = CALL
    first = clients[0].responses.create(model="t", input="one", tools=TOOLS)
    (asked,) = clients[1].responses.input_items.list(first.id)
    engine.script.answer = "Größe"
    result: Any = {"type": "function_call_output", "call_id": first.output[0].call_id, "output": "rain"}  # type: ignore[union-attr]
    references: Any = [{"type": "item_reference", "id": asked.id}, {"id": first.output[0].id}, result]
    second = clients[1].responses.create(model="t", input=references, tools=TOOLS)
    own = prompt()
    items: Any = [{"role": "user", "content": "one"}, first.output[0].to_dict(), result]
    clients[0].responses.create(model="t", input=items, tools=TOOLS, store=False)
    assert own == prompt() and "rain" in own
    kept = clients[0].responses.input_items.list(second.id, order="asc").data
    assert [item.type for item in kept] == ["message", "function_call", "function_call_output"]
    clients[0].responses.delete(first.id)
    for client in (stranger, clients[1]):
        with pytest.raises(openai.BadRequestError, match="input.0: Item with id .* not found"):
            client.responses.create(model="t", input=references, tools=TOOLS)


def test_what_does_not_fit_loses_its_oldest_items(
    api: openai.OpenAI, engine: FakeEngine, prompt: Callable[[], str]
) -> None:
    engine.ready(max_req_total_len=400, slots_total=4096)
    call: Any = {"type": "function_call", "call_id": "c", "name": "get_weather", "arguments": "{}"}
    turns: Any = []
    for number in range(40):
        turns += [{"role": "user", "content": f"Nr {number} of"}, call, {"type": "function_call_output", "call_id": "c", "output": "rain"}]  # fmt: skip
        turns += [{"role": "assistant", "content": f"one {number}"}]
    turns.insert(4, {"role": "developer", "content": "two two"})
    fields: Any = {"model": "t", "instructions": "one two", "max_output_tokens": 50}
    with pytest.raises(openai.BadRequestError, match="maximum context length"):
        api.responses.create(input=[*turns, {"role": "user", "content": "last"}], **fields)
    response = api.responses.create(
        input=[*turns, {"role": "user", "content": "last"}], truncation="auto", **fields
    )
    assert response.truncation == "auto" and response.status == "completed"
    text, length = prompt(), len(engine.added[-1].prompt_ids)
    numbers = [number for number in range(40) if f"Nr {number} of" in text]
    assert numbers == list(range(numbers[0], 40)) and 0 < numbers[0] < 40
    assert f"one {numbers[0]}" in text and f"one {numbers[0] - 1}" not in text
    assert "one two" in text and "two two" in text and "last" in text
    assert 400 - 50 >= length > 400 - 50 - 2 * (length // len(numbers))  # one turn more would be too much
    assert len(api.responses.input_items.list(response.id, limit=100).data) == 100
    # an agent's turn: its latest call stays, and the question
    calls: Any = [item for number in range(40) for item in (call, {"type": "function_call_output", "call_id": "c", "output": f"rain {number} of"})]  # fmt: skip
    api.responses.create(input=[{"role": "user", "content": "first"}, *calls], truncation="auto", **fields)
    text = prompt()
    assert "first" in text and "rain 39 of" in text and "rain 0 of" not in text
    assert len(engine.added[-1].prompt_ids) <= 350
    with pytest.raises(openai.BadRequestError, match="maximum context length"):
        api.responses.create(input="x" * 4000, truncation="auto", **fields)


def test_an_answer_in_the_background_has_no_way_to_the_connection_that_asked_for_it() -> None:
    scopes = []

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        scopes.append(scope)
        await send({"type": "http.response.start"})

    asyncio.run(run_apart(answer, {"path": "/", ABORT_CONNECTION: print, WRITE_PARTS: print}))  # type: ignore[arg-type]
    assert scopes == [{"path": "/"}]
