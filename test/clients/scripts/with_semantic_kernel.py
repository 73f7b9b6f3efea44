"""semantic-kernel: chats, streams, structured output, functions called by its own loop, in each of its three behaviours."""

import asyncio
from typing import Literal

import openai
from meeting import AGENT, CAPITAL, DEMO, KEY, LONG, SUM, TWO_SUMS
from meeting import add as plain_add
from pydantic import BaseModel
from semantic_kernel import Kernel
from semantic_kernel.agents import ChatCompletionAgent
from semantic_kernel.connectors.ai import FunctionChoiceBehavior
from semantic_kernel.connectors.ai.open_ai import OpenAIChatCompletion, OpenAIChatPromptExecutionSettings
from semantic_kernel.contents import ChatHistory
from semantic_kernel.exceptions import ServiceResponseException
from semantic_kernel.functions import kernel_function


class Capital(BaseModel):
    city: Literal["Paris", "Rome"]
    inhabitants: int


class Sums:
    add = staticmethod(kernel_function(plain_add, name="add"))


def service(url: str) -> OpenAIChatCompletion:
    return OpenAIChatCompletion(
        "demo", async_client=openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0)
    )


def history(question: str) -> ChatHistory:
    turns = ChatHistory()
    turns.add_user_message(question)
    return turns


async def main() -> None:
    demo, settings = service(DEMO), OpenAIChatPromptExecutionSettings(temperature=0)
    whole = await demo.get_chat_message_content(history(CAPITAL), settings)
    assert "Paris" in whole.content and whole.metadata["usage"].completion_tokens > 3
    pieces = [
        str(piece) async for piece in demo.get_streaming_chat_message_content(history(CAPITAL), settings)
    ]
    assert "".join(pieces) == whole.content
    formed = OpenAIChatPromptExecutionSettings(response_format=Capital)
    assert Capital.model_validate_json(
        (await demo.get_chat_message_content(history(CAPITAL), formed)).content
    )
    try:
        await demo.get_chat_message_content(history(LONG), settings)
    except ServiceResponseException as error:
        assert "maximum context length" in str(error)
    else:
        raise AssertionError("not refused")

    kernel = Kernel()
    kernel.add_plugin(Sums(), "math")
    agent = service(AGENT)
    for behaviour in (FunctionChoiceBehavior.Auto(), FunctionChoiceBehavior.NoneInvoke()):
        fields = OpenAIChatPromptExecutionSettings(function_choice_behavior=behaviour)
        for question, answer in ((SUM, "It is 12."), (TWO_SUMS, "They are 12 and 23.")):
            got = await agent.get_chat_message_content(history(question), fields, kernel=kernel)
            streamed = [
                str(piece)
                async for piece in agent.get_streaming_chat_message_content(
                    history(question), fields, kernel=kernel
                )
            ]
            if behaviour.auto_invoke_kernel_functions:
                assert got.content == answer, got
                assert "".join(streamed).endswith(answer), streamed
    forced = OpenAIChatPromptExecutionSettings(
        function_choice_behavior=FunctionChoiceBehavior.Required(auto_invoke=False), max_tokens=300
    )
    got = await demo.get_chat_message_content(history(CAPITAL), forced, kernel=kernel)
    assert [item.name for item in got.items if hasattr(item, "function_name")][:1] == ["math-add"], got.items
    helper = ChatCompletionAgent(service=agent, plugins=[Sums()])
    assert str(await helper.get_response(messages=SUM)) == "It is 12."


asyncio.run(main())
print("done")
