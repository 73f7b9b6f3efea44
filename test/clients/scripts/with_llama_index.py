"""llama-index, OpenAILike: complete, chat, streams, tools by its own loop, structured output in both ways."""

import asyncio
from typing import Literal

import openai
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from meeting import AGENT, CAPITAL, DEMO, KEY, LONG, SUM, TWO_SUMS, add, refused
from pydantic import BaseModel, ConfigDict


class Capital(BaseModel):
    """What is known of a capital."""

    model_config = ConfigDict(extra="forbid")
    city: Literal["Paris", "Rome"]
    inhabitants: int


def model(url: str, **options) -> OpenAILike:
    return OpenAILike(
        model="demo",
        api_base=f"{url}/v1",
        api_key=KEY,
        max_retries=0,
        context_window=4096,
        temperature=0,
        **options,
    )


turns = [ChatMessage(role="user", content=CAPITAL)]
chat = model(DEMO, is_chat_model=True)
whole = chat.chat(turns).message.content
assert "Paris" in whole
assert "".join(piece.delta or "" for piece in chat.stream_chat(turns)) == whole
assert (
    "".join(piece.delta or "" for piece in chat.stream_complete(CAPITAL))
    == chat.complete(CAPITAL).text
    == whole
)
plain = model(DEMO, is_chat_model=False, max_tokens=5)
assert plain.complete("2+3=").text == "5"
assert "".join(piece.delta or "" for piece in plain.stream_complete("2+3=")) == "5"

by_schema = model(DEMO, is_chat_model=True, should_use_structured_outputs=True)
by_call = model(DEMO, is_chat_model=True, is_function_calling_model=True)
for one in by_schema, by_call:
    assert isinstance(one.as_structured_llm(Capital).chat(turns).raw, Capital)
*_, last = by_schema.as_structured_llm(Capital).stream_chat(turns)
assert isinstance(last.raw, Capital), last
tool = FunctionTool.from_defaults(fn=add)
(call, *_) = by_call.get_tool_calls_from_response(
    by_call.chat_with_tools([tool], CAPITAL, tool_required=True, max_tokens=300)
)
assert set(call.tool_kwargs) == {"a", "b"}
with refused(openai.BadRequestError, "maximum context length"):
    chat.chat([ChatMessage(role="user", content=LONG)])

caller = model(AGENT, is_chat_model=True, is_function_calling_model=True)
for question in SUM, TWO_SUMS:
    assert caller.predict_and_call([tool], question, allow_parallel_tool_calls=True).response.startswith(
        "the sum is 12"
    )


class Add(BaseModel):
    """Two numbers to add."""

    model_config = ConfigDict(title="add")
    a: int
    b: int


# a structured stream asks with tool_choice auto, where a structured answer has required: it is for models that call by themselves
*_, last = caller.as_structured_llm(Add).stream_chat([ChatMessage(role="user", content=SUM)])
assert last.raw == Add(a=7, b=5), last


async def agents() -> None:
    for streaming in (True, False):
        agent = FunctionAgent(tools=[add], llm=caller, streaming=streaming)
        for question, answer in ((SUM, "It is 12."), (TWO_SUMS, "They are 12 and 23.")):
            assert str(await agent.run(question)) == answer
    assert (await chat.achat(turns)).message.content == whole


asyncio.run(agents())
print("done")
