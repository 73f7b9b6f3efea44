"""Every kind of question that the demo model answers, with its share of the training text."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable

from demo_model import small_talk, world
from demo_model.exchange import Exchange, exchange_key
from demo_model.facts import CONCEPT_WORDINGS, GENERAL_CONCEPTS, SERVER_CONCEPTS, SERVER_FACTS, Concept, Fact
from demo_model.generated import counting, json_objects, lists, sums, unknowns


def _worded(category: str, wordings: tuple[str, ...], subjects: Iterable[tuple[str, str]]) -> list[Exchange]:
    """Every wording for every (subject, answer)."""
    return [
        Exchange(category, wording.format(subject), answer, exchange_key(category, subject, index))
        for subject, answer in subjects
        for index, wording in enumerate(wordings)
    ]


def _concepts(category: str, concepts: tuple[Concept, ...]) -> list[Exchange]:
    return _worded(
        category, CONCEPT_WORDINGS, ((name, concept.answer) for concept in concepts for name in concept.names)
    )


def _facts(category: str, facts: tuple[Fact, ...]) -> list[Exchange]:
    return [
        Exchange(category, question, fact.answer, exchange_key(category, fact.questions[0], index))
        for fact in facts
        for index, question in enumerate(fact.questions)
    ]


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


def _colours() -> list[Exchange]:
    known = [(thing, _sentence(f"{thing} is {colour}")) for thing, colour in world.COLOURS.items()]
    return _worded("colours", world.COLOUR_WORDINGS, known)


def _world() -> list[Exchange]:
    capitals = [(land, f"The capital of {land} is {city}.") for land, city in world.CAPITALS.items()]
    both_ways = world.OPPOSITES | {value: key for key, value in world.OPPOSITES.items()}
    opposites = [(word, f"The opposite of {word} is {other}.") for word, other in both_ways.items()]
    sounds = [(animal, f"A {animal} says {sound}.") for animal, sound in world.SOUNDS.items()]
    legs = [(animal, f"A {animal} has {count} legs.") for animal, count in world.LEGS.items()]
    return (
        _worded("capitals", world.CAPITAL_WORDINGS, capitals)
        + _worded("opposites", world.OPPOSITE_WORDINGS, opposites)
        + _worded("animals", world.SOUND_WORDINGS, sounds)
        + _worded("animals", world.LEG_WORDINGS, legs)
    )


def _spelling() -> list[Exchange]:
    letters = [(word, "-".join(word)) for word in world.SPELLING_WORDS]
    return _worded("spelling", world.SPELLING_WORDINGS, letters)


def _calendar() -> list[Exchange]:
    made = []
    for kind, names in (("day", world.DAYS), ("month", world.MONTHS)):
        for index, name in enumerate(names):
            after, before = names[(index + 1) % len(names)], names[index - 1]
            for number, wording in enumerate(world.NEXT_WORDINGS):
                text = wording.format(k=kind, x=name)
                made.append(
                    Exchange(
                        "calendar", text, f"After {name} comes {after}.", exchange_key("after", name, number)
                    )
                )
            for number, wording in enumerate(world.BEFORE_WORDINGS):
                text = wording.format(k=kind, x=name)
                made.append(
                    Exchange(
                        "calendar",
                        text,
                        f"Before {name} comes {before}.",
                        exchange_key("before", name, number),
                    )
                )
    return made


def _translations() -> list[Exchange]:
    return [
        Exchange(
            "translations", wording.format(w=word, l=language), foreign, exchange_key(language, word, number)
        )
        for language, words in world.TRANSLATIONS.items()
        for word, foreign in words.items()
        for number, wording in enumerate(world.TRANSLATION_WORDINGS)
    ]


def _chooser(exchanges: list[Exchange]) -> Callable[[random.Random], Exchange]:
    canonical = [exchange for exchange in exchanges if not exchange.key]
    return lambda rng: rng.choice(canonical if rng.random() < 0.2 else exchanges)


WEIGHTED_SKILLS: tuple[tuple[float, Callable[[random.Random], Exchange]], ...] = (
    (14, _chooser(_concepts("concepts", GENERAL_CONCEPTS))),
    (12, _chooser(_concepts("server", SERVER_CONCEPTS))),
    (8, _chooser(_facts("server", SERVER_FACTS))),
    (6, _chooser(_facts("small talk", small_talk.SMALL_TALK))),
    (2, _chooser(_facts("stories", small_talk.STORIES))),
    (2, _chooser(_facts("long answers", small_talk.LONG_ANSWERS))),
    (5, _chooser(_colours())),
    (9, _chooser(_world())),
    (4, _chooser(_calendar())),
    (3, _chooser(_spelling())),
    (2, _chooser(_translations())),
    (28, sums),
    (14, counting),
    (11, json_objects),
    (5, lists),
    (8, unknowns),
)
