"""Each family of models that see through a whole server: tokens equal the reference's, and the published clients run."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image
from support import readme_clients
from support.chat_templates import CHATML, QWEN_2_VL
from support.vision_models import random_images
from support.vision_server import VisionServer, file_server, image_part, png, text_part, vision_server

pytestmark = pytest.mark.slow
COUNT = 48
TILE = 4
"""Tokens of one tile of InternVL: an image of low detail."""
IMAGES = random_images(4)


def check_generate(served: VisionServer) -> None:
    """Prompts with images between texts, at once, whole and streamed; then from the prefix cache."""
    requests = [
        ("What is the quick {image} here, and {image}?", [IMAGES[0], IMAGES[1]]),
        ("{image}\nThe lazy dog", [IMAGES[2]]),
        ("Hello {image}{image}\nwhat? And {image}, or {image} again?", [IMAGES[n] for n in (3, 0, 1, 3)]),
        ("The answer is", []),
    ]
    expected = [served.reference.greedy(served.prompt(text, images), COUNT) for text, images in requests]
    with ThreadPoolExecutor(8) as pool:
        whole = [pool.submit(served.generate, text, images, COUNT) for text, images in requests]
        streamed = [pool.submit(served.stream, text, images, COUNT) for text, images in requests]
        assert [future.result() for future in whole] == expected
        assert [future.result() for future in streamed] == expected
    assert served.counter("lightllm_image_encodes_total") == len(IMAGES)
    for (text, images), tokens in zip(requests, expected, strict=True):
        answer = served.post("/generate", served.body(text, images, max_new_tokens=8)).json()
        assert [token["id"] for token in answer["tokens"]] == tokens[:8]
        assert answer["prompt_tokens"] == served.prompt_tokens(served.prompt(text, images))
        assert answer["cached_tokens"] >= answer["prompt_tokens"] - 37


@pytest.mark.parametrize(
    "name",
    [
        "gemma3, published", "qwen2-vl, published", "qwen3-vl", "internvl", "internvl, phi3", "llava, converted",
        "llava, beside clip",
    ],
)  # fmt: skip
def test_every_family_answers_as_its_reference(tmp_path: Path, name: str) -> None:
    with vision_server(tmp_path / "model", name) as served:
        check_generate(served)


def test_two_ranks_answer_as_the_reference(tmp_path: Path) -> None:
    with vision_server(tmp_path / "model", "qwen2.5-vl, published", "--tp", "2", "--check_rounds") as served:
        check_generate(served)


@pytest.mark.parametrize(
    ("name", "template", "begin", "join"),
    [
        ("qwen2.5-vl, published", QWEN_2_VL, "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n", ""),
        ("internvl, internlm2", CHATML, "", "\n"),
    ],
)  # fmt: skip
def test_chats_with_images_in_several_turns(
    tmp_path: Path, name: str, template: str, begin: str, join: str
) -> None:
    """join: what stands between the parts of a message."""
    first = [text_part("What is"), image_part(IMAGES[0]), text_part("this?")]
    second = [image_part(IMAGES[1]), image_part(IMAGES[2]), text_part("And these?")]
    messages = [{"role": "user", "content": first}]
    prompt = f"{begin}<|im_start|>user\n{join.join(['What is', '{image}', 'this?'])}<|im_end|>\n<|im_start|>assistant\n"
    with vision_server(tmp_path / "model", name, chat_template=template) as served:
        wanted = served.prompt(prompt, IMAGES[:1], special=False)
        answer = served.chat(messages, COUNT)
        assert answer["choices"][0]["token_ids"] == served.reference.greedy(wanted, COUNT)
        assert answer["usage"]["prompt_tokens"] == served.prompt_tokens(wanted)

        messages += [{"role": "assistant", "content": "A fox."}, {"role": "user", "content": second}]
        prompt += (
            f"A fox.<|im_end|>\n<|im_start|>user\n{join.join(['{image}', '{image}', 'And these?'])}<|im_end|>\n"
            "<|im_start|>assistant\n"
        )
        wanted = served.prompt(prompt, IMAGES[:3], special=False)
        answer = served.chat(messages, COUNT)
        assert answer["choices"][0]["token_ids"] == served.reference.greedy(wanted, COUNT)
        usage = answer["usage"]
        assert usage["prompt_tokens"] == served.prompt_tokens(wanted)
        assert usage["prompt_tokens_details"]["cached_tokens"] > served.prompt_tokens(IMAGES[:1])
        assert served.counter("lightllm_image_encodes_total") == 3

        lengths = []
        for detail in ("low", "high"):
            content = [image_part(IMAGES[2], detail=detail), text_part("And this?")]
            lengths.append(served.chat([{"role": "user", "content": content}], 4)["usage"]["prompt_tokens"])
        tiles = served.prompt_tokens(IMAGES[2:3]) - TILE if name.startswith("internvl") else 0
        assert lengths[1] - lengths[0] == tiles and served.counter(
            "lightllm_image_encodes_total"
        ) == 3 + bool(tiles)


# -- the clients of upstream's README

README_OPTIONS = ("--trust_remote_code", "--enable_multimodal", "--cache_capacity", "1000")


@pytest.fixture(scope="module")
def qwen_vl(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VisionServer]:
    path = tmp_path_factory.mktemp("qwen-vl") / "model"
    options = (*README_OPTIONS, "--max_req_total_len", "2048", "--allowed_media_domains", "127.0.0.1")
    with vision_server(path, "qwen-vl", *options, std=0.1) as served:
        yield served


def run_client(source: str, folder: Path) -> dict[str, object]:
    """The answer that a client prints."""
    done = subprocess.run(
        [sys.executable, "-c", source], cwd=folder, capture_output=True, text=True, timeout=120, check=True
    )
    printed = done.stdout.strip().removeprefix("+ result: (").removesuffix(")")
    assert printed.startswith("{"), done.stdout
    return ast.literal_eval(printed)


def assert_answers(
    served: VisionServer, answer: dict[str, object], text: str, images: list[Image.Image]
) -> None:
    """The first tokens of an answer are the reference's."""
    prompt = served.prompt(text, images)
    tokens = served.reference.greedy(prompt, COUNT)
    expected = served.tokenizer.decode(tokens).rstrip("\N{REPLACEMENT CHARACTER}")
    assert len(expected) > 10
    (generated,) = answer["generated_text"]  # type: ignore[misc]
    assert generated.startswith(expected)
    assert answer["prompt_tokens"] == served.prompt_tokens(prompt)
    assert answer["finish_reason"] == "stop" or answer["count_output_tokens"] == 200


def test_the_readmes_client_of_qwen_vl_runs_with_a_file_and_with_a_url(
    qwen_vl: VisionServer, tmp_path: Path
) -> None:
    (tmp_path / "cat.png").write_bytes(png(IMAGES[0]))
    text = "{image}Generate the caption in English with grounding:"
    with file_server({"/cat.png": png(IMAGES[0])}) as files:
        for place in ("cat.png", f"{files}/cat.png"):
            source = readme_clients.client(
                readme_clients.QWEN_VL, qwen_vl.url, {"/local/path/of/image": place}
            )
            assert_answers(qwen_vl, run_client(source, tmp_path), text, [IMAGES[0]])
    assert qwen_vl.counter("lightllm_image_encodes_total") == 1


def test_the_readmes_client_of_qwen_vl_chat_runs_with_two_images(
    qwen_vl: VisionServer, tmp_path: Path
) -> None:
    folder = tmp_path / "assets" / "mm_tutorial"
    folder.mkdir(parents=True)
    for name, image in (("Chongqing", IMAGES[2]), ("Beijing", IMAGES[3])):
        (folder / f"{name}.jpeg").write_bytes(png(image))  # a file's name says nothing
    source = readme_clients.client(readme_clients.QWEN_VL_CHAT, qwen_vl.url, {})
    query = next(line for line in source.splitlines() if line.strip().startswith("query = "))
    text = json.loads(query.partition("= ")[2]).replace("<img></img>", "{image}")
    assert text.count("{image}") == 2
    assert_answers(qwen_vl, run_client(source, tmp_path), text, IMAGES[2:4])


def test_a_name_inside_the_marker_of_qwen_vl_gives_way_to_the_image(qwen_vl: VisionServer) -> None:
    texts = ["Look {image} there", "Look <img>assets/cat.jpeg</img> there"]
    expected = qwen_vl.reference.greedy(qwen_vl.prompt(texts[0], IMAGES[1:2]), 12)
    assert [qwen_vl.generate(text, IMAGES[1:2], 12) for text in texts] == [expected] * 2


def test_the_readmes_client_of_llava_runs_against_an_original_checkpoint(tmp_path: Path) -> None:
    text = (
        "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, detailed, "
        "and polite answers to the human's questions. USER: {image}\nPlease explain the picture. ASSISTANT:"
    )
    with vision_server(tmp_path / "model", "llava, original", *README_OPTIONS) as served:
        (tmp_path / "cat.png").write_bytes(png(IMAGES[0]))
        source = readme_clients.client(readme_clients.LLAVA, served.url, {"/local/path/of/image": "cat.png"})
        assert served.marked(text).replace("\n", "\\n") in source
        assert_answers(served, run_client(source, tmp_path), text, [IMAGES[0]])
        check_generate_after_one(served)


def check_generate_after_one(served: VisionServer) -> None:
    """An original checkpoint's prompts are cut at their markers."""
    for text, images in (("{image} and {image} are", IMAGES[1:3]), ("Tell of {image}", IMAGES[3:])):
        assert served.generate(text, images, COUNT) == served.reference.greedy(
            served.prompt(text, images), COUNT
        )
