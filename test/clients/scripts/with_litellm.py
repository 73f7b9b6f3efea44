"""litellm: its routes to OpenAI's, vLLM's, Anthropic's, Ollama's and Hugging Face's APIs, and its own Responses and Messages."""

import asyncio
import json
import re
from typing import Annotated, Literal

import litellm
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
from pydantic import BaseModel, ConfigDict, Field

TURNS = [{"role": "user", "content": CAPITAL}]
ROUTES = {
    "openai/gpt-4o": "/v1",
    "hosted_vllm/demo": "/v1",
    "lm_studio/demo": "/v1",
    "anthropic/claude-haiku-4-5": "",
    "ollama_chat/demo": "",
}
"""Model as litellm names it -> path of its API."""
litellm.suppress_debug_info = True


class Capital(BaseModel):
    model_config = ConfigDict(extra="forbid")
    city: Literal["Paris", "Rome"]
    inhabitants: Annotated[int, Field(ge=0, le=99)]


def place(model: str, url: str = DEMO) -> dict:
    return {"model": model, "api_base": url + ROUTES[model], "api_key": KEY, "num_retries": 0}


def chat(model: str) -> None:
    fields = place(model) | {"messages": TURNS, "temperature": 0}
    whole = litellm.completion(**fields)
    text = whole.choices[0].message.content
    assert (
        "Paris" in text and whole.choices[0].finish_reason == "stop" and whole.usage.completion_tokens > 3
    ), whole
    chunks = list(litellm.completion(**fields, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == text
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens, chunks[-1]
    formed = litellm.completion(**fields, response_format=Capital, max_tokens=400)
    assert Capital.model_validate_json(formed.choices[0].message.content), formed
    short = litellm.completion(**fields, max_tokens=2)
    assert short.choices[0].finish_reason == "length", short
    # of Ollama's errors it knows no such one
    with refused(litellm.BadRequestError if "ollama" in model else litellm.ContextWindowExceededError):
        litellm.completion(**place(model), messages=[{"role": "user", "content": LONG}])
    with refused(litellm.AuthenticationError):
        litellm.completion(**fields | {"api_key": "wrong"})


def count(model: str) -> None:
    for question, answer in ((SUM, "It is 12."), (TWO_SUMS, "They are 12 and 23.")):
        for streamed in (False, True):
            if streamed and question == TWO_SUMS and "ollama" in model:
                continue  # it reads no index of these calls, and makes one of two
            messages: list = [{"role": "user", "content": question}]
            while True:
                fields = place(model, AGENT) | {"messages": messages, "tools": [TOOL], "stream": streamed}
                got = litellm.completion(**fields)
                if streamed:
                    got = litellm.stream_chunk_builder(list(got), messages=messages)
                message = got.choices[0].message
                if not message.tool_calls:
                    break
                assert got.choices[0].finish_reason == "tool_calls", got
                messages.append(message.model_dump(exclude_none=True))
                for call in message.tool_calls:
                    result = add(**json.loads(call.function.arguments))
                    messages.append(
                        {"role": "tool", "tool_call_id": call.id, "name": "add", "content": result}
                    )
            assert message.content == answer, (model, streamed, messages)


def demand(model: str) -> None:
    fields = place(model) | {"messages": TURNS, "tools": [TOOL], "max_tokens": 400}
    for choice in ("required", {"type": "function", "function": {"name": "add"}}):
        (call, *_) = litellm.completion(**fields, tool_choice=choice).choices[0].message.tool_calls
        assert call.function.name == "add" and re.match(
            r'\{\s*"a"\s*:\s*-?\d+\s*,\s*"b"', call.function.arguments
        ), call


def leave(model: str) -> None:
    with freed():
        stream = litellm.completion(
            **place(model, AGENT), messages=[{"role": "user", "content": STORY}], stream=True
        )
        next(iter(stream))
        stream.completion_stream.close() if hasattr(stream.completion_stream, "close") else None
        del stream


def others() -> None:
    openai = {"api_base": f"{DEMO}/v1", "api_key": KEY, "num_retries": 0}
    text = litellm.text_completion(
        model="text-completion-openai/demo", prompt="2+3=", temperature=0, max_tokens=5, **openai
    )
    assert text.choices[0].text == "5", text
    answer = litellm.responses(model="openai/gpt-4o", input=CAPITAL, **openai)
    assert "Paris" in answer.output[-1].content[0].text and answer.usage.output_tokens > 3
    events = list(litellm.responses(model="openai/gpt-4o", input=CAPITAL, stream=True, **openai))
    assert events[-1].type == "response.completed", events[-1]
    fields = {"messages": TURNS, "max_tokens": 40, "api_key": KEY}
    message = asyncio.run(
        litellm.anthropic.messages.acreate(model="anthropic/claude-haiku-4-5", api_base=DEMO, **fields)
    )
    assert "Paris" in message["content"][0]["text"], message
    bridged = asyncio.run(
        litellm.anthropic.messages.acreate(model="hosted_vllm/demo", api_base=f"{DEMO}/v1", **fields)
    )
    assert "Paris" in bridged["content"][0]["text"], bridged
    tgi = litellm.completion(model="huggingface/tgi", api_base=f"{DEMO}/v1", api_key=KEY, messages=TURNS)
    assert "Paris" in tgi.choices[0].message.content
    ollama = litellm.completion(model="ollama/demo", api_base=DEMO, api_key=KEY, messages=TURNS)
    assert "Paris" in ollama.choices[0].message.content


def vectors() -> None:
    lengths = set()
    for model, path in (("openai/any", "/v1"), ("hosted_vllm/any", "/v1"), ("ollama/any", "")):
        found = litellm.embedding(
            model=model, input=[CAPITAL, "Paris"], api_base=EMBEDDER + path, api_key=KEY
        )
        assert len(found.data) == 2 and found.usage.prompt_tokens > 3, found
        lengths.add(len(found.data[0]["embedding"]))
    assert len(lengths) == 1
    ranked = litellm.rerank(
        model="hosted_vllm/any", query=CAPITAL, documents=["Rome", CAPITAL], api_base=EMBEDDER, api_key=KEY
    )
    assert ranked.results[0]["index"] == 1, ranked


async def asynchronous() -> None:
    fields = place("openai/gpt-4o") | {"messages": TURNS, "temperature": 0}
    answers = await asyncio.gather(*(litellm.acompletion(**fields) for _ in range(8)))
    assert len({answer.choices[0].message.content for answer in answers}) == 1


for model in ROUTES:
    chat(model)
    count(model)
    if "ollama" not in model:  # its API has no tool_choice
        demand(model)
    print(model)
others()
vectors()
asyncio.run(asynchronous())
assert SCHEMA
print("done")
