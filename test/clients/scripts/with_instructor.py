"""instructor: its default mode and its others, of openai's and anthropic's clients; partial objects, lists, retries."""

import asyncio
from typing import Literal

import anthropic
import instructor
import openai
from instructor.core import InstructorRetryException
from meeting import AGENT, CAPITAL, DEMO, IN_JSON, KEY, LONG, SUM, refused
from pydantic import BaseModel, ConfigDict, Field, field_validator

MODEL = "gpt-5"
TURNS = [{"role": "user", "content": CAPITAL}]
JSON_TURNS = [{"role": "user", "content": IN_JSON}]
agent = openai.OpenAI(base_url=f"{AGENT}/v1", api_key=KEY, max_retries=0)
client = openai.OpenAI(base_url=f"{DEMO}/v1", api_key=KEY, max_retries=0)


class Capital(BaseModel):
    """What is known of a capital."""

    model_config = ConfigDict(extra="forbid")
    city: Literal["Paris", "Rome"]
    inhabitants: int = Field(ge=0, lt=100)


class Sum(BaseModel):
    a: int
    b: int


class Strict(Capital):
    @field_validator("city")
    @classmethod
    def never(cls, city: str) -> str:
        raise ValueError("no such city")


default = instructor.from_openai(client)
answer, completion = default.chat.completions.create_with_completion(
    model=MODEL, messages=TURNS, response_model=Capital
)
assert isinstance(answer, Capital) and completion.usage.completion_tokens > 3
assert isinstance(
    instructor.from_provider(f"openai/{MODEL}", base_url=f"{DEMO}/v1", api_key=KEY).create(
        messages=TURNS, response_model=Capital
    ),
    Capital,
)
for mode in (
    instructor.Mode.TOOLS,
    instructor.Mode.TOOLS_STRICT,
    instructor.Mode.JSON,
    instructor.Mode.JSON_SCHEMA,
    instructor.Mode.RESPONSES_TOOLS,
):
    prompted = mode is instructor.Mode.JSON
    one = instructor.from_openai(agent if prompted else client, mode=mode)
    fields = {"model": MODEL, "messages": JSON_TURNS if prompted else TURNS, "response_model": Capital}
    assert isinstance(one.create(**fields), Capital), mode
    if mode is not instructor.Mode.RESPONSES_TOOLS:
        partial = list(one.create_partial(**fields))
        assert len(partial) > 3 and partial[-1].city in ("Paris", "Rome"), (mode, partial)

several = default.create(model=MODEL, messages=TURNS, response_model=list[Capital], max_tokens=600)
assert all(isinstance(one, Capital) for one in several)
try:
    default.create(model=MODEL, messages=TURNS, response_model=Strict, max_retries=1)
except InstructorRetryException as error:
    assert error.n_attempts == 2 and "no such city" in str(error), error
else:
    raise AssertionError("a value that its class refuses was taken")
with refused(InstructorRetryException, "maximum context length"):
    default.create(
        model=MODEL, messages=[{"role": "user", "content": LONG}], response_model=Capital, max_retries=0
    )

Sum.__name__ = "add"
found = instructor.from_openai(agent).create(
    model=MODEL, messages=[{"role": "user", "content": SUM}], response_model=Sum
)
assert (found.a, found.b) == (7, 5), found

claude = instructor.from_anthropic(anthropic.Anthropic(base_url=DEMO, api_key=KEY, max_retries=0))
assert isinstance(claude.create(model=MODEL, messages=TURNS, response_model=Capital, max_tokens=300), Capital)


async def asynchronous() -> None:
    async with openai.AsyncOpenAI(base_url=f"{DEMO}/v1", api_key=KEY) as own:
        one = instructor.from_openai(own)
        assert isinstance(await one.create(model=MODEL, messages=TURNS, response_model=Capital), Capital)


asyncio.run(asynchronous())
print("done")
