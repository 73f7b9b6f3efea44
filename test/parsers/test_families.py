"""One parser for every family: what a whole answer says, a stream says, wherever it is cut."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tool_outputs import FUNCTIONS, OUTPUTS, Output

from lightllm.parsers.chat_format import ChatFormat, Wishes, names_of
from lightllm.parsers.deltas import ContentParser, Delta, DeltaParser, tokens_within
from lightllm.parsers.families import FAMILIES
from lightllm.parsers.readers import ParameterTypes, read_object
from lightllm.parsers.reasoning import REASONINGS, THINK
from lightllm.parsers.table import Family
from lightllm.parsers.terminals import Terminals
from lightllm.parsers.writing import WrittenCall, write_calls

BY_NAME, REASONING = names_of(FAMILIES), names_of(REASONINGS)
TYPES = ParameterTypes(FUNCTIONS)
SPECIAL = frozenset({"<|im_end|>", "<|special|>"})


class Message(NamedTuple):
    content: str
    reasoning: str
    calls: tuple[tuple[str, str], ...]
    ids: tuple[str, ...]


def chat_format(family: str, special: frozenset[str] = SPECIAL) -> ChatFormat:
    reasoning = (
        REASONING["gpt_oss"] if family == "harmony" else REASONING.get(family.removesuffix("_v11"), THINK)
    )
    return ChatFormat(BY_NAME[family], reasoning, special)


def parsed(parser: DeltaParser, pieces: Iterable[str]) -> Message:
    deltas: list[Delta] = []
    for piece in pieces:
        deltas += parser.push(piece)
    return message_of([*deltas, *parser.end()])


def message_of(deltas: list[Delta]) -> Message:
    texts = {"content": "", "reasoning": ""}
    calls: list[list[str]] = []
    for delta in deltas:
        if delta.kind != "tool_call":
            assert delta.text
            texts[delta.kind] += delta.text
        elif delta.name:
            assert delta.index == len(calls) and delta.call_id
            calls.append([delta.name, delta.text, delta.call_id])
        else:
            assert delta.index == len(calls) - 1 and delta.text
            calls[delta.index][1] += delta.text
    names = tuple((name, arguments) for name, arguments, _ in calls)
    return Message(texts["content"], texts["reasoning"], names, tuple(call[2] for call in calls))


def cut(text: str, cuts: Iterable[int]) -> list[str]:
    places = sorted({0, len(text), *(place for place in cuts if place < len(text))})
    return [text[a:b] for a, b in zip(places, places[1:], strict=False)]


@pytest.mark.parametrize("output", OUTPUTS, ids=lambda output: f"{output.family}-{len(output.text)}")
def test_what_a_family_writes_is_taken_apart(output: Output) -> None:
    maker = chat_format(output.family).maker(Wishes("", TYPES))
    for pieces in ([output.text], list(output.text)):
        message = parsed(maker.make(), pieces)
        assert message[:3] == (output.content, output.reasoning, output.calls)
        for (_, arguments), (_, wanted) in zip(message.calls, output.calls, strict=True):
            assert arguments == wanted


def test_every_family_has_an_output() -> None:
    assert {output.family for output in OUTPUTS} == {family.name for family in FAMILIES}


@settings(max_examples=400, deadline=None)
@given(
    output=st.sampled_from(OUTPUTS), before=st.text(max_size=6), after=st.text(max_size=6),
    places=st.lists(st.integers(1, 400), max_size=12), end=st.integers(0, 400), opened=st.booleans(), special=st.booleans(),
    wishes=st.fixed_dictionaries(
        {"parallel": st.booleans(), "reasoning": st.sampled_from(["apart", "content", "none"]), "shows_special": st.booleans()}
    ),
)  # fmt: skip
def test_a_stream_says_what_the_whole_says_wherever_it_is_cut_and_ends(
    output: Output,
    before: str,
    after: str,
    places: list[int],
    end: int,
    opened: bool,
    special: bool,
    wishes: dict,
) -> None:
    text = before + output.text + ("<|special|>" if special else "") + after
    text = text[: end or None]
    form = chat_format(output.family, SPECIAL | {"<tool_call>"} if special else SPECIAL)
    maker = form.maker(Wishes("<think>\n" if opened else "", TYPES, **wishes))
    whole_parser, parser = maker.make(), maker.make()
    whole = parsed(whole_parser, [text] if text else [])
    assert parsed(parser, cut(text, places))[:3] == whole[:3]
    assert parser.spans == whole_parser.spans
    assert parsed(maker.make(), list(text))[:3] == whole[:3]


TAGS = sorted(
    {mark for family in FAMILIES for state in family.states.values() for mark in state.exits}
    | {"<think>", "</think>"}
)


@settings(max_examples=300, deadline=None)
@given(
    family=st.sampled_from(FAMILIES), places=st.lists(st.integers(1, 100), max_size=6),
    parts=st.lists(st.one_of(st.sampled_from(TAGS), st.sampled_from(["get_time", "city", '{"city": 1}', "\n", " ", "x", '"'])), max_size=14),
)  # fmt: skip
def test_no_output_breaks_the_parser(family: Family, parts: list[str], places: list[int]) -> None:
    """Markers in any order: whole and streamed say the same, and no text is lost where nothing is called."""
    text = "".join(parts)
    maker = chat_format(family.name).maker(Wishes("", TYPES))
    whole = parsed(maker.make(), [text] if text else [])
    assert parsed(maker.make(), cut(text, places))[:3] == whole[:3]


arguments = st.fixed_dictionaries(
    {"city": st.text(st.characters(exclude_categories=["C"], exclude_characters="<[｜"), min_size=1).map(str.strip).filter(bool)},
    optional={"days": st.integers(-5, 10**12), "where": st.just({"lat": 1.5})},
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(family=st.sampled_from(FAMILIES), values=st.lists(arguments, min_size=1, max_size=3))
def test_calls_that_are_written_are_read_again(family: Family, values: list[dict]) -> None:
    if family.name == "harmony":
        values = values[:1]
    text = write_calls(family, [WrittenCall("get_weather", one) for one in values])
    message = parsed(chat_format(family.name).maker(Wishes("", TYPES)).make(), [text])
    assert [json.loads(arguments) for _, arguments in message.calls] == values
    assert message.content == ""


def test_only_what_may_become_a_marker_is_held_back() -> None:
    parser = chat_format("hermes").maker(Wishes("<think>", TYPES)).make()
    said = [[(delta.kind, delta.text) for delta in parser.push(text)] for text in ("Hm <", "b", " </thin", "k>\n", "\nA ", "<tool_x", "y")]  # fmt: skip
    assert said == [
        [("reasoning", "Hm")], [("reasoning", " <b")], [], [], [("content", "A")], [("content", " <tool_x")], [("content", "y")],
    ]  # fmt: skip


def test_arguments_are_streamed_as_they_are_written() -> None:
    parser = chat_format("hermes").maker(Wishes("", TYPES)).make()
    pieces = ['<tool_call>{"name": "get_time", "arguments": {', '"a" :', ' "\\u00e9', '"  }', "}"]
    deltas = [delta for piece in pieces for delta in parser.push(piece)]
    assert [delta.text for delta in deltas] == ["{", '"a" :', ' "\\u00e9', '"  }']


def test_tools_are_not_looked_for_without_tools() -> None:
    text = '<tool_call>{"name": "get_time"}</tool_call>'
    form = ChatFormat(BY_NAME["hermes"], None, frozenset())
    assert isinstance(form.maker(Wishes("")).make(), ContentParser)
    maker = chat_format("hermes").maker(Wishes(""))
    assert parsed(maker.make(), [text]).content == text


def test_special_tokens_are_read_and_not_shown() -> None:
    form = chat_format("deepseek_v31", frozenset({"<｜tool▁calls▁begin｜>", "<｜tool▁sep｜>", "<｜pad｜>"}))
    assert (
        form.maker(Wishes("", TYPES)).reads_special_tokens and not form.maker(Wishes("")).reads_special_tokens
    )
    text = "a<｜pad｜>b<｜tool▁calls▁begin｜>nothing"
    assert parsed(form.maker(Wishes("", TYPES)).make(), list(text)).content == "abnothing"
    assert parsed(form.maker(Wishes("", TYPES, shows_special=True)).make(), list(text)).content == text


def test_more_calls_than_the_client_wants_are_left_out() -> None:
    text = next(output.text for output in OUTPUTS if output.family == "hermes")
    message = parsed(chat_format("hermes").maker(Wishes("", TYPES, parallel=False)).make(), list(text))
    assert message[:3] == ("I look.", "", OUTPUTS[0].calls[:1])


def test_ids_have_the_form_of_the_family() -> None:
    def ids(family: str) -> tuple[str, ...]:
        text = next(output.text for output in OUTPUTS if output.family == family)
        return parsed(chat_format(family).maker(Wishes("", TYPES)).make(), [text]).ids

    assert ids("kimi_k2") == ("functions.get_weather:0", "functions.get_time:1")
    assert all(len(one) == 9 and one.isalnum() for one in ids("mistral"))
    assert ids("mistral_v11")[1] == "abc123def"
    assert all(one.startswith("call_") and len(one) == 29 for one in ids("hermes"))


def test_reasoning_can_stay_in_the_content_or_be_left_out() -> None:
    text = "<think>\nHm.\n</think>\n\nYes."
    form = chat_format("hermes")
    assert parsed(form.maker(Wishes("", reasoning="content")).make(), list(text)).content == text
    assert parsed(form.maker(Wishes("", reasoning="none")).make(), list(text))[:2] == ("Yes.", "")


def test_reasoning_that_the_template_has_opened() -> None:
    parser = chat_format("hermes").maker(Wishes("<|im_start|>assistant\n<think>\n")).make()
    assert parsed(parser, list("Hm.\n</think>\n\nYes."))[:2] == ("Yes.", "Hm.")
    assert parser.spans == [(0, 12)]
    assert tokens_within(["Hm", ".", "\n</think>", "\n\n", "Yes."], parser.spans) == 3


def test_a_continued_answer_goes_on_within_its_reasoning_or_behind_it() -> None:
    form = chat_format("hermes")
    begun = form.maker(Wishes("assistant\n<think>\nFirst", continued=True)).make()
    assert parsed(begun, [" I look.\n</think>\n\nYes."])[:2] == ("Yes.", " I look.")
    done = form.maker(Wishes("assistant\n<think>\nFirst</think>It", continued=True)).make()
    assert parsed(done, [" is <think>"])[:2] == (" is <think>", "")


def test_a_continued_answer_of_gpt_oss_goes_on_in_its_channel() -> None:
    form = chat_format("harmony")
    final = form.maker(Wishes("<|start|>assistant<|channel|>final<|message|>It is")).make()
    assert parsed(final, [" 9."])[:2] == (" 9.", "")
    assert (
        parsed(form.maker(Wishes("<|start|>assistant")).make(), ["<|channel|>final<|message|>9"]).content
        == "9"
    )


def test_a_call_lies_within_one_function_and_not_within_many() -> None:
    call = '{"name": "f", "arguments": {"a": 1}}'
    assert read_object(f'{{"id": "1", "function": {call}}}') == ("f", '{"a": 1}', "")
    assert read_object(f'{{"function": {{"function": {call}}}}}') is None


def test_the_schema_of_a_parameter_may_refer_to_itself_at_every_turn() -> None:
    turns = [{"$ref": "#/$defs/a"}, {"anyOf": [{"$ref": "#/$defs/a"}] * 999}] * 500
    schema = {
        "properties": {"x": {"$ref": "#/$defs/a"}},
        "$defs": {"a": {"anyOf": [{"type": "integer"}, *turns]}},
    }
    types = ParameterTypes(
        {"f": schema, "g": {"properties": {"x": {"anyOf": [{"enum": ["a", 1]}, {"type": ["null"]}]}}}}
    )
    assert types.as_json("f", "x", " 3 ") == "3" and not types.is_text("f", "x")
    assert types.as_json("g", "x", "None") == "null" and types.as_json("g", "x", "[1]") == '"[1]"'


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_long_answer_full_of_markers_is_not_read_again_behind_each(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at = 0
    find = Terminals.find

    def counting(terminals: Terminals, text: str) -> object:
        nonlocal looked_at
        looked_at += len(text)
        return find(terminals, text)

    monkeypatch.setattr(Terminals, "find", counting)
    maker = chat_format(family.name).maker(Wishes("", TYPES))
    for mark in sorted({mark for state in family.states.values() for mark in state.exits}):
        text, looked_at = (mark + "f") * 2000, 0
        parsed(maker.make(), [text])
        assert looked_at < 1200 * 2000 + 100 * len(text), mark
