"""The `openai` client sends images to a whole server; and whatever images are bad, other requests go on."""

from __future__ import annotations

import itertools
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import openai
import pytest
from PIL import Image
from support.chat_templates import LLAVA_HF
from support.drawn_images import encoded, png_header
from support.vision_models import random_images
from support.vision_server import (
    VisionServer,
    base64_text,
    file_server,
    image_part,
    png,
    text_part,
    vision_server,
)

pytestmark = pytest.mark.slow
IMAGES = random_images(4)
COUNT = 24


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VisionServer]:
    path = tmp_path_factory.mktemp("llava") / "model"
    options = ("--allowed_media_domains", "127.0.0.1", "--image_fetch_timeout", "1")
    with vision_server(path, "llava, converted", *options, chat_template=LLAVA_HF) as served:
        yield served


# -- the openai client


class Client:
    def __init__(self, served: VisionServer) -> None:
        self._client = openai.OpenAI(base_url=served.url + "/v1", api_key="none", max_retries=0, timeout=60)
        self._model = self._client.models.list().data[0].id

    def create(self, messages: list[Any], **options: Any) -> Any:
        return self._client.chat.completions.create(
            model=self._model, messages=messages, max_tokens=COUNT, temperature=0,
            extra_body={"ignore_eos": True, "return_token_ids": True}, **options,
        )  # fmt: skip


@pytest.mark.parametrize("detail", [{}, {"detail": "auto"}, {"detail": "low"}, {"detail": "high"}], ids=str)
def test_the_client_sends_images_as_data_and_as_urls_streamed_and_not(
    served: VisionServer, detail: dict[str, str]
) -> None:
    client = Client(served)
    text = "USER: {image}\n{image}\nAre these alike? ASSISTANT:"
    wanted = served.prompt(text, IMAGES[:2], special=False)
    tokens = served.reference.greedy(wanted, COUNT)
    with file_server({"/dog.png": png(IMAGES[1])}) as files:
        parts = [
            image_part(IMAGES[0], **detail),
            text_part("Are these alike?"),
            image_part(f"{files}/dog.png", **detail),
        ]
        messages = [{"role": "user", "content": parts}]
        whole = client.create(messages)
        chunks = list(client.create(messages, stream=True, stream_options={"include_usage": True}))
    assert whole.choices[0].token_ids == tokens
    assert whole.choices[0].message.content == served.tokenizer.decode(tokens)
    deltas = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
    assert "".join(deltas) == whole.choices[0].message.content
    sizes = [{"type": "image_size", "data": list(image.size)} for image in IMAGES[:2]]
    counted = served.post(
        "/tokens",
        {
            "text": served.marked(text),
            "parameters": {"add_special_tokens": False},
            "multimodal_params": {"images": sizes},
        },
    ).json()["ntokens"]
    assert counted == served.prompt_tokens(wanted)
    for usage in (whole.usage, chunks[-1].usage):
        assert (usage.prompt_tokens, usage.completion_tokens) == (counted, COUNT)
        assert usage.total_tokens == counted + COUNT


def test_the_client_goes_on_with_a_conversation_that_has_images_in_several_turns(
    served: VisionServer,
) -> None:
    client = Client(served)
    messages: list[Any] = [{"role": "user", "content": [image_part(IMAGES[2]), text_part("What is this?")]}]
    said = client.create(messages).choices[0].message.content
    messages += [
        {"role": "assistant", "content": "A lazy dog."},
        {"role": "user", "content": [text_part("And this?"), image_part(IMAGES[3])]},
    ]
    answer = client.create(messages)
    text = "USER: {image}\nWhat is this? ASSISTANT: A lazy dog. USER: {image}\nAnd this? ASSISTANT:"
    wanted = served.prompt(text, IMAGES[2:4], special=False)
    assert answer.choices[0].token_ids == served.reference.greedy(wanted, COUNT)
    assert answer.choices[0].message.content != said
    assert answer.usage.prompt_tokens_details.cached_tokens >= served.prompt_tokens(IMAGES[2:3])


def test_the_client_raises_what_is_wrong_with_an_image(served: VisionServer) -> None:
    url = "data:image/png;base64," + base64_text(png(IMAGES[0])[:-100])
    with pytest.raises(openai.BadRequestError) as refused:
        Client(served).create([{"role": "user", "content": [text_part("What?"), image_part(url)]}])
    assert refused.value.code == "invalid_image" and "cut short" in refused.value.message
    assert refused.value.param == "messages.0.content.1"


# -- images that are bad, or unusual


def native(data: bytes) -> dict[str, Any]:
    return {"type": "base64", "data": base64_text(data)}


def url(text: str) -> dict[str, Any]:
    return {"type": "url", "data": text}


def bad_images(files: str) -> dict[str, tuple[list[dict[str, Any]], str]]:
    """Name -> images for a prompt with one marker, and what the error says. files: URL of a server of them."""
    good = native(png(IMAGES[0]))
    return {
        "text": ([native(b"This is not an image.")], "none of JPEG"),
        "empty": ([{"type": "base64", "data": ""}], "must be a text"),
        "truncated JPEG": ([native(encoded(IMAGES[0], "JPEG")[:-60])], "broken or cut short"),
        "bomb": ([native(png_header(30_000, 30_000))], "more than 50000000 pixels"),
        "SVG": ([native(b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"></svg>')], "but SVG"),
        "wrong base64": ([{"type": "base64", "data": "iVBORw0KGgo$$"}], "no valid base64"),
        "too many bytes": ([native(b"\x89PNG\r\n\x1a\n" + bytes(9 << 20))], "--max_image_mb"),
        "a file": ([url("file:///etc/passwd")], "reads no file URLs"),
        "another scheme": ([url("ftp://127.0.0.1/cat.png")], "http, https, data or file"),
        "IPv6 loopback": ([url("http://[::1]/cat.png")], "not permitted"),
        "mapped": ([url("http://[::ffff:127.0.0.1]/cat.png")], "not permitted"),
        "IPv4 in other spellings": ([url("http://0x7f.1/cat.png")], "no valid host"),
        "a number": ([url("http://2130706433/cat.png")], "no valid host"),
        "a host that is not listed": ([url("http://localhost/cat.png")], "not permitted"),
        "user and password": ([url("http://a:b@127.0.0.1/cat.png")], "user name"),
        "nothing listens": ([url("http://127.0.0.1:1/cat.png")], "download failed"),
        "not found": ([url(f"{files}/none.png")], "answered 404"),
        "a page": ([url(f"{files}/page.html")], "but a text"),
        "redirected away": ([url(f"{files}/away")], "not permitted"),
        "redirected for ever": ([url(f"{files}/around")], "redirects"),
        "slow drip": ([url(f"{files}/drip")], "longer than 1 s"),
        "endless": ([url(f"{files}/endless")], "--max_image_mb"),
        "one too many": ([good, good], "1 marker"),
        "one too few": ([], "0 images"),
        "a size alone": ([{"type": "image_size", "data": [9, 9]}], "/tokens alone"),
        "another type": ([{"type": "video", "data": "x"}], "must be one of"),
    }  # fmt: skip


def slow_drip() -> Iterator[bytes]:
    """A byte now and then, as long as it is read."""
    while True:
        yield b"x"
        time.sleep(0.05)


class Steady:
    """A client that asks for the same text again and again, streamed."""

    def __init__(self, served: VisionServer) -> None:
        self._served = served
        self._end = threading.Event()
        self.answers: list[list[int]] = []

    def run(self) -> None:
        while not self._end.is_set():
            self.answers.append(self._served.stream("The quick brown fox", [], COUNT))

    def stop(self) -> None:
        self._end.set()


def test_bad_images_are_clear_errors_and_a_text_stream_beside_them_goes_on(served: VisionServer) -> None:
    alone = served.stream("The quick brown fox", [], COUNT)
    encodes = served.counter("lightllm_image_encodes_total")
    steady, found = Steady(served), {}
    more: dict[str, Any] = {
        "/page.html": b"<html></html>", "/away": ("302 Found", "http://localhost/cat.png"), "/around": ("302 Found", "/around"),
        "/drip": slow_drip(), "/endless": itertools.repeat(bytes(1 << 20)),
    }  # fmt: skip
    with ThreadPoolExecutor(1) as pool, file_server(more) as files:
        running = pool.submit(steady.run)
        try:
            for name, (images, said) in bad_images(files).items():
                response = served.post(
                    "/generate",
                    {
                        "inputs": served.marked("What is {image}?"),
                        "parameters": {"max_new_tokens": 4},
                        "multimodal_params": {"images": images},
                    },
                )
                if response.status_code != 400 or said not in response.json()["message"]:
                    found[name] = (response.status_code, response.text[:300])
            body = b'{"inputs": "' + b"x" * (200 << 20) + b'"}'
            request = urllib.request.Request(
                served.url + "/generate", body, {"Content-Type": "application/json"}
            )
            with pytest.raises(urllib.error.HTTPError) as error:
                urllib.request.urlopen(request, timeout=60)
            with error.value:
                assert error.value.code == 413 and b"16 MiB" in error.value.read()
        finally:
            steady.stop()
        running.result()
    assert not found
    assert len(steady.answers) >= 3 and all(answer == alone for answer in steady.answers)
    assert served.counter("lightllm_image_encodes_total") == encodes


def unusual_images() -> dict[str, tuple[bytes, Image.Image]]:
    """Name -> a file, and what a person sees in it."""
    image = IMAGES[0]
    palette = image.quantize(16)
    layer = image.convert("RGBA")
    layer.putalpha(
        Image.fromarray(np.tile(np.linspace(0, 255, image.width, dtype=np.uint8), (image.height, 1)))
    )
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    grey = image.convert("L")
    sixteen = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned clockwise
    frames = [image.quantize(16), IMAGES[1].resize(image.size).quantize(16)]
    cmyk = image.convert("CMYK")
    return {
        "1 x 1": (encoded(image.resize((1, 1))), image.resize((1, 1))),
        "1 x 5000": (encoded(image.resize((1, 5000))), image.resize((1, 5000))),
        "palette": (encoded(palette), palette.convert("RGB")),
        "alpha": (encoded(layer), Image.alpha_composite(white, layer).convert("RGB")),
        "16 bits": (encoded(sixteen), grey.convert("RGB")),
        "turned": (encoded(image.transpose(Image.Transpose.ROTATE_90), exif=turned), image),
        "animation": (encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]), frames[0].convert("RGB")),
        "CMYK": (encoded(cmyk, "TIFF"), cmyk.convert("RGB")),
    }  # fmt: skip


@pytest.mark.parametrize("name", unusual_images())
def test_unusual_images_are_answered_by_what_a_person_sees_in_them(served: VisionServer, name: str) -> None:
    file, seen = unusual_images()[name]
    text = "Tell of {image} all"
    assert served.generate(text, [file], COUNT) == served.reference.greedy(served.prompt(text, [seen]), COUNT)
