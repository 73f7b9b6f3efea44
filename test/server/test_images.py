"""Images through a whole server: from the bodies of requests to tokens that a model that sees answers with."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from support.llava import IMAGE_TOKENS, MARKER, Llava, base64_text, data_url, make_llava, picture
from support.metrics import samples
from support.server import LightLLMServer

from lightllm.ipc.image_cache import ImageCache
from lightllm.ipc.runtime_dir import RuntimeDir
from lightllm.tokenizer import Tokenizer, load_tokenizer

NEW = 12
SECONDS = 60


class Served:
    def __init__(self, server: LightLLMServer, llava: Llava) -> None:
        self.server = server
        self.llava = llava
        self.tokenizer: Tokenizer = load_tokenizer(str(llava.path))

    def post(self, path: str, body: Any) -> httpx.Response:
        return httpx.post(self.server.url + path, json=body, timeout=SECONDS)

    def body(self, text: str, *files: bytes, **parameters: Any) -> dict[str, Any]:
        images = [{"type": "base64", "data": base64_text(file)} for file in files]
        parameters = {"max_new_tokens": NEW, "ignore_eos": True, "return_details": True, **parameters}
        return {"inputs": text, "parameters": parameters, "multimodal_params": {"images": images}}

    def generate(
        self, text: str, *files: bytes, path: str = "/generate", **parameters: Any
    ) -> httpx.Response:
        return self.post(path, self.body(text, *files, **parameters))

    def answer(self, text: str, *files: bytes) -> dict[str, Any]:
        response = self.generate(text, *files)
        assert response.status_code == 200, response.text
        return response.json()

    def expected(self, text: str, *files: bytes, special: bool = True) -> list[int]:
        """What transformers answers."""
        first, *others = text.split(MARKER)
        prompt: list[Any] = self.tokenizer.encode(first, special)
        for file, piece in zip(files, others, strict=True):
            prompt += [self.llava.seen(file), *self.tokenizer.encode(piece, False)]
        return self.llava.reference.greedy(prompt, NEW)

    def encodes(self) -> int:
        """Images that the Visual Server has encoded."""
        text = httpx.get(self.server.url + "/metrics", timeout=SECONDS).text
        return int(samples(text)["lightllm_image_encodes_total"])


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    llava = make_llava(tmp_path_factory.mktemp("llava") / "model")
    options = [
        "--model_dir",
        str(llava.path),
        "--device",
        "cpu",
        "--data_type",
        "fp32",
        "--cache_capacity",
        "12",
    ]
    options += ["--max_total_token_num", "4000", "--max_req_total_len", "256", "--chunked_prefill_size", "16"]
    options += ["--cache_capacity_bytes", str(64 << 20), "--max_image_mb", "8"]
    with LightLLMServer(options) as server:
        yield Served(server, llava)


def ids_of(answer: dict[str, Any]) -> list[int]:
    return [token["id"] for token in answer["tokens"]]


def test_pictures_between_texts_are_answered_as_by_transformers(served: Served) -> None:
    one, two = picture(1), picture(2, 21, 77)
    for text, files in ((f"What is {MARKER} here?", [one]), (f"{MARKER} and {MARKER} are", [two, one])):
        answer = served.answer(text, *files)
        assert ids_of(answer) == served.expected(text, *files)
        images = len(files) * IMAGE_TOKENS
        usage = {
            "input_text_tokens": len(served.tokenizer.encode(text)) - len(files),
            "input_audio_tokens": 0,
            "input_image_tokens": images,
        }
        assert answer["prompt_tokens"] == usage["input_text_tokens"] + images
        assert answer["input_usage"] == usage
        events = served.generate(text, *files, path="/generate_stream", max_new_tokens=2).text
        assert [json.loads(line[5:])["input_usage"] for line in events.splitlines() if line] == [usage] * 2
    assert ids_of(served.answer(f"What is {MARKER} here?", two)) != ids_of(
        served.answer(f"What is {MARKER} here?", one)
    )


def test_chats_take_image_parts_streamed_and_not_and_count_their_tokens(served: Served) -> None:
    file = picture(3)
    parts = [{"type": "text", "text": "What?"}, {"type": "image_url", "image_url": {"url": data_url(file)}}]
    body = {
        "messages": [{"role": "user", "content": parts}], "max_tokens": NEW, "temperature": 0, "ignore_eos": True,
        "stream_options": {"include_usage": True}, "return_token_ids": True,
    }  # fmt: skip
    whole = served.post("/v1/chat/completions", {**body, "stream_options": None}).json()
    text = f"<|user|>What?{MARKER}</s><|assistant|>"
    assert whole["choices"][0]["token_ids"] == served.expected(text, file, special=False)
    prompt_tokens = len(served.tokenizer.encode(text, False)) + IMAGE_TOKENS - 1
    assert whole["usage"]["prompt_tokens"] == prompt_tokens
    streamed = served.post("/v1/chat/completions", {**body, "stream": True}).text
    events = [json.loads(line[6:]) for line in streamed.splitlines() if line.startswith("data: {")]
    deltas = [c["delta"].get("content") or "" for event in events for c in event["choices"]]
    assert "".join(deltas) == whole["choices"][0]["message"]["content"]
    assert events[-1]["usage"]["prompt_tokens"] == prompt_tokens
    details = events[-1]["usage"]["prompt_tokens_details"]
    assert details["cached_tokens"] >= IMAGE_TOKENS == details["image_tokens"]


def test_responses_and_messages_see_what_a_chat_sees(served: Served) -> None:
    file = picture(9)
    more = {"temperature": 0, "ignore_eos": True}
    text, url = "Who is this?", data_url(file)
    parts: list[dict[str, Any]] = [
        {"type": "text", "text": text},
        {"type": "image_url", "image_url": {"url": url}},
    ]
    chat = served.post(
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": parts}], "max_tokens": NEW, "logprobs": True, "return_token_ids": True, **more},
    ).json()  # fmt: skip
    choice, prompt_tokens = chat["choices"][0], chat["usage"]["prompt_tokens"]
    said = choice["message"]["content"]
    expected = served.expected(f"<|user|>{text}{MARKER}</s><|assistant|>", file, special=False)
    assert choice["token_ids"] == expected

    parts = [
        {"type": "input_text", "text": text},
        {"type": "input_image", "image_url": url, "detail": "auto"},
    ]
    body = {"input": [{"role": "user", "content": parts}], "max_output_tokens": NEW, **more}
    whole = served.post("/v1/responses", {**body, "include": ["message.output_text.logprobs"]}).json()
    (part,) = whole["output"][0]["content"]
    assert part["text"] == said and whole["usage"]["input_tokens"] == prompt_tokens
    own, others = part["logprobs"], choice["logprobs"]["content"]
    assert [entry["bytes"] for entry in own] == [entry["bytes"] for entry in others]
    assert [entry["logprob"] for entry in own] == pytest.approx(
        [entry["logprob"] for entry in others], abs=1e-4
    )
    assert whole["usage"]["input_tokens_details"]["cached_tokens"] == prompt_tokens - 1
    streamed = served.post("/v1/responses", {**body, "stream": True}).text
    assert (
        "".join(event["delta"] for event in events_of(streamed) if event["type"].endswith("text.delta"))
        == said
    )

    source = {"type": "base64", "media_type": "image/png", "data": base64_text(file)}
    parts = [{"type": "text", "text": text}, {"type": "image", "source": source}]
    body = {"messages": [{"role": "user", "content": parts}], "max_tokens": NEW, **more}
    message = served.post("/v1/messages", body).json()
    assert message["content"] == [{"type": "text", "text": said}]
    usage = message["usage"]
    assert usage["input_tokens"] + usage["cache_read_input_tokens"] == prompt_tokens
    assert usage["output_tokens"] == NEW
    deltas = [event["delta"].get("text", "") for event in events_of(served.post("/v1/messages", {**body, "stream": True}).text) if "delta" in event]  # fmt: skip
    assert "".join(deltas) == said
    counted = served.post("/v1/messages/count_tokens", {"messages": body["messages"]}).json()
    assert counted == {"input_tokens": prompt_tokens}


def events_of(stream: str) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in stream.splitlines() if line.startswith("data: {")]


def test_an_image_that_was_seen_is_not_encoded_again_and_comes_from_the_prefix_cache(served: Served) -> None:
    text, file = f"Tell of {MARKER} all", picture(4)
    first = served.answer(text, file)
    before = served.encodes()
    second = served.answer(text, file)
    assert served.encodes() == before
    assert ids_of(second) == ids_of(first)
    assert first["cached_tokens"] < IMAGE_TOKENS <= second["cached_tokens"]


def test_ten_requests_at_once_with_a_new_image_have_it_encoded_once(served: Served) -> None:
    text, file = f"Ten see {MARKER} now", picture(5)
    before = served.encodes()
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda _: ids_of(served.answer(text, file)), range(10)))
    assert served.encodes() == before + 1
    assert answers == [served.expected(text, file)] * 10


@pytest.mark.parametrize(
    ("text", "files", "said"),
    [
        (f"{MARKER}?", [b"no image"], "none of JPEG"),
        (f"{MARKER}?", [picture(6)[:-200]], "broken or cut short"),
        ("What?", [picture(6)], "0 markers"),
        (f"{MARKER} {MARKER}?", [picture(6)], "2 markers"),
        (f"{MARKER}?", [], "0 images"),
        (f"{MARKER}" * 11, [picture(6)] * 11, "256"),
    ],
)
def test_a_bad_request_is_refused_and_others_go_on(
    served: Served, text: str, files: list[bytes], said: str
) -> None:
    before = served.encodes()
    with ThreadPoolExecutor(2) as pool:
        other = pool.submit(served.answer, "The quick brown fox")
        refused = served.generate(text, *files)
        assert refused.status_code == 400 and said in refused.json()["message"], refused.text
        assert len(ids_of(other.result())) == NEW
    assert served.encodes() == before


def test_tokens_of_an_image_are_counted_by_its_size(served: Served) -> None:
    text = f"See {MARKER} there"
    body = {"text": text, "multimodal_params": {"images": [{"type": "image_size", "data": [640, 480]}]}}
    expected = len(served.tokenizer.encode(text)) + IMAGE_TOKENS - 1
    assert served.post("/tokens", body).json() == {"ntokens": expected}
    images = [{"type": "base64", "data": base64_text(picture(7))}]
    assert served.post("/tokens", {"text": text, "multimodal_params": {"images": images}}).json() == {
        "ntokens": expected
    }


def test_more_images_than_the_cache_holds_pass_through_it_and_none_that_is_held_goes(served: Served) -> None:
    files = [picture(100 + number) for number in range(18)]
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda file: served.generate(f"A {MARKER}.", file), files))
    assert [answer.status_code for answer in answers] == [200] * 18
    assert ids_of(answers[0].json()) == served.expected(f"A {MARKER}.", files[0])


@pytest.mark.parametrize(
    "names", [["cache"], pytest.param(["visual-0", "cache"], marks=pytest.mark.slow)], ids=str
)
def test_a_cache_manager_and_a_visual_server_that_are_killed_come_back(
    served: Served, names: list[str]
) -> None:
    text, old, new = f"After {MARKER} that", picture(8), picture(8 + len(names))
    first = served.answer(text, old)
    killed = [served.server.child(name) for name in names]
    for process in killed:
        process.kill()
    with ThreadPoolExecutor(2) as pool:
        other = pool.submit(served.answer, "The quick brown fox")
        assert ids_of(served.answer(text, new)) == served.expected(text, new)
        assert len(ids_of(other.result())) == NEW
    assert ids_of(served.answer(text, old)) == ids_of(first)


def test_a_client_that_leaves_withdraws_its_image_and_releases_it_at_once(served: Served) -> None:
    """The Visual Server stands still meanwhile; text goes on."""
    text, staying, left = f"Who sees {MARKER}?", picture(20), picture(21)
    before, visual = served.encodes(), served.server.child("visual-0")
    cache = ImageCache(RuntimeDir(served.server.runtime_folders()[0]))

    def wait_for_references(count: int) -> None:
        deadline = time.monotonic() + SECONDS
        while cache.stats().result(SECONDS).references != count:
            assert time.monotonic() < deadline

    with ThreadPoolExecutor(1) as pool:
        visual.suspend()
        try:
            answer = pool.submit(served.answer, text, staying)
            wait_for_references(1)
            client = socket.create_connection(("127.0.0.1", httpx.URL(served.server.url).port))
            body = json.dumps(served.body(text, left)).encode()
            client.sendall(
                b"POST /generate HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n" % len(body)
            )
            client.sendall(body)
            wait_for_references(2)
            client.close()
            wait_for_references(1)
            assert len(ids_of(served.answer("The quick brown fox"))) == NEW
        finally:
            visual.resume()
        assert ids_of(answer.result()) == served.expected(text, staying)
    assert served.encodes() == before + 1
    assert ids_of(served.answer(text, left)) == served.expected(text, left)
    assert served.encodes() == before + 2
    cache.close()
