"""Objects with bare keys become the JSON that they mean, wherever their text is cut."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightllm.parsers.bare_objects import BareObject

QUOTES = ('<|"|>', "<escape>")
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8).filter(
    lambda text: not any(quote in text for quote in QUOTES)
)
keys = st.from_regex(r"[A-Za-z_]\w{0,5}", fullmatch=True)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=8,
)


def written(value: Any, quote: str, space: str) -> str:
    """As Gemma's templates write it."""
    if isinstance(value, str):
        return quote + value + quote
    if isinstance(value, list):
        return "[" + f",{space}".join(written(item, quote, space) for item in value) + "]"
    if isinstance(value, dict):
        return (
            "{"
            + f",{space}".join(f"{key}:{space}{written(item, quote, space)}" for key, item in value.items())
            + "}"
        )
    return json.dumps(value)


def read(pieces: list[str], quote: str) -> tuple[str, str | None]:
    reader, said, rest = BareObject(quote), "", None
    for number, piece in enumerate(pieces):
        more, rest = reader.take(piece)
        said += more
        if rest is not None:
            return said, rest + "".join(pieces[number + 1 :])
    return said, rest


def cut(text: str, places: list[int]) -> list[str]:
    ends = sorted({0, len(text), *(place for place in places if place < len(text))})
    return [text[a:b] for a, b in zip(ends, ends[1:], strict=False)]


@settings(max_examples=200, deadline=None)
@given(
    value=st.dictionaries(keys, values, max_size=4), quote=st.sampled_from(QUOTES), behind=texts,
    space=st.sampled_from(["", " ", "\n"]), places=st.lists(st.integers(1, 80), max_size=8), json_quotes=st.booleans(),
)  # fmt: skip
def test_an_object_is_read_as_the_value_that_it_was(
    value: dict[str, Any], quote: str, behind: str, space: str, places: list[int], json_quotes: bool
) -> None:
    text = json.dumps(value) if json_quotes else written(value, quote, space)
    said, rest = read([text + behind], quote)
    assert rest == behind
    assert json.loads(said) == value
    assert read(cut(text + behind, places), quote) == read(list(text + behind), quote) == (said, rest)


@settings(max_examples=300, deadline=None)
@given(
    parts=st.lists(st.sampled_from(["{", "}", "[", "]", ":", ",", '<|"|>', "<|", '"', "\\", "a", "1", " ", "\n", "None"]), max_size=14),
    places=st.lists(st.integers(1, 30), max_size=6),
)  # fmt: skip
def test_what_is_no_object_is_read_alike_whole_and_in_pieces(parts: list[str], places: list[int]) -> None:
    text = "{" + "".join(parts)
    assert read(cut(text, places), QUOTES[0]) == read([text], QUOTES[0]) == read(list(text), QUOTES[0])


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("{a:None,b:True,c:two words}", {"a": None, "b": True, "c": "two words"}),
        ("{a:,b}", {"a": None, "b": None}),
        ("{a:[1,,2,],}", {"a": [1, 2]}),
        ("{a:NaN}", {"a": "NaN"}),
        ('{<|"|>a b<|"|>:1}', {"a b": 1}),
        ('{"a":"x\ny\\n\\"}"}', {"a": 'x\ny\n"}'}),
        ('{a:<|"|>x<|"|> and more,b:1}', {"a": "x", "b": 1}),
    ],
)
def test_what_models_write_besides(text: str, meant: dict[str, Any]) -> None:
    said, rest = read([text], QUOTES[0])
    assert json.loads(said) == meant and rest == ""
