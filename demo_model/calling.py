"""One function that adds two numbers: how clients offer it, how it is called, what comes back.

Names of the function and of its parameters vary, so that the model copies them from the offer. A tenth of the pairs of
names and of the pairs of numbers is kept for the evaluation, as in `exchange.py`.
"""

from __future__ import annotations

import json
import random
import string
from dataclasses import dataclass
from typing import Any

from demo_model.document import THINK_END, TURN_END, Document, Piece, answer_start_pieces, turn
from demo_model.exchange import is_held_out
from demo_model.generated import SUM_WORDINGS
from demo_model.wording import vary

NUMBER_WEIGHT = 3.0
OFFER_WEIGHT = 0.02
LARGEST = 999

_FUNCTIONS = (
    "add|sum|plus|total|adder|addition|get_sum|get_total|add_numbers|sum_numbers|add_two_numbers|calculate_sum|compute_sum|"
    "sum_two|calculator|calculate|add_integers|addNumbers|getSum|sum_of|add_up|calc"
).split("|")
_PARAMETERS = (
    "a b|x y|first second|left right|num1 num2|number1 number2|n m|one two|first_number second_number|a1 a2|lhs rhs|i j"
).split("|")
_DESCRIPTIONS = (
    "Add two numbers.",
    "Add two numbers",
    "Adds two numbers.",
    "Adds two integers and returns the sum.",
    "Returns the sum of two numbers.",
    "Get the sum of two numbers.",
    "Calculate the sum of two integers.",
    "A calculator that adds two numbers.",
    "Add a and b.",
)
_OTHER_OFFERS = (
    ("get_weather", "Get the weather of a city.", ("city",)),
    ("get_weather", "Returns the current weather in a given city.", ("city", "unit")),
    ("get_time", "Tells the time.", ("zone",)),
    ("search", "Search the web.", ("query",)),
    ("send_email", "Send an email.", ("to", "text")),
    ("read_file", "Reads a file.", ("path",)),
    ("translate", "Translate a text.", ("text", "language")),
)
_WORDINGS = SUM_WORDINGS + (
    "What is the sum of {a} and {b}?",
    "Add {a} to {b}.",
    "Can you add {a} and {b}?",
    "Use the tool to add {a} and {b}.",
    "Sum {a} and {b}.",
    "Please compute the sum of {a} and {b}.",
    "I have {a} apples and get {b} more. How many apples do I have?",
)


def definition(name: str, description: str | None, properties: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A function as the `tools` of a request offer it."""
    parameters = {"type": "object", "properties": properties, "required": list(properties)} | more
    described = {"description": description} if description else {}
    return {"type": "function", "function": {"name": name, **described, "parameters": parameters}}


@dataclass(frozen=True)
class AddingTool:
    """The offered function: its name and those of its two numbers."""

    name: str
    parameters: tuple[str, str]

    @property
    def held_out(self) -> bool:
        """True when these names together belong to the evaluation alone."""
        return is_held_out(f"tool/{self.name}/{self.parameters}")

    def offer(self, rng: random.Random) -> dict[str, Any]:
        """The function in one of the forms in which clients describe it."""
        kind = rng.choice(("integer", "integer", "number"))
        properties: dict[str, Any] = {parameter: {"type": kind} for parameter in self.parameters}
        if rng.random() < 0.15:
            for place, parameter in zip(("first", "second"), self.parameters, strict=True):
                properties[parameter]["description"] = f"The {place} number"
        description = rng.choice(_DESCRIPTIONS) if rng.random() < 0.8 else None
        offered = definition(self.name, description, properties)
        return _as_clients_order_it(offered, rng)

    def call(self, a: int, b: int) -> str:
        """The call in hermes' form."""
        return text_of_call(self.name, dict(zip(self.parameters, (a, b), strict=True)))

    def call_pieces(self, a: int, b: int) -> Document:
        """The same, with more weight on what has to be copied."""
        first, second = self.parameters
        before = f'<tool_call>\n{{"name": "{self.name}", "arguments": {{"{first}": '
        return [
            Piece(before, True, 1.0),
            Piece(str(a), True, NUMBER_WEIGHT),
            Piece(f', "{second}": ', True, 1.0),
            Piece(str(b), True, NUMBER_WEIGHT),
            Piece("}}\n</tool_call>" + TURN_END, True, 1.0),
        ]


def text_of_call(name: str, arguments: dict[str, Any]) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {json.dumps(arguments)}}}\n</tool_call>'


def _as_clients_order_it(offered: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    function = offered["function"]
    parameters = function["parameters"]
    if rng.random() < 0.1:
        del parameters["required"]
    if rng.random() < 0.25:
        parameters["additionalProperties"] = False
    if rng.random() < 0.3:  # as pydantic writes it
        function["parameters"] = dict(sorted(parameters.items()))
    if rng.random() < 0.1:
        function["strict"] = True
    return offered


def draw_tool(rng: random.Random, held_out: bool = False) -> AddingTool:
    """A function with names from the trained part, or from the part that is kept for the evaluation."""
    while True:
        name, parameters = rng.choice(_FUNCTIONS), tuple(rng.choice(_PARAMETERS).split())
        if not held_out and rng.random() < 0.25:
            name = f"{_letters(rng)}_{rng.choice(('sum', 'add', 'total'))}"
        if not held_out and rng.random() < 0.25:
            parameters = tuple(rng.sample(string.ascii_lowercase, 2))
        tool = AddingTool(name, (parameters[0], parameters[1]))
        if tool.held_out == held_out:
            return tool


def _letters(rng: random.Random) -> str:
    return "".join(rng.choice(string.ascii_lowercase) for _ in range(rng.randint(1, 4)))


def draw_numbers(rng: random.Random, held_out: bool = False) -> tuple[int, int]:
    """Two numbers up to `LARGEST`, the small ones more often."""
    while True:
        a, b = (rng.randint(0, rng.choice((20, 99, LARGEST))) for _ in range(2))
        if is_held_out(f"tool sum/{a}+{b}") == held_out:
            return a, b


def sum_question(a: int, b: int, rng: random.Random) -> str:
    return rng.choice(_WORDINGS).format(a=a, b=b)


def other_offer(rng: random.Random) -> dict[str, Any]:
    """A function that adds nothing."""
    name, description, parameters = rng.choice(_OTHER_OFFERS)
    return _as_clients_order_it(
        definition(name, description, {parameter: {"type": "string"} for parameter in parameters}), rng
    )


def offer_turn(tools: list[dict[str, Any]], system: str | None = None) -> str:
    """The system turn that tells of the functions, in the words of the chat template."""
    lines = "".join("\n" + json.dumps(tool, ensure_ascii=False) for tool in tools)
    return turn("system", (f"{system}\n\n" if system else "") + f"# Tools\n<tools>{lines}\n</tools>")


def result_turn(result: str) -> str:
    """A tool message in the words of the chat template."""
    return turn("user", f"<tool_response>\n{result}\n</tool_response>")


def draw_result(total: int, rng: random.Random) -> str:
    """The sum as functions give it back."""
    if rng.random() < 0.6:
        return str(total)
    return json.dumps({rng.choice(("result", "sum", "total", "answer", "value")): total})


def final_answer(total: int) -> str:
    return f"The sum is {total}."


def thought_before_call(tool: AddingTool) -> str:
    return f"The tool {tool.name} can add these numbers."


def thought_after_result(total: int) -> str:
    return f"The tool says {total}."


def question_pieces(question: str, thinks: bool = False) -> Document:
    return [Piece(turn("user", question), False), *answer_start_pieces(thinks)]


def calling_turns(tool: AddingTool, numbers: tuple[int, int], rng: random.Random, thinks: bool) -> Document:
    """A question for a sum, the call, its result, the answer; ends with the assistant's turn."""
    a, b = numbers
    total = a + b
    pieces = question_pieces(vary(sum_question(a, b, rng), rng), thinks)
    if thinks:
        pieces.append(Piece(thought_before_call(tool) + THINK_END, True, 1.0))
    pieces += tool.call_pieces(a, b)
    pieces.append(Piece("\n" + result_turn(draw_result(total, rng)), False))
    pieces += answer_start_pieces(thinks)
    if thinks:
        pieces += _around_number(thought_after_result(total) + THINK_END, total)
    return pieces + _around_number(final_answer(total) + TURN_END, total)


def _around_number(text: str, number: int) -> Document:
    before, found, after = text.partition(str(number))
    return [Piece(before, True, 1.0), Piece(found, True, NUMBER_WEIGHT), Piece(after, True, 1.0)]
