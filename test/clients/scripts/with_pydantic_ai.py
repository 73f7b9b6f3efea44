"""pydantic-ai: agents of its default model class (responses), of chats and of Messages; outputs in its three ways, streams."""

import asyncio
import os
from typing import Annotated, Literal

from meeting import AGENT, CAPITAL, DEMO, IN_JSON, KEY, LONG, STORY, SUM, TWO_SUMS, add, freed_meanwhile

os.environ |= {"OPENAI_API_KEY": KEY, "ANTHROPIC_API_KEY": KEY}
from pydantic import BaseModel, Field  # noqa: E402
from pydantic_ai import Agent, NativeOutput, PromptedOutput  # noqa: E402
from pydantic_ai.exceptions import ModelContextWindowExceededError  # noqa: E402


class Capital(BaseModel):
    city: Literal["Paris", "Rome"]
    inhabitants: Annotated[int, Field(ge=0, le=99)]


def serve(url: str, provider: str) -> str:
    """The model by its name, as its provider finds the server by its environment."""
    os.environ |= {"OPENAI_BASE_URL": f"{url}/v1", "ANTHROPIC_BASE_URL": url}
    return provider


async def meet(provider: str) -> None:
    plain = Agent(serve(DEMO, provider))
    whole = await plain.run(CAPITAL)
    assert "Paris" in whole.output and whole.usage.output_tokens > 3, whole
    async with plain.run_stream(CAPITAL) as stream:
        pieces = [piece async for piece in stream.stream_text(delta=True, debounce_by=None)]
    assert "".join(pieces) == whole.output and stream.usage.output_tokens == whole.usage.output_tokens
    second = await plain.run("And of Italy?", message_history=whole.all_messages())
    assert second.output and len(second.all_messages()) == 4
    for output in (Capital, NativeOutput(Capital), PromptedOutput(Capital)):
        if "anthropic" in provider and not isinstance(output, type):
            continue  # what its models can is known by their names
        prompted = isinstance(output, PromptedOutput)
        one_call = {"parallel_tool_calls": False}  # the model is too small to end by itself
        of_type = Agent(
            serve(AGENT if prompted else DEMO, provider), output_type=output, model_settings=one_call
        )
        question = IN_JSON if prompted else CAPITAL
        assert isinstance((await of_type.run(question)).output, Capital), output
        async with of_type.run_stream(question) as stream:
            assert isinstance(await stream.get_output(), Capital)
    try:
        await plain.run(LONG)
    except ModelContextWindowExceededError as error:
        assert error.status_code == 400
    else:
        raise AssertionError("not refused")

    counting = Agent(serve(AGENT, provider), tools=[add])
    for question, answer in ((SUM, "It is 12."), (TWO_SUMS, "They are 12 and 23.")):
        assert (await counting.run(question)).output == answer
        async with counting.run_stream(question) as stream:
            assert await stream.get_output() == answer
    async with freed_meanwhile(), counting.run_stream(STORY) as stream:
        async for _ in stream.stream_text(debounce_by=None):
            break


async def main() -> None:
    for provider in (
        "openai:gpt-5",
        "openai-chat:gpt-5",
        "openai-responses:gpt-4o",
        "anthropic:claude-haiku-4-5",
    ):
        await meet(provider)
        print(provider)


asyncio.run(main())
print("done")
