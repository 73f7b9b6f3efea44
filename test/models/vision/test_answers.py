"""Prompts with images are answered as by the reference: checkpoints in their published formats, with our own tokens, preprocessing,
encoder and language model, and no process but this one."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image
from support.rounds_to_end import Serving, Wanted
from support.scheduler_config import scheduler_config
from support.vision_models import NAMES, make_vision_model, random_images
from support.vision_prompts import WRITINGS

from lightllm.backend.image_embeddings import ImageEmbeddings
from lightllm.backend.mode_backend import ModeBackend
from lightllm.config import ServerConfig
from lightllm.images.layouts.registry import layout_of
from lightllm.images.prompt import encode, place
from lightllm.ipc.image_files import EmbeddingHeader, ImageFiles
from lightllm.protocol.images import Parameters
from lightllm.protocol.messages import ImageSpan
from lightllm.sampling_params import SamplingParams
from lightllm.tokenizer import load_tokenizer
from lightllm.visual.encoder import EncoderInput
from lightllm.visual.vision_encoder import VisionEncoder

ROWS, SLOTS, LONGEST = 6, 2400, 480
LIMITS = scheduler_config(
    max_total_token_num=SLOTS, max_req_total_len=LONGEST, running_max_req_size=ROWS, batch_max_tokens=64,
    chunked_prefill_size=37, max_waiting_requests=100, eos_token_ids=[2],
)  # fmt: skip
FIRST_VIRTUAL_ID = 2**24
TEXTS: list[tuple[str, list[int]]] = [
    ("What is the quick {image} here, and {image}?", [0, 1]),
    ("{image}\nThe lazy dog", [2]),
    ("<|user|>Hello {image}{image}\nwhat?</s>The answer is a fox.</s><|user|>And {image}, or {image} again?", [3, 0, 1, 3]),
    ("The answer is", []),
]  # fmt: skip
"""Prompts with {image} in the place of each marker, and which images those are: between texts and at the start, one twice, over
several turns, none."""


class Checkpoint:
    """All of a server's work on prompts with images, in one process."""

    def __init__(self, path: Path, images: Sequence[Image.Image]) -> None:
        config = ServerConfig(
            model_dir=str(path), data_type="fp32", device="cpu", max_total_token_num=SLOTS, running_max_req_size=ROWS,
            cpu_threads=1, max_req_total_len=LONGEST,
        )  # fmt: skip
        self.tokenizer = load_tokenizer(str(path))
        layout = layout_of(str(path), self.tokenizer.token_id)
        assert layout is not None
        self.layout = layout
        self.footprints = [layout.footprint(*image.size, "auto") for image in images]
        folder = path / "images"
        folder.mkdir()
        self._encode(config, ImageFiles(folder), images)
        self.backend = ModeBackend(config, 0, 1, embeddings=ImageEmbeddings(folder))
        self.backend.init_model()

    def _encode(self, config: ServerConfig, files: ImageFiles, images: Sequence[Image.Image]) -> None:
        parameters: Parameters = {}
        inputs = [
            EncoderInput(png(image), parameters, footprint.tokens)
            for image, footprint in zip(images, self.footprints, strict=True)
        ]
        for number, output in enumerate(VisionEncoder(config).encode(inputs)):
            header = EmbeddingHeader(
                "key", self.first_id(number), output.shape[0], output.dtype, output.shape
            )
            files.write_embedding(number, header, output.data)

    @staticmethod
    def first_id(number: int) -> int:
        return FIRST_VIRTUAL_ID + 1000 * number

    def wanted(self, text: str, numbers: Sequence[int], count: int) -> Wanted:
        ids = encode(text, self.layout, self.tokenizer.encode, True)
        placed = place(
            ids, self.layout, [(self.first_id(n), self.footprints[n].tokens) for n in numbers], "images"
        )
        spans = [
            ImageSpan(start, self.footprints[n].tokens, n, self.footprints[n].grid)
            for start, n in zip(placed.starts, numbers, strict=True)
        ]
        params = SamplingParams(temperature=0.0, max_new_tokens=count, ignore_eos=True).verify()
        return Wanted(placed.ids, params, images=spans, uncut=self.layout.bidirectional)


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("internvl, internlm2", 8),
        ("qwen-vl", 8),
        *(pytest.param(name, 48, marks=pytest.mark.slow) for name in NAMES),
    ],
)
def test_greedy_tokens_equal_the_reference_in_chunks_together_and_from_the_prefix_cache(
    tmp_path: Path, name: str, count: int
) -> None:
    reference = make_vision_model(tmp_path, name, std=0.2)
    images, writing = random_images(4), WRITINGS[name]
    checkpoint = Checkpoint(tmp_path, images)
    prompts = [(text.replace("{image}", writing.marker), numbers) for text, numbers in TEXTS]
    expected = [
        reference.greedy(writing.prompt(checkpoint.tokenizer, text, [images[n] for n in numbers]), count)
        for text, numbers in prompts
    ]
    assert len({tuple(tokens) for tokens in expected}) == len(expected), "all answers are alike"
    first, _ = prompts[0]
    swapped = reference.greedy(writing.prompt(checkpoint.tokenizer, first, [images[1], images[0]]), count)
    assert swapped != expected[0], "the answer does not depend on the images"

    serving = Serving(checkpoint.backend, LIMITS)
    cold = serving.run([checkpoint.wanted(*prompt, count) for prompt in prompts])
    assert cold == expected
    for prompt, tokens in zip(prompts, expected, strict=True):
        wanted = checkpoint.wanted(*prompt, 8)
        assert serving.run([wanted]) == [tokens[:8]]
        assert serving.finished[0].cached_tokens >= len(wanted.prompt) - 37
    assert not serving.failures and serving.scheduler.snapshot().slots_used == 0
