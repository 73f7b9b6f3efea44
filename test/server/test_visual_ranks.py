"""An encoder that two processes share: the test as rank 0, the Visual Server, which starts the other one; and a whole server."""

from __future__ import annotations

import io
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from support.llava import MARKER, base64_text, make_llava, picture
from support.near_tie import relative_error
from support.server import LightLLMServer
from support.vision_models import VisionReference, make_vision_model, random_images

from lightllm.config import ServerConfig
from lightllm.ipc.child import RUNTIME_VARIABLE, Child
from lightllm.ipc.runtime_dir import RuntimeDir
from lightllm.tokenizer import load_tokenizer
from lightllm.visual.encoder import EncoderInput, EncoderOutput
from lightllm.visual.vision_encoder import make_encoder

pytestmark = pytest.mark.slow

NAMES = ["llava", "qwen2-vl"]


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Child]:
    runtime = RuntimeDir.create(tmp_path)
    config = ServerConfig(model_dir=str(tmp_path), device="cpu", visual_tp=2, data_type="fp32")
    runtime.write_config(config.to_json())
    monkeypatch.setenv(RUNTIME_VARIABLE, str(runtime.path))
    supervisor, own = socket.socketpair()
    child = Child("visual-0", own, runtime, config)
    child.on_command(lambda command: None)
    yield child
    supervisor.close()
    runtime.remove()


def png(image: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def assert_same(outputs: list[EncoderOutput], expected: list[torch.Tensor]) -> None:
    for output, each in zip(outputs, expected, strict=True):
        found = torch.frombuffer(bytearray(output.data), dtype=torch.float32).view(output.shape)
        assert relative_error(found, each) < 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_two_ranks_encode_what_one_does_also_after_one_of_them_failed(
    child: Child, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference: VisionReference = make_vision_model(tmp_path, name)
    images = random_images(3)
    inputs = [EncoderInput(png(image), {}, 1) for image in images]
    expected = reference.embeddings(images)
    encoder = make_encoder(child, 0)
    assert_same(encoder.encode(inputs), expected)
    model = encoder._group.model
    with monkeypatch.context() as patch:
        patch.setattr(type(model), "forward", fail)
        for _ in range(2):
            with pytest.raises(RuntimeError, match="out of memory"):
                encoder.encode(inputs[:1])
    assert_same(encoder.encode(inputs), expected)


def fail(*arguments: object) -> torch.Tensor:
    raise RuntimeError("out of memory")


def test_a_rank_that_is_killed_comes_back_with_its_visual_server(tmp_path: Path) -> None:
    llava = make_llava(tmp_path / "model")
    tokenizer = load_tokenizer(str(llava.path))

    def expected(file: bytes) -> list[int]:
        ids = tokenizer.encode("See ", True)
        return llava.reference.greedy([*ids, llava.seen(file), *tokenizer.encode(" there", False)], 6)

    options = ["--model_dir", str(llava.path), "--device", "cpu", "--data_type", "fp32", "--visual_tp", "2"]
    options += [
        "--max_total_token_num",
        "2000",
        "--cache_capacity_bytes",
        str(64 << 20),
        "--max_image_mb",
        "8",
    ]
    with LightLLMServer(options) as server:
        for number in range(2):
            file = picture(number)
            images = [{"type": "base64", "data": base64_text(file)}]
            parameters = {"max_new_tokens": 6, "ignore_eos": True, "return_details": True}
            body = {
                "inputs": f"See {MARKER} there",
                "parameters": parameters,
                "multimodal_params": {"images": images},
            }
            answer = httpx.post(server.url + "/generate", json=body, timeout=120).json()
            assert [token["id"] for token in answer["tokens"]] == expected(file)
            if number == 0:
                server.child("visual-0-1").kill()
        assert server.log.count("visual-0 ready") == 2
