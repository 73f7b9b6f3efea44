"""langchain-openai (chats and responses), langchain-anthropic, langchain-ollama: answers, streams, tools, structured output."""

import asyncio
from typing import Annotated, Literal

from langchain_anthropic import ChatAnthropic
from langchain_core.exceptions import ContextOverflowError
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import HumanMessage
from langchain_core.tools import tool
from langchain_ollama import ChatOllama, OllamaEmbeddings
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from meeting import AGENT, CAPITAL, DEMO, EMBEDDER, KEY, LONG, STORY, SUM, TWO_SUMS, freed
from meeting import add as plain_add
from pydantic import BaseModel, ConfigDict, Field

add = tool(plain_add)


class Capital(BaseModel):
    """What is known of a capital."""

    model_config = ConfigDict(extra="forbid")
    city: Literal["Paris", "Rome"]
    inhabitants: Annotated[int, Field(ge=0, le=99)]


def model(kind: str, url: str) -> BaseChatModel:
    """One that only knows where the server is."""
    if kind == "anthropic":
        return ChatAnthropic(model="claude-haiku-4-5", base_url=url, api_key=KEY, max_retries=0)
    if kind == "ollama":
        headers = {"headers": {"Authorization": f"Bearer {KEY}"}}
        return ChatOllama(model="demo", base_url=url, client_kwargs=headers)
    options = {"max_retries": 0, "stream_usage": True, "use_responses_api": kind == "responses"}
    return ChatOpenAI(model="demo", base_url=f"{url}/v1", api_key=KEY, **options)


def meet(kind: str) -> None:
    demo = model(kind, DEMO)
    whole = demo.invoke(CAPITAL)
    assert "Paris" in whole.text and whole.usage_metadata["output_tokens"] > 3, whole
    chunks = list(demo.stream(CAPITAL))
    total = chunks[0]
    for chunk in chunks[1:]:
        total += chunk
    assert "Paris" in total.text and len(chunks) > 3 and total.usage_metadata["output_tokens"] > 3, total
    assert demo.invoke([HumanMessage(CAPITAL), whole, HumanMessage("And of Italy?")]).text
    assert isinstance(demo.with_structured_output(Capital).invoke(CAPITAL), Capital)
    assert list(demo.with_structured_output(Capital).stream(CAPITAL))[-1]
    if kind != "ollama":
        assert isinstance(
            demo.with_structured_output(Capital, method="function_calling").invoke(CAPITAL), Capital
        )
        forced = demo.bind_tools([add], tool_choice="any").invoke(CAPITAL, max_tokens=300)
        assert forced.tool_calls and {"a", "b"} <= set(forced.tool_calls[0]["args"]), forced
    try:
        demo.invoke(LONG)
    except ContextOverflowError:
        pass
    except Exception as error:
        assert kind == "ollama" and "context length" in str(error), repr(error)  # it has no class for that
    else:
        raise AssertionError("not refused")

    agent = model(kind, AGENT).bind_tools([add])
    for question, answer in ((SUM, "It is 12."), (TWO_SUMS, "They are 12 and 23.")):
        for streamed in (False, True):
            messages: list = [HumanMessage(question)]
            while True:
                if streamed:
                    said, *more = list(agent.stream(messages))
                    for chunk in more:
                        said += chunk
                else:
                    said = agent.invoke(messages)
                messages.append(said)
                if not said.tool_calls:
                    break
                messages += [add.invoke(call) for call in said.tool_calls]
            assert said.text == answer, (kind, streamed, messages)
    with freed():
        stream = agent.stream(STORY)
        next(stream)
        stream.close()


async def asynchronous(kinds: tuple[str, ...]) -> None:
    for kind in kinds:
        demo = model(kind, DEMO)
        answers = await demo.abatch([CAPITAL] * 4)
        assert all("Paris" in answer.text for answer in answers)
        assert [event async for event in demo.astream_events(CAPITAL, version="v2")]


def vectors() -> None:
    by_openai = OpenAIEmbeddings(
        model="any", base_url=f"{EMBEDDER}/v1", api_key=KEY, check_embedding_ctx_length=False
    )
    headers = {"headers": {"Authorization": f"Bearer {KEY}"}}
    by_ollama = OllamaEmbeddings(model="any", base_url=EMBEDDER, client_kwargs=headers)
    for one, other in zip(
        by_openai.embed_documents([CAPITAL]), by_ollama.embed_documents([CAPITAL]), strict=True
    ):
        assert all(abs(a - b) < 1e-4 for a, b in zip(one, other, strict=True))
    assert len(asyncio.run(by_ollama.aembed_query(CAPITAL))) == len(by_openai.embed_query(CAPITAL))


KINDS = ("chat", "responses", "anthropic", "ollama")
for kind in KINDS:
    meet(kind)
    print(kind)
asyncio.run(asynchronous(KINDS))
vectors()
assert "5" in OpenAI(model="demo", base_url=f"{DEMO}/v1", api_key=KEY, temperature=0, max_tokens=5).invoke(
    "2+3="
)
print("done")
