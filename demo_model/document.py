"""What one training text is made of, and how the turns of a chat are written."""

from __future__ import annotations

from dataclasses import dataclass

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"
THINK_START, THINK_END = "<think>\n", "\n</think>\n\n"
PROMPT_WEIGHT = 0.1


@dataclass(frozen=True)
class Piece:
    """A stretch of a document; tokens of an answer count fully in the loss, those of a prompt little."""

    text: str
    is_answer: bool
    weight: float | None = None
    """Loss weight of each token; None: a prompt's, or what an answer of this length has."""


Document = list[Piece]


def turn(role: str, content: str) -> str:
    """One whole turn in the words of the chat template."""
    return f"{TURN_START}{role}\n{content}{TURN_END}\n"


def answer_start(thinks: bool = False) -> str:
    """Where the assistant's answer begins; the template has opened its thoughts if it is to think."""
    return f"{TURN_START}assistant\n{THINK_START if thinks else ''}"


def answer_start_pieces(thinks: bool) -> Document:
    """The same as pieces. What the template opens has no weight, so that the model never learns to open it by itself."""
    opened = [Piece(THINK_START, False, 0.0)] if thinks else []
    return [Piece(answer_start(), False), *opened]


def chat_prompt(messages: list[tuple[str, str]], thinks: bool = False) -> str:
    """`messages` as (role, content) in the words of the chat template, without BOS, ready for the assistant's turn."""
    return "".join(turn(role, content) for role, content in messages) + answer_start(thinks)


def text_of(document: Document) -> str:
    """The whole text of a document."""
    return "".join(piece.text for piece in document)
