"""dspy: its LM for chats, texts and responses; typed predictions by its adapters; tools of a ReAct agent's form; streams; async."""

import asyncio
from typing import Literal

import dspy
from meeting import AGENT, CAPITAL, DEMO, KEY, LONG, SUM, TOOL, refused

dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=False)


def model(url: str, **options) -> dspy.LM:
    return dspy.LM(
        "openai/gpt-4o-mini",
        api_base=f"{url}/v1",
        api_key=KEY,
        num_retries=0,
        temperature=0.0,
        max_tokens=300,
        **options,
    )


class Capital(dspy.Signature):
    """Answers a question about a capital."""

    question: str = dspy.InputField()
    city: Literal["Paris", "Rome"] = dspy.OutputField()
    inhabitants: int = dspy.OutputField()


def plain() -> None:
    (whole,) = model(DEMO)(CAPITAL)
    assert "Paris" in whole
    assert model(DEMO, model_type="text")(CAPITAL)[0]
    (response,) = model(DEMO, model_type="responses")(CAPITAL)
    assert (response["text"] if isinstance(response, dict) else response) == whole
    assert asyncio.run(model(DEMO).acall(CAPITAL)) == [whole]
    with refused(dspy.ContextWindowExceededError):
        model(DEMO)(LONG)


def typed() -> None:
    """The model is too small to write the adapters' formats by itself: the JSON adapter sends a schema to models whose names say that
    they know such."""
    with dspy.context(lm=model(DEMO), adapter=dspy.JSONAdapter()):
        found = dspy.Predict(Capital)(question=CAPITAL)
    assert found.city in ("Paris", "Rome") and isinstance(found.inhabitants, int), found


def called() -> None:
    (answer,) = model(AGENT)(SUM, tools=[TOOL])
    (call,) = answer["tool_calls"]
    assert call.function.name == "add" if hasattr(call, "function") else call["function"]["name"] == "add", (
        answer
    )


plain()
typed()
called()
print("done")
