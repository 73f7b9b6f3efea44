"""huggingface_hub's InferenceClient, without the name of a model: chats and texts, whole, streamed, constrained; tools; async."""

import asyncio
import json

from huggingface_hub import AsyncInferenceClient, InferenceClient
from huggingface_hub.errors import BadRequestError, HfHubHTTPError, ValidationError
from meeting import AGENT, CAPITAL, DEMO, KEY, LONG, STORY, SUM, TOOL, TWO_SUMS, add, freed, refused

demo, agent = InferenceClient(model=DEMO, token=KEY), InferenceClient(model=AGENT, token=KEY)
CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}, "n": {"type": "integer", "maximum": 9}},
    "required": ["city", "n"],
    "additionalProperties": False,
}
DESCRIBE = {"type": "function", "function": {"name": "describe", "parameters": CITY}}
TURNS = [{"role": "user", "content": CAPITAL}]


def chats() -> str:
    whole = demo.chat_completion(TURNS, max_tokens=40)
    text = whole.choices[0].message.content
    assert "Paris" in text and whole.choices[0].finish_reason == "stop" and whole.usage.completion_tokens > 3
    stream = list(demo.chat_completion(TURNS, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream[:-1]) == text
    assert stream[-1].usage.completion_tokens == whole.usage.completion_tokens
    by_openais_name = InferenceClient(base_url=f"{DEMO}/v1", api_key=KEY)
    again = by_openais_name.chat.completions.create(
        model="any", messages=TURNS, logprobs=True, top_logprobs=2
    )
    assert again.choices[0].message.content == text
    assert len(again.choices[0].logprobs.content[0].top_logprobs) == 2
    for form in (
        {"type": "json_schema", "json_schema": {"name": "sum", "schema": CITY, "strict": True}},
        {"type": "json", "value": CITY},
    ):
        formed = demo.chat_completion(TURNS, response_format=form, max_tokens=300)
        assert json.loads(formed.choices[0].message.content).keys() == {"city", "n"}, formed
    with refused(BadRequestError, "maximum context length"):
        demo.chat_completion([{"role": "user", "content": LONG}])
    return text


def agents() -> None:
    for question, answer in ((SUM, "It is 12."), (TWO_SUMS, "They are 12 and 23.")):
        messages: list = [{"role": "user", "content": question}]
        while True:
            message = agent.chat_completion(messages, tools=[TOOL], tool_choice="auto").choices[0].message
            messages.append(message)
            if not message.tool_calls:
                break
            for call in message.tool_calls:
                result = add(**json.loads(call.function.arguments))
                messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
        assert message.content == answer, messages
        pieces = list(agent.chat_completion(messages[:1], tools=[TOOL], stream=True))
        calls = [call for piece in pieces for call in piece.choices[0].delta.tool_calls or ()]
        names = [call.function.name for call in calls if call.function.name]
        assert names == ["add"] * (1 if question == SUM else 2), calls
    demanded = demo.chat_completion(
        TURNS, tools=[DESCRIBE], tool_choice={"function": {"name": "describe"}}, max_tokens=300
    )
    (call,) = demanded.choices[0].message.tool_calls
    assert json.loads(call.function.arguments).keys() == {"city", "n"}
    with freed():
        next(iter(agent.chat_completion([{"role": "user", "content": STORY}], max_tokens=2000, stream=True)))


def texts() -> None:
    whole = demo.text_generation(CAPITAL, max_new_tokens=20)
    assert "Paris" in whole
    detailed = demo.text_generation(CAPITAL, max_new_tokens=20, details=True)
    assert detailed.generated_text == whole and detailed.details.finish_reason == "eos_token"
    assert detailed.details.generated_tokens == len(detailed.details.tokens)
    assert "".join(demo.text_generation(CAPITAL, max_new_tokens=20, stream=True)) == whole
    *_, last = demo.text_generation(CAPITAL, max_new_tokens=20, stream=True, details=True)
    assert last.generated_text == whole and last.details.generated_tokens == detailed.details.generated_tokens
    assert demo.text_generation(CAPITAL, max_new_tokens=1, return_full_text=True).startswith(CAPITAL)
    stopped = demo.text_generation(CAPITAL, max_new_tokens=20, stop=["aris"])
    assert stopped.rstrip() == whole.partition("aris")[0].rstrip() or stopped.endswith("aris"), stopped
    assert demo.text_generation("2+3=", grammar={"type": "regex", "value": "[0-9]{2}"}).isdigit()
    formed = demo.text_generation(CAPITAL, grammar={"type": "json", "value": CITY}, max_new_tokens=300)
    assert json.loads(formed).keys() == {"city", "n"}
    several = demo.text_generation(CAPITAL, best_of=2, do_sample=True, details=True, max_new_tokens=20)
    assert len(several.details.best_of_sequences) == 1
    with refused(ValidationError):
        demo.text_generation(CAPITAL, max_new_tokens=20, decoder_input_details=True, details=True)
    with refused(HfHubHTTPError, "401"):
        InferenceClient(model=DEMO, token="wrong").chat_completion(TURNS)


async def asynchronous(text: str) -> None:
    client = AsyncInferenceClient(model=DEMO, token=KEY)
    answers = await asyncio.gather(*(client.chat_completion(TURNS) for _ in range(4)))
    assert {answer.choices[0].message.content for answer in answers} == {text}
    stream = await client.chat_completion(TURNS, stream=True)
    assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == text


text = chats()
agents()
texts()
asyncio.run(asynchronous(text))
print("done")
