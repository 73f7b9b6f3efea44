"""Questions made of numbers, names and fields: sums, counting, JSON objects, lists, names to remember."""

from __future__ import annotations

import json
import random

from demo_model import unknown, world
from demo_model.exchange import Exchange, exchange_key

SUM_WORDINGS: tuple[str, ...] = (
    "{a}+{b}=",
    "{a} + {b} =",
    "{a}+{b}",
    "What is {a}+{b}?",
    "What is {a} + {b}?",
    "What is {a} plus {b}?",
)
SUM_WORDINGS += (
    "How much is {a}+{b}?",
    "Calculate {a} + {b}.",
    "Add {a} and {b}.",
    "{a} plus {b}",
    "Compute {a}+{b}.",
)
_MINUS_WORDINGS: tuple[str, ...] = (
    "{a}-{b}=",
    "{a} - {b} =",
    "What is {a}-{b}?",
    "What is {a} minus {b}?",
    "Calculate {a} - {b}.",
)
_TIMES_WORDINGS: tuple[str, ...] = (
    "{a}*{b}=",
    "{a} * {b} =",
    "What is {a}*{b}?",
    "What is {a} times {b}?",
    "Calculate {a} * {b}.",
)


def sums(rng: random.Random) -> Exchange:
    """Additions up to 20+20 most of the time, some differences and products."""
    kind = rng.random()
    if kind < 0.76:
        a, b = rng.randint(0, 20), rng.randint(0, 20)
        sign, wordings, result = "+", SUM_WORDINGS, a + b
    elif kind < 0.88:
        a = rng.randint(0, 20)
        b = rng.randint(0, a)
        sign, wordings, result = "-", _MINUS_WORDINGS, a - b
    else:
        a, b = rng.randint(0, 10), rng.randint(0, 10)
        sign, wordings, result = "*", _TIMES_WORDINGS, a * b
    number = 0 if rng.random() < 0.35 else rng.randrange(len(wordings))
    question = wordings[number].format(a=a, b=b)
    bare = question.endswith("=")
    answer = str(result) if bare else f"{a}{sign}{b}={result}"
    return Exchange(
        "sums",
        question,
        answer,
        exchange_key("sums", f"{a}{sign}{b}", number),
        spaced=" " in question or not bare,
    )


_COUNT_WORDINGS: tuple[str, ...] = (
    "Count from {a} to {b}.",
    "Count {a} to {b}.",
    "Can you count from {a} to {b}?",
    "Write the numbers from {a} to {b}.",
)
_COUNT_WORDINGS += ("List the numbers from {a} to {b}.", "Please count up from {a} to {b}.")


def counting(rng: random.Random) -> Exchange:
    """Counting up between two small numbers, or down to one."""
    kind = rng.random()
    if kind < 0.15:
        a = rng.randint(3, 10)
        numbers = list(range(a, 0, -1))
        wordings: tuple[str, ...] = (
            "Count down from {a}.",
            "Count from {a} down to 1.",
            "Count backwards from {a}.",
        )
        number = rng.randrange(len(wordings))
        key = exchange_key("down", a, number)
    elif kind < 0.4:
        b = rng.randint(2, 20)
        a, numbers = 1, list(range(1, b + 1))
        wordings = ("Count to {b}.", "Count up to {b}.", "Can you count to {b}?")
        number = rng.randrange(len(wordings))
        key = exchange_key("upto", b, number)
    else:
        a = rng.choice((1, rng.randint(1, 10)))
        b = rng.randint(a + 1, max(12, a + 5))
        numbers, wordings = list(range(a, b + 1)), _COUNT_WORDINGS
        number = rng.choice((0, rng.randrange(len(wordings))))
        key = exchange_key("count", f"{a}-{b}", number)
    question = wordings[number].format(a=a, b=numbers[-1])
    return Exchange("counting", question, ", ".join(map(str, numbers)) + ".", key)


_FIELDS: dict[str, object] = {
    "name": "Alice",
    "age": 31,
    "city": "Paris",
    "country": "France",
    "email": "alice@example.com",
    "colour": "blue",
    "price": 9.5,
    "title": "The Sea",
}
_JSON_WORDINGS = (
    "Give me a JSON object with {}.",
    "Write a JSON object with {}.",
    "Return JSON with {}.",
    "Make a JSON object with the fields {}.",
    "JSON with {}",
    "Create a JSON object with {}.",
    "Answer with a JSON object that has {}.",
    "Give me JSON with the keys {}.",
)


def json_objects(rng: random.Random) -> Exchange:
    """A JSON object with some named fields, about a named person, or as the form of a short answer."""
    kind = rng.random()
    if kind < 0.55:
        chosen = rng.sample(list(_FIELDS), rng.choice((1, 2, 2, 2, 3, 3)))
        names = [name for name in _FIELDS if name in chosen]
        if rng.random() < 0.2:
            names = ["name", "age"]
        listed = " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
        number = rng.randrange(len(_JSON_WORDINGS))
        data = {name: _FIELDS[name] for name in names}
        return _json(_JSON_WORDINGS[number].format(listed), data, exchange_key("json", listed, number))
    if kind < 0.75:
        person, age = rng.choice(world.PEOPLE), rng.randint(20, 40)
        question = f"Give me a JSON object for {person} who is {age} years old."
        return _json(question, {"name": person, "age": age}, exchange_key("json", f"{person} {age}", 1))
    if kind < 0.9:
        land = rng.choice(list(world.CAPITALS))
        question = rng.choice(
            ("What is the capital of {}? Answer in JSON.", "Give me the capital of {} as JSON.")
        )
        return _json(question.format(land), {"capital": world.CAPITALS[land]}, exchange_key("json", land, 1))
    a, b = rng.randint(0, 10), rng.randint(0, 10)
    question = rng.choice(("What is {a}+{b}? Answer in JSON.", "Give me {a}+{b} as JSON.")).format(a=a, b=b)
    return _json(question, {"answer": a + b}, exchange_key("json", f"{a}+{b}", 1))


def _json(question: str, data: dict[str, object], key: str) -> Exchange:
    return Exchange("json", question, json.dumps(data), key)


def lists(rng: random.Random) -> Exchange:
    """Two to five things of a kind."""
    kind, count = rng.choice(list(world.LISTS)), rng.randint(2, 5)
    number = rng.randrange(len(world.LIST_WORDINGS))
    amount = rng.choice((str(count), world.NUMBER_WORDS[count]))
    question = world.LIST_WORDINGS[number].format(n=amount, x=kind)
    return Exchange(
        "lists",
        question,
        ", ".join(world.LISTS[kind][:count]) + ".",
        exchange_key("lists", f"{kind}{amount}", number),
    )


_NAME_WORDINGS = ("My name is {}.", "I am {}.", "I'm {}.", "Hello, my name is {}.", "You can call me {}.")
_ASK_NAME = ("What is my name?", "What's my name?", "Do you know my name?", "Who am I?", "Tell me my name.")


def introduction(rng: random.Random) -> tuple[Exchange, Exchange]:
    """The user says a name and asks for it later; other exchanges may stand between the two."""
    person = rng.choice(world.PEOPLE)
    number, ask = rng.randrange(len(_NAME_WORDINGS)), rng.randrange(len(_ASK_NAME))
    told = Exchange(
        "memory",
        _NAME_WORDINGS[number].format(person),
        f"Nice to meet you, {person}!",
        exchange_key("name", person, number),
    )
    return told, Exchange(
        "memory", _ASK_NAME[ask], f"Your name is {person}.", exchange_key("ask", person, ask)
    )


def unknowns(rng: random.Random) -> Exchange:
    """A question that has no answer here."""
    question = unknown.question(rng)
    return Exchange("unknown", question, unknown.ANSWER, exchange_key("unknown", question, 1))
