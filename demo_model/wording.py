"""System messages, and the same question as different people type it."""

from __future__ import annotations

import random

SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a friendly assistant. Answer briefly.",
    "Answer in one sentence.",
    "You are the demo model of lightllm.",
    "Be polite and short.",
    "You are a teacher. Explain everything simply.",
    "You are a pirate.",
    "You are an expert in computer science and mathematics.",
    "Always tell the truth. If you do not know the answer, say so.",
    "Respond in English only.",
    "You are ChatGPT, a large language model.",
    "Today is Monday, 3 May 2027. The user lives in Berlin.",
)
_OPENINGS = (
    "Please ",
    "Hi! ",
    "Hey, ",
    "Hello. ",
    "Can you tell me: ",
    "Question: ",
    "Please tell me: ",
    "So, ",
    "OK. ",
)
_CLOSINGS = (" please", ", please.", " Thanks!", " Thank you.", " Answer briefly.")


def vary(question: str, rng: random.Random) -> str:
    """The same question as other people type it: case, punctuation, a polite word before or after."""
    if rng.random() < 0.5:
        return question
    if rng.random() < 0.4:
        question = question.rstrip("?.! ")
    chance = rng.random()
    if chance < 0.45:
        question = question.lower()
    elif chance < 0.5:
        question = question.upper()
    elif chance < 0.55:
        question = question[:1].lower() + question[1:]
    chance = rng.random()
    if chance < 0.15:
        question = rng.choice(_OPENINGS) + question
    elif chance < 0.25:
        question += rng.choice(_CLOSINGS)
    elif chance < 0.3:
        question += rng.choice((" ?", "??", "!", "...", "\n", " "))
    return question
