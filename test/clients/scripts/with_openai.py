"""openai: chat, completions, responses; whole, streamed, parsed, with tools; sync and async."""

import asyncio
import json
import math
from typing import Literal

import openai
from meeting import (
    AGENT,
    CAPITAL,
    DEMO,
    EMBEDDER,
    KEY,
    LONG,
    SCHEMA,
    STORY,
    SUM,
    TOOL,
    TWO_SUMS,
    add,
    freed,
    refused,
)
from pydantic import BaseModel

demo = openai.OpenAI(base_url=f"{DEMO}/v1", api_key=KEY, max_retries=0)
agent = openai.OpenAI(base_url=f"{AGENT}/v1", api_key=KEY, max_retries=0)
MODEL = "gpt-5"
ask = {"model": MODEL, "messages": [{"role": "user", "content": CAPITAL}], "temperature": 0}


class Capital(BaseModel):
    city: Literal["Paris", "Rome"]
    inhabitants: int


def chats() -> None:
    whole = demo.chat.completions.create(**ask, max_completion_tokens=40)
    text = whole.choices[0].message.content
    assert "Paris" in text and whole.choices[0].finish_reason == "stop" and whole.model == MODEL, whole
    raw = demo.chat.completions.with_raw_response.create(**ask)
    assert raw.status_code == 200 and raw.parse().choices[0].message.content == text
    assert raw.headers["x-request-id"] == raw.request_id
    chunks = list(demo.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == text
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert all(chunk.usage is None for chunk in chunks[:-1])
    with demo.chat.completions.with_streaming_response.create(**ask, stream=True) as response:
        assert list(response.iter_lines())[-2:] == ["data: [DONE]", ""]
    two = demo.chat.completions.create(**ask | {"temperature": 1}, n=2, seed=3, logprobs=True, top_logprobs=2)
    assert [choice.index for choice in two.choices] == [0, 1]
    assert all(len(token.top_logprobs) == 2 for token in two.choices[1].logprobs.content)
    listed = demo.models.list().data
    assert demo.models.retrieve(listed[0].id) == listed[0]


def parsed_chats() -> None:
    whole = demo.chat.completions.parse(**ask | {"temperature": 1}, response_format=Capital)
    assert isinstance(whole.choices[0].message.parsed, Capital)
    with demo.chat.completions.stream(**ask, response_format=Capital) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert isinstance(final.choices[0].message.parsed, Capital)
    assert demo.beta.chat.completions.parse(**ask, response_format=Capital).choices[0].message.parsed
    tool = openai.pydantic_function_tool(Capital)
    called = demo.chat.completions.parse(
        **ask, tools=[tool], tool_choice="required", parallel_tool_calls=False
    )
    (call,) = called.choices[0].message.tool_calls[:1]
    assert isinstance(call.function.parsed_arguments, Capital), call
    with demo.chat.completions.stream(
        **ask, tools=[tool], tool_choice={"type": "function", "function": {"name": "Capital"}}
    ) as stream:
        (done,) = [event for event in stream if event.type == "tool_calls.function.arguments.done"]
    assert isinstance(done.parsed_arguments, Capital)
    try:
        demo.chat.completions.parse(**ask, response_format=Capital, max_tokens=3)
    except openai.LengthFinishReasonError as error:
        assert error.completion.usage.completion_tokens == 3
    else:
        raise AssertionError("an answer that is cut off was parsed")


def agents_of_chats() -> None:
    for question, answer in ((SUM, "It is 12."), (TWO_SUMS, "They are 12 and 23.")):
        messages: list = [{"role": "user", "content": question}]
        for streamed in (False, True):
            del messages[1:]
            fields = {
                "model": MODEL,
                "messages": messages,
                "tools": [TOOL | {"function": TOOL["function"] | {"strict": True}}],
            }
            while True:
                if streamed:
                    with agent.chat.completions.stream(**fields) as stream:
                        choice = stream.get_final_completion().choices[0]
                else:
                    choice = agent.chat.completions.parse(**fields).choices[0]
                messages.append(choice.message)
                if choice.finish_reason != "tool_calls":
                    break
                for call in choice.message.tool_calls:
                    arguments = json.loads(call.function.arguments)
                    messages.append({"role": "tool", "tool_call_id": call.id, "content": add(**arguments)})
            assert choice.message.content == answer, messages


def completions() -> None:
    fields = {"model": MODEL, "prompt": "2+3=", "temperature": 0, "max_tokens": 5}
    whole = demo.completions.create(**fields, logprobs=2, echo=True)
    assert whole.choices[0].text == "2+3=5" and whole.choices[0].finish_reason == "stop", whole
    assert len(whole.choices[0].logprobs.tokens) == whole.usage.total_tokens
    chunks = list(demo.completions.create(**fields, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == "5"
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens
    several = demo.completions.create(**fields | {"prompt": ["2+3=", "4+4="]}, n=2)
    assert [choice.text for choice in several.choices] == ["5", "5", "8", "8"]


def embeddings() -> None:
    embedder = openai.OpenAI(base_url=f"{EMBEDDER}/v1", api_key=KEY, max_retries=0)
    pair = embedder.embeddings.create(model=MODEL, input=[CAPITAL, "Paris"])  # in base64, unasked
    assert [item.index for item in pair.data] == [
        0,
        1,
    ] and pair.usage.prompt_tokens == pair.usage.total_tokens
    assert all(math.isclose(sum(x * x for x in item.embedding), 1, rel_tol=1e-5) for item in pair.data)
    written = (
        embedder.embeddings.create(model=MODEL, input=CAPITAL, encoding_format="float").data[0].embedding
    )
    assert all(math.isclose(a, b, abs_tol=1e-5) for a, b in zip(written, pair.data[0].embedding, strict=True))
    with refused(openai.BadRequestError, "its model generates texts"):
        demo.embeddings.create(model=MODEL, input=CAPITAL)
    with refused(openai.BadRequestError, "vectors only"):
        embedder.chat.completions.create(**ask)


def responses() -> None:
    fields = {"model": MODEL, "input": CAPITAL, "temperature": 0}
    whole = demo.responses.create(**fields)
    assert whole.status == "completed" and "Paris" in whole.output_text and whole.error is None, whole
    counted = demo.responses.input_tokens.count(model=MODEL, input=CAPITAL)
    assert counted.input_tokens == whole.usage.input_tokens, counted
    events = list(demo.responses.create(**fields, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[0].type == "response.created" and events[-1].type == "response.completed"
    with demo.responses.stream(**fields) as stream:
        for event in stream:
            if event.type == "response.output_text.delta":
                assert event.snapshot and whole.output_text.startswith(event.snapshot)
        assert stream.get_final_response().output_text == whole.output_text
    assert isinstance(demo.responses.parse(**fields, text_format=Capital).output_parsed, Capital)
    with demo.responses.stream(**fields, text_format=Capital) as stream:
        stream.until_done()
        assert isinstance(stream.get_final_response().output_parsed, Capital)
    second = demo.responses.create(**fields | {"input": "And of Italy?"}, previous_response_id=whole.id)
    assert second.previous_response_id == whole.id and demo.responses.retrieve(second.id).id == second.id
    assert [item.role for item in demo.responses.input_items.list(second.id)] == ["user"]
    short = demo.responses.create(**fields, max_output_tokens=2)
    assert short.status == "incomplete" and short.incomplete_details.reason == "max_output_tokens"
    demo.responses.delete(whole.id)


def agents_of_responses() -> None:
    tool = {"type": "function", "name": "add", "parameters": SCHEMA, "strict": True}
    for question, answer in ((SUM, "It is 12."), (TWO_SUMS, "They are 12 and 23.")):
        for streamed in (False, True):
            for kept in (False, True):
                fields: dict = {
                    "model": MODEL,
                    "tools": [tool],
                    "input": [{"role": "user", "content": question}],
                }
                while True:
                    if streamed:
                        with agent.responses.stream(**fields) as stream:
                            response = stream.until_done().get_final_response()
                    else:
                        response = agent.responses.create(**fields)
                    calls = [item for item in response.output if item.type == "function_call"]
                    results = [
                        {
                            "type": "function_call_output",
                            "call_id": call.call_id,
                            "output": add(**json.loads(call.arguments)),
                        }
                        for call in calls
                    ]
                    if not calls:
                        break
                    if kept:
                        fields |= {"input": results, "previous_response_id": response.id}
                    else:
                        fields["input"] += [*response.output, *results]
                assert response.output_text == answer, response
    (reasoning, _) = agent.responses.create(model=MODEL, tools=[tool], input=SUM).output
    assert reasoning.type == "reasoning" and reasoning.content[0].text == "I have to add."


def refusals() -> None:
    user = [{"role": "user", "content": LONG}]
    with refused(openai.BadRequestError, "maximum context length is") as found:
        demo.chat.completions.create(model=MODEL, messages=user)
    assert found[0].code == "context_length_exceeded" and found[0].type == "invalid_request_error"
    with refused(openai.BadRequestError) as found:
        demo.chat.completions.create(model=MODEL, messages=user, stream=True)
    with refused(openai.BadRequestError) as found:
        demo.responses.create(model=MODEL, input=LONG)
    assert found[0].code == "context_length_exceeded", found[0].body
    with refused(openai.BadRequestError, "temperature") as found:
        demo.completions.create(model=MODEL, prompt="x", temperature=-1)
    assert found[0].param == "temperature"
    with refused(openai.NotFoundError):
        demo.responses.retrieve("resp_none")
    with refused(openai.AuthenticationError):
        demo.with_options(api_key="wrong").chat.completions.create(**ask)
    with refused(openai.APITimeoutError), freed():
        agent.with_options(timeout=0.3).chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": STORY}]
        )


def cancelled() -> None:
    user = [{"role": "user", "content": STORY}]
    with freed(), agent.chat.completions.create(model=MODEL, messages=user, stream=True) as stream:
        next(stream)
    with freed(), agent.responses.stream(model=MODEL, input=STORY) as stream:
        next(stream)
    response = agent.responses.create(model=MODEL, input=STORY, background=True)
    with freed():
        assert agent.responses.cancel(response.id).status == "cancelled"


async def asynchronous() -> None:
    async with openai.AsyncOpenAI(base_url=f"{DEMO}/v1", api_key=KEY, max_retries=0) as client:
        answers = await asyncio.gather(*(client.chat.completions.create(**ask) for _ in range(8)))
        assert len({answer.choices[0].message.content for answer in answers}) == 1
        async with client.chat.completions.stream(**ask) as stream:
            async for event in stream:
                assert event.type
            assert (await stream.get_final_completion()).choices[0].message.content == answers[0].choices[
                0
            ].message.content
        async with client.responses.stream(model=MODEL, input=CAPITAL) as responses:
            assert (await responses.get_final_response()).status == "completed"
        assert isinstance(
            (await client.responses.parse(model=MODEL, input=CAPITAL, text_format=Capital)).output_parsed,
            Capital,
        )
    async with openai.AsyncOpenAI(base_url=f"{AGENT}/v1", api_key=KEY) as client:
        user = [{"role": "user", "content": STORY}]
        with freed():
            asking = asyncio.create_task(client.chat.completions.create(model=MODEL, messages=user))
            await asyncio.sleep(0.3)
            asking.cancel()
            await asyncio.wait([asking])


chats()
parsed_chats()
agents_of_chats()
completions()
embeddings()
responses()
agents_of_responses()
refusals()
cancelled()
asyncio.run(asynchronous())
print("done")
