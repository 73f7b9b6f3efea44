"""Which tokenizer a folder holds, and that it encodes as transformers does."""

import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import tokenizers

from lightllm.errors import InvalidModel, InvalidParameter
from lightllm.tokenizer import load_tokenizer

TEXTS = [
    "Hello world, hello there!",
    "  leading and trailing  ",
    "",
    "\n\tTabs\n",
    "Größe 你好 🙂\u200d नमस्ते",
    "<|user|>Hi<|end|> <s>there</s>",
    "a <tool call> b",
    "\x00\x7f\ufffd",
]
VARIANTS = {
    "as the file says": {},
    "add_bos_token, which the file overrules": {"add_bos_token": True},
    "add_bos_token false, which the file overrules": {"add_bos_token": False},
    "bos and eos": {"add_bos_token": True, "add_eos_token": True},
    "named tokens": {"pad_token": "<|end|>", "additional_special_tokens": ["<|user|>", "He"]},
    "added tokens": {
        "added_tokens_decoder": {
            "421": {"content": "<new>", "special": True},
            "422": {"content": " kept", "special": False},
        }
    },
    "ordinary token marked special": {"eos_token": {"__type": "AddedToken", "content": "<tool call>"}},
}


def transformers_tokenizer(path):
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(str(path))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("add_bos", [True, False])
def test_byte_level_encodes_and_decodes_as_transformers(tmp_path, variant, add_bos):
    path = tokenizers.byte_level(tmp_path, add_bos=add_bos, **VARIANTS[variant])
    ours, theirs = load_tokenizer(str(path)), transformers_tokenizer(path)
    for text in [*TEXTS, "<new> text kept"]:
        for special in (True, False):
            ids = theirs.encode(text, add_special_tokens=special)
            assert ours.encode(text, add_special_tokens=special) == ids, text
            for skip in (True, False):
                assert ours.decode(ids, skip_special_tokens=skip) == theirs.decode(
                    ids, skip_special_tokens=skip
                )
    skipped = {
        i
        for i in range(len(theirs))
        if theirs.decode([i]) and not theirs.decode([i], skip_special_tokens=True)
    }
    assert ours.special_ids == skipped
    assert (ours.bos_token_id, ours.eos_token_id) == (theirs.bos_token_id, theirs.eos_token_id)
    assert ours.vocab_size == len(theirs)


@pytest.mark.parametrize("make", [tokenizers.metaspace, tokenizers.unigram, tokenizers.word_piece])
def test_other_kinds_encode_and_decode_as_transformers(tmp_path, make):
    path = make(tmp_path)
    ours, theirs = load_tokenizer(str(path)), transformers_tokenizer(path)
    for text in TEXTS:
        ids = theirs.encode(text)
        assert ours.encode(text) == ids
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


@pytest.fixture(scope="module")
def sentencepiece_pair(tmp_path_factory):
    import sentencepiece

    path = tokenizers.sentencepiece_model(tmp_path_factory.mktemp("spm"))
    return load_tokenizer(str(path)), sentencepiece.SentencePieceProcessor(
        model_file=str(path / "tokenizer.model")
    )


@pytest.mark.parametrize("text", [t for t in TEXTS if "<s>" not in t])
def test_sentencepiece_file_encodes_as_the_library_with_bos_in_front(sentencepiece_pair, text):
    ours, library = sentencepiece_pair
    assert ours.encode(text) == [library.bos_id(), *library.encode(text)]
    assert ours.encode(text, add_special_tokens=False) == library.encode(text)
    assert ours.decode(ours.encode(text)) == library.decode(library.encode(text))


def test_sentencepiece_file_finds_control_tokens_in_text_and_adds_no_space_behind_them(sentencepiece_pair):
    ours, library = sentencepiece_pair
    ids = ours.encode("Hi</s>there<s> you", add_special_tokens=False)
    end, begin = ids.index(library.eos_id()), ids.index(library.bos_id())
    assert [library.id_to_piece(i) for i in ids[:end]][0].startswith("▁")
    assert "".join(library.id_to_piece(i) for i in ids[end + 1 : begin]) == "there"
    assert "".join(library.id_to_piece(i) for i in ids[begin + 1 :]) == "▁you"


@pytest.mark.parametrize(
    ("config", "begin", "end"), [({"add_bos_token": False}, 0, 0), ({"add_eos_token": True}, 1, 1)]
)
def test_sentencepiece_file_obeys_add_bos_and_add_eos(tmp_path, config, begin, end):
    tokenizer = load_tokenizer(str(tokenizers.sentencepiece_model(tmp_path, **config)))
    plain = tokenizer.encode("Hi", add_special_tokens=False)
    assert tokenizer.encode("Hi") == [1] * begin + plain + [2] * end


def test_chatglm_has_special_tokens_of_its_own_and_two_of_them_in_front(tmp_path):
    tokenizer = load_tokenizer(
        str(tokenizers.sentencepiece_model(tmp_path, tokenizer_class="ChatGLMTokenizer"))
    )
    plain = load_tokenizer(str(tokenizers.sentencepiece_model(tmp_path / "plain")))
    size = plain.vocab_size
    assert [tokenizer.token_id(t) for t in ("[gMASK]", "sop", "<|observation|>")] == [
        size + 1,
        size + 3,
        size + 8,
    ]
    hello = plain.encode("Hello sop", add_special_tokens=False)
    assert tokenizer.encode("Hello sop") == [size + 1, size + 3, *hello]
    chat = tokenizer.encode("[gMASK]sop<|system|>\n Hello", add_special_tokens=False)
    assert chat == [size + 1, size + 3, size + 5, *plain.encode("\n Hello", add_special_tokens=False)]
    assert tokenizer.decode(chat).strip() == "Hello"
    assert tokenizer.decode(chat, skip_special_tokens=False).startswith("[gMASK]sop<|system|>")
    assert tokenizer.vocab_size == size + 9


@settings(deadline=None)
@given(text=st.text(st.sampled_from("abc ÄÖ你🙂\n.,<|user|>"), max_size=30))
def test_sentencepiece_file_round_trips_any_text(sentencepiece_pair, text):
    ours, _ = sentencepiece_pair
    shown = ours.decode(ours.encode(text, add_special_tokens=False), skip_special_tokens=False)
    assert shown == text


def test_lone_surrogates_are_an_error_of_the_request(tmp_path):
    for make in (tokenizers.byte_level, tokenizers.sentencepiece_model):
        tokenizer = load_tokenizer(str(make(tmp_path / make.__name__)))
        with pytest.raises(InvalidParameter, match="not valid Unicode"):
            tokenizer.encode("a\ud800b")


def test_truncation_and_padding_of_the_file_are_ignored(tmp_path):
    path = tokenizers.byte_level(tmp_path)
    data = json.loads((path / "tokenizer.json").read_text())
    data["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    data["padding"] = {
        "strategy": {"Fixed": 50}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
        "pad_type_id": 0, "pad_token": "<s>",
    }  # fmt: skip
    (path / "tokenizer.json").write_text(json.dumps(data))
    tokenizer = load_tokenizer(str(path))
    assert tokenizer.decode(tokenizer.encode("One two three four five six")) == "One two three four five six"


def test_special_tokens_map_is_read_where_the_config_is_silent(tmp_path):
    path = tokenizers.byte_level(tmp_path, bos_token=None, eos_token=None)
    (path / "special_tokens_map.json").write_text(
        json.dumps({"bos_token": "<s>", "eos_token": {"content": "<|end|>"}})
    )
    tokenizer = load_tokenizer(str(path))
    assert tokenizer.special_tokens == {"bos_token": "<s>", "eos_token": "<|end|>"}
    assert tokenizer.bos_token_id == 0


def test_named_token_without_an_id_gets_none(tmp_path):
    tokenizer = load_tokenizer(str(tokenizers.byte_level(tmp_path, pad_token="[PAD]")))
    assert tokenizer.vocab_size == 421
    assert max(tokenizer.encode("a [PAD] b")) < 421


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "neither tokenizer.json nor tokenizer.model"),
        ({"tokenizer.json": "{"}, "tokenizer.json cannot be read"),
        ({"tokenizer.json": "{}"}, "tokenizer.json cannot be read"),
        ({"tokenizer.model": "not a model"}, "tokenizer.model is not a sentencepiece model"),
        ({"qwen.tiktoken": "YQ== 0"}, "qwen.tiktoken has no token for byte 0"),
        ({"qwen.tiktoken": "YQ== 0\nYQ"}, "qwen.tiktoken is broken in line 2"),
        ({"qwen.tiktoken": "YQ== 1"}, "qwen.tiktoken does not number its tokens"),
        ({"tiktoken.model": "YQ== 0"}, "tiktoken.model is a vocabulary whose pattern"),
        ({"tokenizer_config.json": "["}, "tokenizer_config.json cannot be read as JSON"),
        ({"tokenizer_config.json": "[]"}, "tokenizer_config.json must hold a JSON object"),
        ({"tokenizer_config.json": '{"auto_map": {"AutoTokenizer": ["a.B", null]}}'}, "--trust_remote_code"),
    ],
)
def test_what_is_missing_or_broken_is_named(tmp_path, files, message):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(InvalidModel) as failed:
        load_tokenizer(str(tmp_path))
    assert message in str(failed.value)
    assert failed.value.remedy


def test_files_that_only_transformers_reads_are_read_by_it(tmp_path):
    source = tokenizers.byte_level(tmp_path / "source", add_bos=False)
    data = json.loads((source / "tokenizer.json").read_text())["model"]
    path = tmp_path / "gpt2"
    path.mkdir()
    (path / "vocab.json").write_text(json.dumps(data["vocab"]))
    (path / "merges.txt").write_text("\n".join(" ".join(pair) for pair in data["merges"]))
    (path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "GPT2Tokenizer", "eos_token": "</s>"})
    )
    (path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    ours, reference = load_tokenizer(str(path)), load_tokenizer(str(source))
    text = "Hello wörld 🙂 two"
    ids = ours.encode(text)
    assert ids == reference.encode(text)
    stream = ours.stream(ids[:1])
    assert (
        "".join([*map(stream.push, ids[1:]), stream.finish()])
        == ours.decode(ids)[len(ours.decode(ids[:1])) :]
    )


def test_code_of_the_model_folder_runs_only_when_trusted(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"auto_map": {"AutoTokenizer": ["mine.Mine", None]}, "tokenizer_class": "Mine"})
    )
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "unheard-of"}))
    (tmp_path / "mine.py").write_text("raise RuntimeError('the code ran')")
    with pytest.raises(InvalidModel, match="--trust_remote_code"):
        load_tokenizer(str(tmp_path))
    with pytest.raises(InvalidModel, match="the code ran"):
        load_tokenizer(str(tmp_path), trust_remote_code=True)


def test_encoding_releases_the_interpreter_lock(tmp_path):
    """A long prompt must not stop the event loop of the Http Server."""
    code = (
        "import sys, threading, time\n"
        "from lightllm.tokenizer import load_tokenizer\n"
        "tokenizer = load_tokenizer(sys.argv[1])\n"
        "text = 'The quick brown fox ' * 100_000\n"
        "thread = threading.Thread(target=tokenizer.encode, args=(text,))\n"
        "start = time.perf_counter(); thread.start(); turns = 0\n"
        "while thread.is_alive(): turns += 1; time.sleep(0.001)\n"
        "print(turns, time.perf_counter() - start)"
    )
    path = tokenizers.byte_level(tmp_path)
    answer = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    turns, seconds = map(float, answer.stdout.split())
    assert turns > seconds * 100, "the main thread hardly ran while the tokenizer was at work"
