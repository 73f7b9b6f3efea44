"""Streamed pieces, joined, are the full decode of prompt + output without the prompt."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import tokenizers
from tokenizers import Tokenizer as HuggingFaceTokenizer
from tokenizers.decoders import DecodeStream

from lightllm.tokenizer import load_tokenizer
from lightllm.tokenizer.text_stream import MAX_PENDING

BYTE_TABLE = ("byte_level", "metaspace", "gemma_like", "sentencepiece_model")
WINDOWED = ("unigram", "word_piece", "byte_fallback_windowed")
REPLACEMENT = "\ufffd"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    base = tmp_path_factory.mktemp("tokenizers")
    made = {
        name: getattr(tokenizers, name)(base / name)
        for name in ("byte_level", "metaspace", "sentencepiece_model", *WINDOWED)
    }
    made["gemma_like"] = tokenizers.metaspace(base / "gemma_like", strip=False)
    return made


@pytest.fixture(scope="module")
def loaded(folders):
    return {name: load_tokenizer(str(folder)) for name, folder in folders.items()}


def after_prompt(prompt_text: str, text: str) -> str:
    """`text` behind what it has in common with the text of the prompt alone."""
    common = 0
    while common < min(len(prompt_text), len(text)) and prompt_text[common] == text[common]:
        common += 1
    return text[common:]


def pieces(tokenizer, prompt, output, **options):
    stream = tokenizer.stream(prompt, **options)
    return [*(stream.push(i) for i in output), stream.finish()]


scripts = st.text(
    st.one_of(
        st.characters(codec="utf-8"),
        st.sampled_from("abc defg THE the quick\n\t.,!?'"),
        st.sampled_from("äßñçøПриветحبابनमस्तेสวัสดี你好世界こんにちは안녕"),
        st.sampled_from("🙂🚀👩‍👩‍👧🏽🇩🇪❤️\u200d\ufe0f\u0301"),
    ),
    max_size=40,
)
cuts = st.lists(st.integers(0, 1000), max_size=12)


def split(text, cuts):
    borders = [0, *sorted(c % (len(text) + 1) for c in cuts), len(text)]
    return [text[a:b] for a, b in zip(borders, borders[1:])]


@settings(deadline=None)
@given(prompt=scripts, text=scripts, cuts=cuts, skip=st.booleans())
@pytest.mark.parametrize("name", [*BYTE_TABLE, *WINDOWED])
def test_texts_in_many_scripts_and_token_splits(loaded, name, prompt, text, cuts, skip):
    tokenizer = loaded[name]
    prompt_ids = tokenizer.encode(prompt)
    ids = [i for part in split(text, cuts) for i in tokenizer.encode(part, add_special_tokens=False)]
    streamed = "".join(pieces(tokenizer, prompt_ids, ids, skip_special_tokens=skip))
    whole = tokenizer.decode([*prompt_ids, *ids], skip_special_tokens=skip)
    assert streamed == after_prompt(tokenizer.decode(prompt_ids, skip_special_tokens=skip), whole)


@settings(deadline=None, max_examples=200)
@given(data=st.data(), skip=st.booleans())
@pytest.mark.parametrize("name", [*BYTE_TABLE, "unigram", "word_piece"])
def test_random_token_ids_in_prompt_and_output(loaded, name, data, skip):
    tokenizer = loaded[name]
    ids = st.lists(st.integers(0, tokenizer.vocab_size + 3), max_size=30)
    prompt_ids, output = data.draw(ids), data.draw(ids)
    streamed = pieces(tokenizer, prompt_ids, output, skip_special_tokens=skip)
    whole = tokenizer.decode([*prompt_ids, *output], skip_special_tokens=skip)
    assert "".join(streamed) == after_prompt(tokenizer.decode(prompt_ids, skip_special_tokens=skip), whole)


@settings(deadline=None, max_examples=200)
@given(data=st.data(), skip=st.booleans())
def test_byte_level_decode_equals_the_tokenizers_library_for_any_ids(loaded, folders, data, skip):
    tokenizer = loaded["byte_level"]
    reference = HuggingFaceTokenizer.from_file(str(folders["byte_level"] / "tokenizer.json"))
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 3), max_size=40))
    assert tokenizer.decode(ids, skip_special_tokens=skip) == reference.decode(ids, skip_special_tokens=skip)


@settings(deadline=None)
@given(text=scripts, skip=st.booleans())
@pytest.mark.parametrize("name", ["metaspace", "gemma_like"])
def test_byte_fallback_decode_equals_the_tokenizers_library_for_any_text(loaded, folders, name, text, skip):
    reference = HuggingFaceTokenizer.from_file(str(folders[name] / "tokenizer.json"))
    ids = reference.encode(text).ids
    assert loaded[name].decode(ids, skip_special_tokens=skip) == reference.decode(
        ids, skip_special_tokens=skip
    )


@pytest.mark.parametrize("name", ["byte_level", "metaspace", "gemma_like"])
def test_every_token_has_the_text_that_the_library_gives_it(loaded, folders, name):
    reference = HuggingFaceTokenizer.from_file(str(folders[name] / "tokenizer.json"))
    context = reference.encode("a", add_special_tokens=False).ids
    before = reference.decode(context)
    for token_id in range(loaded[name].vocab_size):
        expected = reference.decode([*context, token_id], skip_special_tokens=False)[len(before) :]
        assert loaded[name].token_text(token_id) == expected, token_id


@settings(deadline=None)
@given(text=scripts)
@pytest.mark.parametrize("name", ["byte_level", "metaspace", "gemma_like"])
def test_text_comes_at_least_as_early_as_from_the_library_stream(loaded, folders, name, text):
    reference = HuggingFaceTokenizer.from_file(str(folders[name] / "tokenizer.json"))
    prompt_ids = reference.encode("The quick").ids
    ids = reference.encode(text, add_special_tokens=False).ids
    library = DecodeStream(prompt_ids, skip_special_tokens=True)
    stream = loaded[name].stream(prompt_ids)
    theirs = ours = ""
    for token_id in ids:
        theirs += library.step(reference, token_id) or ""
        ours += stream.push(token_id)
        assert ours.startswith(theirs)
    assert (
        ours + stream.finish() == reference.decode([*prompt_ids, *ids])[len(reference.decode(prompt_ids)) :]
    )


@given(text=scripts.filter(lambda t: REPLACEMENT not in t))
@settings(deadline=None)
@pytest.mark.parametrize("name", [*BYTE_TABLE, "byte_fallback_windowed"])
def test_no_piece_has_half_a_character(loaded, name, text):
    tokenizer = loaded[name]
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert REPLACEMENT not in "".join(pieces(tokenizer, tokenizer.encode("a"), ids))


@pytest.mark.parametrize("name", [*BYTE_TABLE, "byte_fallback_windowed"])
def test_the_last_character_is_not_lost_if_it_is_incomplete(loaded, name):
    tokenizer = loaded[name]
    ids = tokenizer.encode("a\U0001f9ff", add_special_tokens=False)
    *streamed, rest = pieces(tokenizer, [tokenizer.bos_token_id], ids[:-1])
    assert "".join(streamed).strip() == "a"
    assert set(rest) == {REPLACEMENT}


@pytest.mark.parametrize("name", [*BYTE_TABLE, "byte_fallback_windowed"])
def test_a_prompt_that_ends_in_half_a_character_gives_the_whole_character_to_the_output(loaded, name):
    tokenizer = loaded[name]
    ids = tokenizer.encode("a\U0001f9ff", add_special_tokens=False)
    assert "".join(pieces(tokenizer, ids[:-1], ids[-1:])) == "\U0001f9ff"
    a = tokenizer.encode("xb", add_special_tokens=False)[-1:]
    assert "".join(pieces(tokenizer, ids[:-1], a)).endswith("b")
    assert "".join(pieces(tokenizer, ids[:-1], [])) == ""


@pytest.mark.parametrize("name", [*BYTE_TABLE, "byte_fallback_windowed"])
def test_bytes_that_never_become_a_character_are_let_go(loaded, name):
    """No text is held for ever, and the cost of a token does not grow with the length of the run."""
    tokenizer = loaded[name]
    continuation = tokenizer.encode("a\U0001f9ff", add_special_tokens=False)[-1]
    context = tokenizer.encode("a")
    stream = tokenizer.stream(context)
    assert any(stream.push(continuation) for _ in range(MAX_PENDING))
    start = time.process_time()
    streamed = "".join(stream.push(continuation) for _ in range(4000)) + stream.finish()
    assert time.process_time() - start < 2
    assert set(streamed) == {REPLACEMENT}


@pytest.mark.parametrize("name", [*BYTE_TABLE, *WINDOWED])
def test_special_tokens_are_skipped_or_shown(loaded, name):
    tokenizer = loaded[name]
    word = tokenizer.encode("hello", add_special_tokens=False)
    end = tokenizer.token_id("</s>")
    output = [*word, end]
    assert "</s>" not in "".join(pieces(tokenizer, word, output))
    assert "".join(pieces(tokenizer, word, output, skip_special_tokens=False)).endswith("</s>")


def test_tokens_without_text_do_not_make_a_window_longer(loaded):
    tokenizer = loaded["word_piece"]
    stream = tokenizer.stream(tokenizer.encode("hello"))
    start = time.process_time()
    assert all(stream.push(tokenizer.bos_token_id) == "" for _ in range(5000))
    assert time.process_time() - start < 2
    word = tokenizer.encode("hello", add_special_tokens=False)
    assert "".join([*map(stream.push, word), stream.finish()]) == " hello"


@settings(deadline=None)
@given(data=st.data())
def test_a_decoder_that_takes_text_back_never_costs_later_text(loaded, data):
    """Byte fallback makes U+FFFD of a whole run of bytes when one of them fits nowhere: text that was sent already."""
    tokenizer = loaded["byte_fallback_windowed"]
    noise = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 3), max_size=30))
    word = tokenizer.encode("quick brown", add_special_tokens=False)
    streamed = "".join(pieces(tokenizer, tokenizer.encode("a"), [*noise, *word]))
    assert streamed.endswith(" quick brown")


def test_a_token_costs_a_few_microseconds(loaded):
    tokenizer = loaded["byte_level"]
    ids = tokenizer.encode(" ".join(tokenizers.CORPUS * 10), add_special_tokens=False)
    stream = tokenizer.stream(ids[:8])
    for token_id in ids:
        stream.push(token_id)
    start = time.process_time()
    for token_id in ids:
        stream.push(token_id)
    assert (time.process_time() - start) / len(ids) < 6e-6
