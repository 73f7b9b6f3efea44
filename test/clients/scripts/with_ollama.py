"""ollama: chats, prompts and vectors, whole and streamed; tools by functions; formats, thinking, refusals; async."""

import asyncio
import json
import math

import ollama
from meeting import AGENT, CAPITAL, DEMO, EMBEDDER, KEY, LONG, STORY, SUM, TWO_SUMS, add, freed, refused

HEADERS = {"Authorization": f"Bearer {KEY}"}
client, agent, embedder = (ollama.Client(host=url, headers=HEADERS) for url in (DEMO, AGENT, EMBEDDER))
GREEDY = {"temperature": 0, "num_predict": 40}
SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer", "maximum": 9}},
    "required": ["n"],
    "additionalProperties": False,
}


def texts() -> None:
    (model,) = client.list().models
    assert client.ps().models[0].model == model.model
    assert client.show(model.model).capabilities == ["completion"]
    assert agent.show("any").capabilities == ["completion", "tools", "thinking"]
    ask = {"model": model.model, "messages": [{"role": "user", "content": CAPITAL}]}
    whole = client.chat(**ask, options=GREEDY, keep_alive="5m")
    assert "Paris" in whole.message.content and whole.done_reason == "stop" and whole.eval_count > 3, whole
    assert whole.total_duration >= whole.eval_duration > 0
    stream = list(client.chat(**ask, options=GREEDY, stream=True))
    assert "".join(part.message.content for part in stream) == whole.message.content
    assert stream[-1].done and stream[-1].eval_count == whole.eval_count
    text = client.generate(model.model, CAPITAL, options=GREEDY).response
    assert text == whole.message.content
    pieces = client.generate(model.model, CAPITAL, options=GREEDY, stream=True)
    assert "".join(piece.response for piece in pieces) == text
    raw = client.generate(model.model, "2+3=", raw=True, options=GREEDY)
    assert raw.response.strip().startswith("5"), raw
    formed = client.chat(**ask, format=SCHEMA, options={"num_predict": 200})
    assert isinstance(json.loads(formed.message.content)["n"], int), formed
    assert client.generate(model.model, "").done_reason == "load"
    with refused(ollama.ResponseError, "mirostat") as found:
        client.chat(**ask, options={"mirostat": 2})
    assert found[0].status_code == 400
    with refused(ollama.ResponseError, "maximum context length"):
        client.generate(model.model, LONG)


def agents() -> None:
    for question, answer in ((SUM, "It is 12."), (TWO_SUMS, "They are 12 and 23.")):
        for streamed in (False, True):
            messages: list = [{"role": "user", "content": question}]
            while True:
                reply = agent.chat("any", messages, tools=[add], think=True, stream=streamed)
                calls, content, thought = [], "", ""
                for part in reply if streamed else [reply]:
                    calls += part.message.tool_calls or []
                    content += part.message.content or ""
                    thought += part.message.thinking or ""
                messages.append(
                    {"role": "assistant", "content": content, "thinking": thought, "tool_calls": calls}
                )
                if not calls:
                    break
                for call in calls:
                    result = add(**call.function.arguments)
                    messages.append({"role": "tool", "tool_name": call.function.name, "content": result})
            assert content == answer, messages
            assert messages[1]["thinking"] == ("I have to add." if question == SUM else ""), messages[1]
    with freed():
        next(agent.chat("any", [{"role": "user", "content": STORY}], stream=True))


def vectors() -> None:
    (model,) = embedder.list().models
    assert embedder.show(model.model).capabilities == ["embedding"]
    pair = embedder.embed(model.model, [CAPITAL, "Paris"])
    assert len(pair.embeddings) == 2 and pair.prompt_eval_count > 3 and pair.total_duration > 0
    assert all(math.isclose(sum(x * x for x in vector), 1, rel_tol=1e-5) for vector in pair.embeddings)
    (one,) = embedder.embed(model.model, CAPITAL).embeddings
    assert all(math.isclose(a, b, abs_tol=1e-5) for a, b in zip(one, pair.embeddings[0], strict=True))
    raw = embedder.embeddings(model.model, CAPITAL).embedding
    scale = math.sqrt(sum(x * x for x in raw))
    assert all(math.isclose(a * scale, b, abs_tol=1e-3) for a, b in zip(one, raw, strict=True))
    assert embedder.embed(model.model, LONG).prompt_eval_count < 15000  # the end is cut off
    with refused(ollama.ResponseError, "maximum context length"):
        embedder.embed(model.model, LONG, truncate=False)
    with refused(ollama.ResponseError, "its model generates texts") as found:
        client.embed("any", CAPITAL)
    assert found[0].status_code == 400


async def asynchronous() -> None:
    client = ollama.AsyncClient(host=DEMO, headers=HEADERS)
    turns = [{"role": "user", "content": CAPITAL}]
    whole = await client.chat("any", turns, options=GREEDY)
    parts = [part async for part in await client.chat("any", turns, options=GREEDY, stream=True)]
    assert "".join(part.message.content for part in parts) == whole.message.content


texts()
agents()
vectors()
asyncio.run(asynchronous())
print("done")
