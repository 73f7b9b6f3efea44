"""Where an answer that streams may be cut for rendering, and that the rendered whole has everything."""

import io

import pytest

pytest.importorskip("rich")
from rich.console import Console

from lightllm.chat.markdown import MarkdownStream, end_of_blocks


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("one", "one"),
        ("one\n\n", "one\n\n"),
        ("one\n\ntwo", "two"),
        ("one\n\ntwo\n\nthree", "three"),
        ("```\na\n\nb\n", "```\na\n\nb\n"),
        ("```\na\n\nb\n```\n\nafter", "after"),
        ("````\n```\n\nb\n", "````\n```\n\nb\n"),
        ("~~~\n```\n\nb", "~~~\n```\n\nb"),
        ("- a\n\n  of a", "- a\n\n  of a"),
        ("one\n \ntwo", "two"),
    ],
)
def test_a_cut_is_only_made_between_blocks(text, rest):
    assert text[end_of_blocks(text) :] == rest


TEXT = (
    "# Title\n\nSome *text*.\n\n```python\nx = 1\n\ny = 2\n```\n\n1. first\n2. second\n\nThe end"
    + ", and on" * 80
)


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_everything_is_on_the_screen_however_it_came(size):
    written = io.StringIO()
    console = Console(file=written, width=60, height=8)
    with MarkdownStream(console) as stream:
        for start in range(0, len(TEXT), size):
            stream.push(TEXT[start : start + size])
    words = written.getvalue().split()
    assert [w for w in words if w in ("Title", "x", "y", "first", "second")] == [
        "Title",
        "x",
        "y",
        "first",
        "second",
    ]
    assert sum(word in ("on", "on,") for word in words) == 80 and "*text*" not in words and "```" not in words


def test_what_stands_is_kept_when_the_answer_is_interrupted():
    written = io.StringIO()
    with pytest.raises(KeyboardInterrupt), MarkdownStream(Console(file=written, width=60)) as stream:
        stream.push("half an answ")
        raise KeyboardInterrupt
    assert written.getvalue().strip() == "half an answ"
