"""text-generation, the client of text-generation-inference: texts whole and streamed, chats, async. (It reads the
streams of chats that its own server had before it followed OpenAI: without `[DONE]`, with all fields in every chunk.)"""

import asyncio

from meeting import AGENT, CAPITAL, DEMO, KEY, LONG, SUM, TOOL, refused
from text_generation import AsyncClient, Client
from text_generation.errors import ValidationError
from text_generation.types import Message

HEADERS = {"Authorization": f"Bearer {KEY}"}
client, agent = Client(DEMO, HEADERS, timeout=60), Client(AGENT, HEADERS, timeout=60)
TURNS = [Message(role="user", content=CAPITAL)]


def texts() -> str:
    answer = client.generate(CAPITAL, max_new_tokens=20)
    details = answer.details
    assert "Paris" in answer.generated_text, answer
    assert details.finish_reason == "eos_token" and details.generated_tokens == len(details.tokens)
    stream = list(client.generate_stream(CAPITAL, max_new_tokens=20))
    assert stream[-1].generated_text == answer.generated_text
    assert "".join(part.token.text for part in stream) == answer.generated_text
    short = client.generate(CAPITAL, max_new_tokens=1, return_full_text=True)
    assert short.details.finish_reason == "length" and short.generated_text.startswith(CAPITAL)
    digits = client.generate("2+3=", grammar={"type": "regex", "value": "[0-9]{2}"}, stop_sequences=["x"])
    assert digits.generated_text.isdigit()
    best = client.generate(CAPITAL, best_of=2, do_sample=True, max_new_tokens=20)
    assert len(best.details.best_of_sequences) == 1
    with refused(ValidationError, "decoder_input_details"):
        client.generate("x", decoder_input_details=True)
    with refused(ValidationError):
        client.generate(LONG)
    return answer.generated_text


def chats() -> None:
    answer = client.chat(TURNS, max_tokens=40, temperature=0.0)
    assert "Paris" in answer.choices[0].message.content and answer.choices[0].finish_reason == "stop"
    called = agent.chat([Message(role="user", content=SUM)], tools=[TOOL], tool_choice="auto")
    (call,) = called.choices[0].message.tool_calls
    assert call["function"]["name"] == "add", called


async def asynchronous(text: str) -> None:
    client = AsyncClient(DEMO, HEADERS, timeout=60)
    assert (await client.generate(CAPITAL, max_new_tokens=20)).generated_text == text
    stream = [part async for part in client.generate_stream(CAPITAL, max_new_tokens=20)]
    assert stream[-1].generated_text == text
    answer = await client.chat(TURNS, max_tokens=40)
    assert "Paris" in answer.choices[0].message.content


text = texts()
chats()
asyncio.run(asynchronous(text))
print("done")
