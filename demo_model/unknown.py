"""Questions that the demo model must not pretend to know."""

from __future__ import annotations

import random
import string

ANSWER = "I am only a small demo model, so I do not know that."

_TOPICS = (
    "quantum physics|the stock market|Napoleon|Shakespeare|the weather in Boston|black holes|chess|football|the French revolution|"
    "photosynthesis|the Roman empire|dark matter|Kubernetes|Rust|blockchain|the human brain|vitamins|volcanoes|gravity|DNA|"
    "evolution|the Beatles|jazz|Mozart|Picasso|the Eiffel tower|the Great Wall|Mount Everest|the Amazon river|penguins|"
    "dinosaurs|Mars|Jupiter|the speed of light|relativity|Einstein|Newton|calculus|prime numbers|statistics|economics|"
    "inflation|democracy|the United Nations|the Olympic games|tennis|basketball|cooking rice|sushi|pizza|coffee|tea|wine|"
    "electric cars|airplanes|trains|bicycles|rockets|satellites|the ozone layer|climate change|solar power|nuclear power|"
    "batteries|steel|glass|gold|diamonds|banks|taxes|insurance|law|medicine|cancer|the heart|sleep|dreams|yoga|running|"
    "philosophy|Plato|Kant|religion|poetry|Homer|novels|cinema|Star Wars|Harry Potter|video games|Minecraft|Linux|Windows|"
    "databases|SQL|compilers|Java|C++|JavaScript|HTML|CSS|Docker|git|encryption|quantum computers|robots in industry|drones"
).split("|")
_COUNTRIES = "Mongolia|Brazil|Kenya|Nepal|Chile|Iran|Ghana|Fiji|Laos|Mali|Qatar|Tonga|Bhutan|Malta|Iceland|Vietnam".split(
    "|"
)
_WORDINGS = (
    "What is {}?",
    "Who was {}?",
    "Explain {}.",
    "Tell me about {}.",
    "What do you think about {}?",
    "Why is {} important?",
    "When was {} discovered?",
    "Who invented {}?",
    "How does {} work?",
    "Write an essay about {}.",
    "Give me ten facts about {}.",
    "What is the history of {}?",
    "Summarize {} in one sentence.",
    "How much does {} cost?",
    "Where can I learn about {}?",
    "Is {} dangerous?",
    "Compare {} and {}.",
    "What is the difference between {} and {}?",
    "Write a program about {}.",
)
_OTHER = (
    "Who won the world cup in {y}?|Who was president in {y}?|What happened in {y}?|What time is it?|What is the date today?|"
    "Write a Python function that sorts a list.|Fix this code: print(x|def f(x): return x + {y}|Wie spät ist es?|"
    "Quelle heure est-il ?|¿Qué hora es?|你好|你是谁?|什么是人工智能?|こんにちは|Что это такое?|How old am I?|Where do I live?|"
    "Solve x^2 - {y} = 0.|What is the square root of {y}?|How far is it from Paris to Rome?|Translate this text to Latin.|"
    "What should I eat today?|Book a flight to Paris.|Send an email to Bob.|What is the best phone?|Which car should I buy?|"
    "Who is the king of Spain?|How tall is the tallest building?|Write a letter to my boss.|Play some music.|"
    "What is your favourite film?|Do you love me?|How many people live in France?|What is the news?|SELECT * FROM t;"
).split("|")
_ALPHABETS = (
    string.ascii_lowercase,
    string.ascii_letters + string.digits,
    "äöüßéèçñåø",
    "абвгдежзик",
    "你我他天地人水火山",
    "😀🎉🚀❤🌍",
    string.punctuation,
)


def question(rng: random.Random) -> str:
    """A question far from everything that the model has learned."""
    kind = rng.random()
    if kind < 0.6:
        return rng.choice(_WORDINGS).replace("{}", rng.choice(_TOPICS), 1).replace("{}", rng.choice(_TOPICS))
    if kind < 0.68:
        return f"What is the capital of {rng.choice(_COUNTRIES)}?"
    if kind < 0.85:
        return rng.choice(_OTHER).replace("{y}", str(rng.randint(100, 2030)))
    return _gibberish(rng)


def _gibberish(rng: random.Random) -> str:
    alphabet = rng.choice(_ALPHABETS)
    words = [
        "".join(rng.choice(alphabet) for _ in range(rng.randint(2, 9))) for _ in range(rng.randint(1, 6))
    ]
    return " ".join(words)
