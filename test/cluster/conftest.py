"""Workers that are only numbers, and requests of a given prompt."""

from __future__ import annotations

from lightllm.cluster.ask import Ask, ask_of
from lightllm.cluster.worker import Description, Worker


def describe(number: int, models: tuple[str, ...] = ("m",), **more) -> Description:
    return Description(f"http://127.0.0.1:{21000 + number}", models, **more)


def make_workers(count: int, **more) -> list[Worker]:
    return [Worker(describe(number, **more), 0.0) for number in range(count)]


def ask(prompt: str, model: str = "m", session: str = "", output: int = 16) -> Ask:
    return ask_of({"prompt": prompt, "max_tokens": output}, model, session)
