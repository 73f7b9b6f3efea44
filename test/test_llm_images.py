"""Images in the offline engine: every form that a caller may give, against transformers, and what becomes of what was held."""

from __future__ import annotations

import asyncio
import gc
import io
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from PIL import Image
from support.checkpoints import make_checkpoint
from support.llava import IMAGE_TOKENS, MARKER, Llava, data_url, make_llava, picture
from support.vision_models import make_vision_model, random_images
from support.vision_prompts import WRITINGS
from support.vision_server import file_server

from lightllm import LLM, SamplingParams
from lightllm.cache.virtual_ids import FIRST_VIRTUAL_ID, VirtualIds
from lightllm.errors import BackendFailed, InvalidImage, InvalidParameter, PromptTooLong, StartupError
from lightllm.ipc import image_folder
from lightllm.visual.encoder import EncoderInput, EncoderOutput

NEW = 12
GREEDY = SamplingParams(temperature=0.0, max_new_tokens=NEW, ignore_eos=True)
OPTIONS: dict[str, Any] = {
    "data_type": "fp32", "max_total_token_num": 4000, "max_req_total_len": 256, "chunked_prefill_size": 16, "cpu_threads": 1,
    "cache_capacity": 5, "cache_capacity_bytes": 64 << 20, "max_image_mb": 8, "visual_infer_batch_size": 2,
}  # fmt: skip


class Offline:
    def __init__(self, llm: LLM, llava: Llava) -> None:
        self.llm = llm
        self.llava = llava

    def expected(self, text: str, *files: bytes, special: bool = True) -> list[int]:
        """What transformers answers."""
        first, *others = text.split(MARKER)
        prompt: list[Any] = self.llm.tokenizer.encode(first, special)
        for file, piece in zip(files, others, strict=True):
            prompt += [self.llava.seen(file), *self.llm.tokenizer.encode(piece, False)]
        return self.llava.reference.greedy(prompt, NEW)

    def tokens(self, prompts: Any, params: Any = GREEDY) -> list[list[int]]:
        results = self.llm.generate(prompts, params, use_tqdm=False)
        return [result.outputs[0].token_ids for result in results]

    def stats(self) -> Any:
        return images_of(self.llm).stats()


def images_of(llm: LLM) -> Any:
    assert llm._engine is not None
    return llm._engine.images


def asked(text: str, *images: Any) -> dict[str, Any]:
    return {"prompt": text, "multi_modal_data": {"image": list(images)}}


def opened(file: bytes) -> Image.Image:
    return Image.open(io.BytesIO(file))


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Llava:
    return make_llava(tmp_path_factory.mktemp("llava") / "model")


@pytest.fixture(scope="module")
def offline(llava: Llava) -> Iterator[Offline]:
    with LLM(llava.path, **OPTIONS) as llm:
        yield Offline(llm, llava)


@pytest.fixture
def encoded(offline: Offline, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the batches that the encoder gets."""
    sizes: list[int] = []
    encoder = images_of(offline.llm)._encoder
    original = encoder.encode

    def encode(images: Sequence[EncoderInput]) -> list[EncoderOutput]:
        sizes.append(len(images))
        return original(images)

    monkeypatch.setattr(encoder, "encode", encode)
    return sizes


def test_prompts_with_images_of_every_form_are_answered_as_by_transformers(
    offline: Offline, encoded: list[int], tmp_path: Path
) -> None:
    one, two, three = picture(1), picture(2, 21, 77), picture(3)
    (tmp_path / "näh und fern.png").write_bytes(three)
    path = tmp_path / "näh und fern.png"
    prompts = [
        asked(f"What is {MARKER} here?", one),
        asked(f"{MARKER} and {MARKER} are", opened(two), data_url(one)),
        "The quick brown fox",
        asked(f"Some {MARKER}{MARKER} more {MARKER}.", path, str(path), path.as_uri()),
        {"prompt": f"One {MARKER}", "multi_modal_data": {"image": bytearray(one)}},
        {"prompt": "No image at all"},
    ]
    assert offline.tokens(prompts) == [
        offline.expected(f"What is {MARKER} here?", one),
        offline.expected(f"{MARKER} and {MARKER} are", two, one),
        offline.expected("The quick brown fox"),
        offline.expected(f"Some {MARKER}{MARKER} more {MARKER}.", three, three, three),
        offline.expected(f"One {MARKER}", one),
        offline.expected("No image at all"),
    ]
    assert sum(encoded) == 3 and max(encoded) == 2, "each content once, as many together as the option says"
    assert offline.stats().references == 0


def test_results_count_the_tokens_of_images_and_leave_their_ids_out(offline: Offline) -> None:
    text = f"What is {MARKER} here, and {MARKER}?"
    (result,) = offline.llm.generate(asked(text, picture(1), picture(4)), GREEDY, use_tqdm=False)
    marker = offline.llm.tokenizer.token_id(MARKER)
    ids = [i for i in offline.llm.tokenizer.encode(text) if i != marker]
    assert (result.prompt, result.prompt_token_ids) == (text, ids)
    assert (result.image_tokens, result.prompt_tokens) == (2 * IMAGE_TOKENS, len(ids) + 2 * IMAGE_TOKENS)


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": data_url(picture(3)), "detail": "auto"}},
        {"type": "image_url", "image_url": data_url(picture(3))},
        {"type": "image", "image": opened(picture(3))},
        {"type": "image_pil", "image_pil": opened(picture(3))},
        {"type": "image", "image": picture(3)},
    ],
    ids=["openai", "url alone", "image", "vllm", "bytes"],
)
def test_chats_take_images_as_parts(offline: Offline, part: dict[str, Any]) -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "What?"}, part]}]
    expected = offline.expected(f"<|user|>What?{MARKER}</s><|assistant|>", picture(3), special=False)
    (result,) = offline.llm.chat(messages, GREEDY, use_tqdm=False)
    assert result.outputs[0].token_ids == expected
    streamed = "".join(offline.llm.stream(offline.llm.chat_prompt(messages), GREEDY))
    assert streamed == result.outputs[0].text
    assert messages[0]["content"][1] is part, "the caller's messages are left as they are"


def test_a_chat_without_parameters_takes_what_room_its_images_leave(offline: Offline) -> None:
    part = {"type": "image", "image": picture(3)}
    text = {"type": "text", "text": "x " * 90}
    (result,) = offline.llm.chat([{"role": "user", "content": [part, text]}], use_tqdm=False)
    assert 200 < result.prompt_tokens < 250
    assert result.prompt_tokens + len(result.outputs[0].token_ids) <= OPTIONS["max_req_total_len"]
    with pytest.raises(PromptTooLong, match="leaves none for an answer"):
        offline.llm.chat([{"role": "user", "content": [part] * 11}], use_tqdm=False)


def test_an_image_of_an_earlier_call_is_not_encoded_again_and_comes_from_the_prefix_cache(
    offline: Offline, encoded: list[int]
) -> None:
    prompt = asked(f"Tell of {MARKER} all", opened(picture(5)))
    (first,) = offline.llm.generate(prompt, GREEDY, use_tqdm=False)
    (again,) = offline.llm.generate(prompt, GREEDY, use_tqdm=False)
    assert encoded == [1]
    assert first.cached_tokens < IMAGE_TOKENS <= again.cached_tokens
    assert again.outputs[0].token_ids == first.outputs[0].token_ids


def test_more_images_than_the_cache_holds_pass_through_it_in_one_call(offline: Offline) -> None:
    files = [picture(100 + number) for number in range(13)]
    prompts = [asked(f"A {MARKER} {MARKER}.", *files[n : n + 2]) for n in range(12)]
    params = [msgspec.structs.replace(GREEDY, max_new_tokens=1 + n % 4, n=1 + n % 2) for n in range(12)]
    params[0] = params[11] = GREEDY
    before = offline.stats()
    answers = offline.tokens(prompts, params)
    assert answers[0] == offline.expected(f"A {MARKER} {MARKER}.", *files[:2])
    assert answers[11] == offline.expected(f"A {MARKER} {MARKER}.", *files[11:])
    after = offline.stats()
    assert after.misses - before.misses == 13, "none that was held or wanted next has gone"
    assert after.items <= OPTIONS["cache_capacity"] and after.references == 0


def test_virtual_ids_that_begin_anew_do_not_meet_the_old_ones_in_the_prefix_cache(llava: Llava) -> None:
    with LLM(llava.path, **OPTIONS | {"cache_capacity": 1}) as llm:
        offline = Offline(llm, llava)
        images_of(llm)._table.ids = VirtualIds(end=FIRST_VIRTUAL_ID + 2 * IMAGE_TOKENS + 5)
        text = f"Same {MARKER} words"
        for seed in (1, 2, 3, 1, 4):
            assert offline.tokens(asked(text, picture(seed))) == [offline.expected(text, picture(seed))]
        assert offline.stats().cycle >= 1


ONE = f"{MARKER}?"


@pytest.mark.parametrize(
    ("prompt", "error", "words"),
    [
        (asked(ONE, b"no image"), InvalidImage, "image.0 is none of JPEG"),
        (asked(ONE, picture(6)[:-200]), InvalidImage, "broken or cut short"),
        (asked(ONE, "/nowhere/x.png"), InvalidImage, "x.png cannot be read"),
        (asked(ONE, "http://127.0.0.1/x.png"), InvalidImage, "has no public address"),
        (asked(ONE, "ftp://example.com/x.png"), InvalidImage, "must be an http, https, data or file URL"),
        (asked(ONE, 5), InvalidImage, "must be a Pillow image, bytes, a path or a URL, got int"),
        (asked(ONE, Image.new("F", (3, 3))), InvalidImage, "32 bits"),
        (asked("What?", picture(6)), InvalidImage, "0 markers <image>, but 1 image came"),
        (asked(f"{MARKER} {MARKER}?", picture(6)), InvalidImage, "2 markers <image>, but 1 image came"),
        (ONE, InvalidImage, "1 marker <image>, but 0 images came"),
        (asked(MARKER * 6, *(picture(200 + n) for n in range(6))), InvalidParameter, "6 images do not fit"),
        (asked(MARKER * 11, *[picture(6)] * 11), PromptTooLong, "256"),
        (asked(MARKER * 65, *[picture(6)] * 65), InvalidImage, "65 images, at most 64"),
        ({"prompt": ONE, "multi_modal_data": {"video": 5}}, InvalidParameter, '{"image": ...}, got video'),
        ({"prompt": ONE, "prompt_token_ids": [5]}, InvalidParameter, "either prompt or prompt_token_ids"),
        ({"inputs": ONE}, InvalidParameter, "has no field 'inputs'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_bad_prompt_refuses_the_call_before_anything_is_encoded(
    offline: Offline, encoded: list[int], prompt: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error) as raised:
        offline.llm.generate([asked(ONE, picture(7)), prompt], GREEDY, use_tqdm=False)
    assert words in str(raised.value)
    assert not encoded and offline.stats().references == 0
    assert offline.llm.generate("Fine", GREEDY, use_tqdm=False)[0].outputs


def test_an_image_that_cannot_be_encoded_fails_the_call_and_leaves_the_engine_usable(
    offline: Offline, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(images_of(offline.llm)._encoder, "encode", lambda images: 1 / 0)
        with pytest.raises(
            BackendFailed, match=r"image.0: the image could not be encoded \(ZeroDivisionError"
        ):
            offline.tokens(["The quick", asked(ONE, picture(8))])
    assert offline.stats().references == 0
    assert offline.tokens(asked(ONE, picture(8))) == [offline.expected(ONE, picture(8))]


def test_leaving_a_stream_releases_its_images(offline: Offline) -> None:
    stream = offline.llm.stream(asked(ONE, picture(9)), msgspec.structs.replace(GREEDY, max_new_tokens=100))
    next(stream)
    assert offline.stats().references == 1
    stream.close()
    assert offline.stats().references == 0


def test_images_are_taken_inside_a_running_event_loop(offline: Offline) -> None:
    """As a notebook has one."""

    async def cell() -> list[list[int]]:
        return offline.tokens(asked(ONE, picture(10)))

    assert asyncio.run(cell()) == [offline.expected(ONE, picture(10))]


def test_models_without_images_and_those_told_so_refuse_them(llava: Llava, tmp_path: Path) -> None:
    text_model = make_checkpoint(tmp_path / "text", num_hidden_layers=1)
    message = [{"role": "user", "content": [{"type": "image", "image": picture(1)}]}]
    for path, options in ((text_model, {}), (llava.path, {"disable_vision": True})):
        with LLM(path, max_total_token_num=512, cpu_threads=1, **options) as llm:
            assert images_of(llm) is None
            with pytest.raises(InvalidParameter, match="multi_modal_data: this model takes no images"):
                llm.generate(asked("What?", picture(1)), GREEDY)
            with pytest.raises(InvalidParameter, match="messages.0.content.0: this model takes no images"):
                llm.chat(message, GREEDY)
            assert llm.generate({"prompt": "What?"}, GREEDY, use_tqdm=False)[0].outputs[0].token_ids


def folders() -> list[Path]:
    """In shared memory and elsewhere, of this process."""
    bases = [Path("/dev/shm"), Path(os.environ["LIGHTLLM_RUNTIME_BASE"])]
    return [path for base in bases for path in base.glob(f"lightllm-{os.getuid()}/{os.getpid()}-*")]


def test_files_go_when_the_engine_is_closed_and_when_it_is_forgotten(
    llava: Llava, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIGHTLLM_RUNTIME_BASE", str(tmp_path))
    before = folders()
    for close in (True, False):
        llm = LLM(llava.path, **OPTIONS)
        llm.generate(asked(ONE, picture(1)), GREEDY, use_tqdm=False)
        new = set(folders()) - set(before)
        assert any(file.suffix == ".embedding" for folder in new for file in folder.iterdir())
        if close:
            llm.close()
        del llm
        gc.collect()
        assert folders() == before


def test_too_little_room_for_images_is_one_line(
    llava: Llava, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIGHTLLM_RUNTIME_BASE", str(tmp_path))
    monkeypatch.setattr(image_folder, "_free_bytes", lambda folder: 1 << 20)
    with pytest.raises(
        StartupError, match=r"^Images need \d+ MiB of shared memory; .* give --disable_vision\.$"
    ):
        LLM(llava.path, **OPTIONS | {"cache_capacity_bytes": None})
    assert not list(tmp_path.glob("*/*-*"))


@pytest.mark.slow
def test_two_ranks_see_what_one_does(offline: Offline) -> None:
    files = [picture(20 + number) for number in range(7)]
    prompts = [asked(f"See {MARKER} here {MARKER}", *files[n : n + 2]) for n in range(6)] + ["No image"]
    expected = offline.tokens(prompts)
    with LLM(offline.llava.path, tp=2, check_rounds=True, **OPTIONS) as llm:
        two = Offline(llm, offline.llava)
        for _ in range(2):  # again, with both caches
            assert two.tokens(prompts) == expected
        assert two.stats().references == 0


@pytest.mark.slow
@pytest.mark.parametrize("tp", [1, 2])
def test_an_interpreter_that_ends_in_an_error_leaves_no_files(llava: Llava, tmp_path: Path, tp: int) -> None:
    (tmp_path / "x.png").write_bytes(picture(1))
    program = f"""
from pathlib import Path
from lightllm import LLM, SamplingParams
llm = LLM({str(llava.path)!r}, tp={tp}, max_total_token_num=500, cpu_threads=1)
prompt = {{"prompt": {ONE!r}, "multi_modal_data": {{"image": {str(tmp_path / "x.png")!r}}}}}
llm.generate(prompt, SamplingParams(max_new_tokens=2), use_tqdm=False)
assert list(llm._engine.images._files.folder.glob("*.embedding"))
print("seen")
1 / 0
"""
    environment = os.environ | {"LIGHTLLM_RUNTIME_BASE": str(tmp_path)}
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    out, errors = process.communicate(timeout=120)
    assert (out, process.returncode) == ("seen\n", 1) and "ZeroDivisionError" in errors
    assert not [
        path for base in ("/dev/shm", tmp_path) for path in Path(base).glob(f"lightllm-*/{process.pid}-*")
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen2-vl, published", "gemma3, published", "qwen-vl"])
def test_images_with_a_grid_bidirectional_ones_and_prompts_in_pieces_are_answered_as_by_their_references(
    tmp_path: Path, name: str
) -> None:
    reference, writing, images = make_vision_model(tmp_path, name, std=0.2), WRITINGS[name], random_images(3)
    marker = writing.marker
    asks = [
        (f"What is the quick {marker} here, and {marker}?", [images[0], images[1]]),
        ("The answer is", []),
        (f"{marker}\nThe lazy dog {marker}.", [images[2], images[0]]),
    ]
    with LLM(tmp_path, **OPTIONS) as llm:
        expected = [reference.greedy(writing.prompt(llm.tokenizer, text, own), NEW) for text, own in asks]
        for _ in range(2):  # again, with both caches
            results = llm.generate([asked(text, *own) for text, own in asks], GREEDY, use_tqdm=False)
            assert [result.outputs[0].token_ids for result in results] == expected
        assert images_of(llm).stats().misses == 3


def test_a_url_is_loaded_where_its_host_is_permitted(llava: Llava) -> None:
    file = picture(11)
    with (
        file_server({"/x.png": file}) as url,
        LLM(llava.path, allowed_media_domains=["127.0.0.1"], **OPTIONS) as llm,
    ):
        offline = Offline(llm, llava)
        assert offline.tokens([asked(ONE, f"{url}/x.png")] * 2) == [offline.expected(ONE, file)] * 2
        with pytest.raises(InvalidImage, match="the server of the image answered 404"):
            offline.tokens(asked(ONE, f"{url}/y.png"))
