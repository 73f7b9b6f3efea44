"""Streamed pieces, joined, are the full decode of prompt + output without the prompt."""

import functools
import time
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import tokenizers
from tokenizers import Tokenizer as HuggingFaceTokenizer
from tokenizers.decoders import DecodeStream

from lightllm.tokenizer import load_tokenizer
from lightllm.tokenizer.text_stream import CONTEXT_TOKENS, MAX_PENDING

BYTE_TABLE = ("byte_level", "metaspace", "gemma_like", "sentencepiece_model", "qwen_tiktoken")
"""Text is the concatenation of the tokens' bytes: the promise holds for any ids."""
LIBRARY_DECODE = ("unigram", "word_piece", "byte_fallback_windowed")
REPLACEMENT = "\ufffd"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    base = tmp_path_factory.mktemp("tokenizers")
    made = {
        name: getattr(tokenizers, name)(base / name)
        for name in ("byte_level", "metaspace", "sentencepiece_model", "qwen_tiktoken", *LIBRARY_DECODE)
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


@settings(deadline=None, max_examples=60)
@given(prompt=scripts, text=scripts, cuts=cuts, skip=st.booleans())
@pytest.mark.parametrize("name", [*BYTE_TABLE, *LIBRARY_DECODE])
def test_texts_in_many_scripts_and_token_splits(loaded, name, prompt, text, cuts, skip):
    tokenizer = loaded[name]
    prompt_ids = tokenizer.encode(prompt)
    ids = [i for part in split(text, cuts) for i in tokenizer.encode(part, add_special_tokens=False)]
    streamed = "".join(pieces(tokenizer, prompt_ids, ids, skip_special_tokens=skip))
    whole = tokenizer.decode([*prompt_ids, *ids], skip_special_tokens=skip)
    assert streamed == after_prompt(tokenizer.decode(prompt_ids, skip_special_tokens=skip), whole)


@settings(deadline=None, max_examples=100)
@given(data=st.data(), skip=st.booleans())
@pytest.mark.parametrize("name", [*BYTE_TABLE, "unigram", "word_piece"])
def test_random_token_ids_in_prompt_and_output(loaded, name, data, skip):
    tokenizer = loaded[name]
    ids = st.lists(st.integers(-1, tokenizer.vocab_size + 3), max_size=30)
    prompt_ids, output = data.draw(ids), data.draw(ids)
    streamed = pieces(tokenizer, prompt_ids, output, skip_special_tokens=skip)
    whole = tokenizer.decode([*prompt_ids, *output], skip_special_tokens=skip)
    assert "".join(streamed) == after_prompt(tokenizer.decode(prompt_ids, skip_special_tokens=skip), whole)


@settings(deadline=None, max_examples=100)
@given(data=st.data())
@pytest.mark.parametrize("name", BYTE_TABLE)
def test_long_runs_of_broken_utf8_between_and_within_words(loaded, name, data):
    """Runs longer than what may pend, that begin in the prompt, end in half a character, or hold whole ones."""
    tokenizer = loaded[name]
    single = st.sampled_from([byte_tokens(tokenizer)[b] for b in b"\x80\xa9\xbf\xc3\xe2\x82\xf0\x9f\x92 a"])
    run = st.lists(single, max_size=3 * MAX_PENDING)
    word = st.sampled_from(
        [tokenizer.encode(w, add_special_tokens=False) for w in ("quick brown", " the", "é")]
    )
    parts = data.draw(st.lists(st.one_of(run, word), max_size=5))
    ids = [token_id for part in parts for token_id in part]
    cut = data.draw(st.integers(0, len(ids)))
    streamed = "".join(pieces(tokenizer, ids[:cut], ids[cut:]))
    assert streamed == after_prompt(tokenizer.decode(ids[:cut]), tokenizer.decode(ids))


@settings(deadline=None, max_examples=100)
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
@given(prompt=scripts, text=scripts.filter(lambda t: REPLACEMENT not in t))
@pytest.mark.parametrize("name", BYTE_TABLE)
def test_text_comes_with_the_token_that_completes_its_last_character(loaded, name, prompt, text):
    tokenizer = loaded[name]
    prompt_ids = tokenizer.encode(f"{prompt} The quick")
    before = tokenizer.decode(prompt_ids)
    ids = tokenizer.encode(text, add_special_tokens=False)
    stream = tokenizer.stream(prompt_ids)
    streamed = ""
    for count, token_id in enumerate(ids, 1):
        streamed += stream.push(token_id)
        text = tokenizer.decode([*prompt_ids, *ids[:count]])[len(before) :]
        assert streamed == text if not text.endswith(REPLACEMENT) else text.startswith(streamed)


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
    *streamed, rest = pieces(tokenizer, [end_token(tokenizer)], ids[:-1])
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
def test_bytes_that_never_become_a_character_are_let_go_and_the_stream_goes_on(loaded, name):
    tokenizer = loaded[name]
    broken = continuation(tokenizer)
    word = tokenizer.encode("quick brown", add_special_tokens=False)
    stream = tokenizer.stream(tokenizer.encode("a"))
    assert any(stream.push(broken) for _ in range(MAX_PENDING))
    streamed = "".join(stream.push(broken) for _ in range(100))
    assert len(streamed) > 100 - MAX_PENDING and set(streamed) == {REPLACEMENT}
    streamed = "".join(map(stream.push, word)) + stream.finish()
    assert streamed.strip(REPLACEMENT).strip() == "quick brown"


@pytest.mark.parametrize("before", range(2 * MAX_PENDING + 1))
@pytest.mark.parametrize("name", BYTE_TABLE)
def test_a_character_at_the_end_of_what_is_let_go_stays_whole(loaded, name, before):
    tokenizer = loaded[name]
    character = [byte_tokens(tokenizer)[byte] for byte in "\U0001f9ff".encode()]
    run = [continuation(tokenizer)] * before
    streamed = "".join(pieces(tokenizer, tokenizer.encode("a"), [*run, *character]))
    assert streamed == REPLACEMENT * before + "\U0001f9ff"


@pytest.mark.parametrize("name", [*BYTE_TABLE, "byte_fallback_windowed"])
def test_broken_bytes_cost_the_same_however_many_there_are(loaded, name):
    """Ten times the tokens may take ten times as long; if each looked at all before it, a hundred times."""
    tokenizer = loaded[name]
    broken = continuation(tokenizer)

    def seconds(count: int) -> float:
        stream = tokenizer.stream([])
        start = time.process_time()
        streamed = "".join([*(stream.push(broken) for _ in range(count)), stream.finish()])
        assert streamed == REPLACEMENT * count
        return time.process_time() - start

    assert min(seconds(10_000) for _ in range(3)) < 40 * min(seconds(1_000) for _ in range(3))


class CountedPrompt(Sequence):
    """Token ids that count how many of them are read."""

    def __init__(self, ids):
        self.ids = ids
        self.read = 0

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        self.read += 1
        return self.ids[index]


@pytest.mark.parametrize("name", [*BYTE_TABLE, *LIBRARY_DECODE])
def test_a_long_prompt_costs_no_more_than_a_short_one(loaded, name):
    tokenizer = loaded[name]
    word = tokenizer.encode("hello", add_special_tokens=False)
    prompt = CountedPrompt(tokenizer.encode("hello " * 20_000))
    streamed = "".join(pieces(tokenizer, prompt, word))
    assert prompt.read == CONTEXT_TOKENS < len(prompt)
    assert streamed == tokenizer.decode([*word, *word])[len(tokenizer.decode(word)) :]


@pytest.mark.parametrize("name", [*BYTE_TABLE, *LIBRARY_DECODE])
def test_tokens_without_text_at_the_end_of_the_prompt_do_not_decide_about_the_leading_space(loaded, name):
    tokenizer = loaded[name]
    word = tokenizer.encode("hello", add_special_tokens=False)
    silent = [end_token(tokenizer), tokenizer.vocab_size] * 20
    assert pieces(tokenizer, silent, word)[0] == pieces(tokenizer, [], word)[0]
    behind = "".join(pieces(tokenizer, [*word, *silent], word))
    assert behind == tokenizer.decode([*word, *word])[len(tokenizer.decode(word)) :]


@pytest.mark.parametrize("name", [*BYTE_TABLE, *LIBRARY_DECODE])
def test_special_tokens_are_skipped_or_shown(loaded, name):
    tokenizer = loaded[name]
    word = tokenizer.encode("hello", add_special_tokens=False)
    end = end_token(tokenizer)
    text = tokenizer.token_text(end)
    assert text in ("</s>", "<|endoftext|>")
    output = [*word, end]
    assert text not in "".join(pieces(tokenizer, word, output))
    assert "".join(pieces(tokenizer, word, output, skip_special_tokens=False)).endswith(text)


@pytest.mark.parametrize("name", [*BYTE_TABLE, *LIBRARY_DECODE])
def test_tokens_without_text_cost_the_same_however_many_there_are(loaded, name):
    tokenizer = loaded[name]
    word = tokenizer.encode("hello", add_special_tokens=False)

    def seconds(count: int) -> float:
        stream, end = tokenizer.stream([]), end_token(tokenizer)
        streamed = [*map(stream.push, word)]
        start = time.process_time()
        for _ in range(count // 2):
            assert stream.push(end) == "" == stream.push(tokenizer.vocab_size)
        spent = time.process_time() - start
        streamed += [*map(stream.push, word), stream.finish()]
        assert "".join(streamed) == tokenizer.decode([*word, *word])
        return spent

    assert min(seconds(10_000) for _ in range(3)) < 40 * min(seconds(1_000) for _ in range(3))


@settings(deadline=None)
@given(data=st.data())
def test_a_decoder_that_takes_text_back_never_costs_later_text(loaded, data):
    """Byte fallback makes U+FFFD of a whole run of bytes when one of them fits nowhere: text that was sent already."""
    tokenizer = loaded["byte_fallback_windowed"]
    noise = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 3), max_size=30))
    word = tokenizer.encode("quick brown", add_special_tokens=False)
    streamed = "".join(pieces(tokenizer, tokenizer.encode("a"), [*noise, *word]))
    assert streamed.endswith(" quick brown")


class TestWhatTheLibrarysStreamCannotDo:
    """Each case shows what the library does by itself, then that the stream goes on."""

    def test_it_sends_the_prompt_again_if_that_ends_in_half_a_character(self, loaded, folders):
        library, tokenizer = read(folders["byte_level"]), loaded["byte_level"]
        *prompt, last = tokenizer.encode("ab\U0001f9ff", add_special_tokens=False)
        assert DecodeStream(prompt).step(library, last) == "ab\U0001f9ff"
        assert pieces(tokenizer, prompt, [last]) == ["\U0001f9ff", ""]

    def test_it_raises_when_byte_fallback_takes_back_a_character(self, loaded, folders):
        library, tokenizer = read(folders["metaspace"]), loaded["metaspace"]
        word = tokenizer.encode("quick", add_special_tokens=False)
        ids = [byte_tokens(tokenizer)[b] for b in "é".encode() + b"\x80"] + [*word, *word]
        alone = DecodeStream(word)
        assert [alone.step(library, i) for i in ids[:3]] == [None, "é", None]
        with pytest.raises(Exception, match="Invalid prefix"):
            alone.step(library, ids[3])
        assert "".join(pieces(tokenizer, word, ids)) == f"é{REPLACEMENT} quick quick"

    def test_it_raises_for_ids_that_no_vocabulary_has(self, loaded, folders):
        library, tokenizer = read(folders["byte_level"]), loaded["byte_level"]
        word = tokenizer.encode("quick", add_special_tokens=False)
        for token_id in (-1, 2**32):
            with pytest.raises(TypeError):
                DecodeStream(word).step(library, token_id)
        assert "".join(pieces(tokenizer, word, [*word, -1, *word, 2**32, *word])) == "quick" * 3

    def test_it_panics_in_a_decoder_that_strips_both_sides_of_one_space(self, tmp_path):
        folder = tokenizers.strips_both_sides(tmp_path)
        library, tokenizer = read(folder), load_tokenizer(str(folder))
        word, space = tokenizer.encode("quick", add_special_tokens=False), tokenizer.token_id("▁")
        with pytest.raises(BaseException, match="slice index") as panic:
            DecodeStream([]).step(library, space)
        assert not isinstance(panic.value, Exception)
        assert "".join(pieces(tokenizer, [], [space, *word, *word])).endswith("quick quick")
        assert tokenizer.decode([space]) == "▁"


def read(folder):
    return HuggingFaceTokenizer.from_file(str(folder / "tokenizer.json"))


def continuation(tokenizer):
    """A token of one byte that only makes sense behind others."""
    return tokenizer.encode("a\U0001f9ff", add_special_tokens=False)[-1]


def end_token(tokenizer):
    """A special token."""
    return tokenizer.token_id("</s>") or tokenizer.token_id("<|endoftext|>")


@functools.cache
def byte_tokens(tokenizer):
    """Byte -> the token that stands for it alone (`<0x80>`, or a byte-level piece)."""
    single = [(tokenizer.token_bytes(i), i) for i in reversed(range(tokenizer.vocab_size))]
    return {data[0]: i for data, i in single if len(data) == 1}
